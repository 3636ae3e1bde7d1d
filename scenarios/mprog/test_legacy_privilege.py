# SPDX-License-Identifier: MIT
"""Who may set up filters of clsact: it does not take the system's administrator."""

from __future__ import annotations

import errno

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import add, asm, exit_, jgt, jne, label, ldxb, ldxw, mov, r0, r1, r2, r3, r4
from harness.guest.bpf.prog import Prog
from harness.guest.errnos import errno_of
from harness.guest.net import VethPair
from harness.guest.privilege import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, unprivileged_bpf, with_only
from harness.guest.traffic import send_frames
from scenarios.mprog.conftest import Journal

DATA, DATA_END = 76, 80  # include/uapi/linux/bpf.h:struct __sk_buff
ETHERNET_HEADER = 14
FIRST_OF_MAC = 2


@pytest.mark.parametrize(
    ("held", "refusal"),
    [
        pytest.param((CAP_NET_ADMIN, CAP_BPF), 0, id="NET_ADMIN and BPF"),
        pytest.param((CAP_NET_ADMIN,), errno.EPERM, id="NET_ADMIN"),
        pytest.param((CAP_BPF, CAP_PERFMON), errno.EPERM, id="BPF and PERFMON"),
    ],
)
def test_a_network_administrator_who_may_load_programs_sets_up_a_filter(
    veth: VethPair, journal: Journal, held: tuple[int, ...], refusal: int
) -> None:
    """MPROG-LEGACY-001, -008: with a program that looks into packets, which either right alone does not load. No query
    lists the filter."""
    peek = asm(
        ldxw(r3, r1, DATA),
        ldxw(r4, r1, DATA_END),
        mov(r2, r3),
        add(r2, ETHERNET_HEADER),
        jgt(r2, r4, "out"),
        ldxb(r3, r3),
        jne(r3, FIRST_OF_MAC, "out"),
        journal.note(3),
        label("out"),
        mov(r0, uapi.TCX_NEXT),
        exit_(),
    )

    def set_up() -> None:
        with Prog.load(peek, uapi.BPF_PROG_TYPE_SCHED_CLS) as prog:
            qdisc.add_clsact(veth.b)
            qdisc.add_bpf_filter(veth.b, prog.fd)

    assert veth.b.ns.ipr  # opened here: to enter the namespace is for the system's administrator
    tcx.attach(veth.b, journal.prog(1))
    with unprivileged_bpf(allowed=False):
        assert with_only(held, errno_of, set_up) == refusal
    assert send_frames(veth, 1) == 1
    assert journal.read() == ([1] if refusal else [1, 3])
    assert tcx.query(veth.b).count == 1
