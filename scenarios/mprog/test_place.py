# SPDX-License-Identifier: MIT
"""Where tcx stands: in by XDP, taps, tcx, clsact, netfilter; out by netfilter, tcx, clsact, root qdisc, taps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.errors import KernrigError
from harness.guest import modules, qdisc
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import LinkCreate
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, TCX_DROP, TCX_NEXT, TCX_PASS
from harness.guest.net import Device, VethPair
from harness.guest.netfilter import dropping
from harness.guest.traffic import frame, packet_socket
from scenarios.mprog.conftest import Journal, fate

XDP_DROP, XDP_PASS = 1, 2
XDP_FLAGS_SKB_MODE = 1 << 1  # include/uapi/linux/if_link.h


@contextmanager
def tapped(device: Device) -> Iterator[list[bytes]]:
    """What a packet tap at the device saw during the block; filled when the block ends."""
    seen: list[bytes] = []
    with packet_socket(device) as tap:
        tap.setblocking(False)
        yield seen
        while True:
            try:
                seen.append(tap.recv(2048))
            except BlockingIOError:
                break


@contextmanager
def generic_xdp(device: Device, journal: Journal, number: int, verdict: int) -> Iterator[None]:
    """An XDP program in the stack, not in the driver, at a device of the current namespace."""
    code = asm(journal.note(number), mov(r0, verdict), exit_())
    with Prog.load(code, uapi.BPF_PROG_TYPE_XDP) as prog:
        attributes = LinkCreate(
            prog_fd=prog.fd, target_fd=device.ifindex, attach_type=uapi.BPF_XDP, flags=XDP_FLAGS_SKB_MODE
        )
        with Link.create(attributes):
            yield


def test_taps_come_before_tcx_on_the_way_in(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-007, -004: they see what tcx drops."""
    tcx.attach(veth.b, journal.prog(1, TCX_DROP))
    with tapped(veth.b) as seen:
        assert fate(veth) == "lost"
    assert seen == [frame(veth.a, veth.b)]


@pytest.mark.parametrize(("verdict", "number_seen"), [(TCX_NEXT, 1), (TCX_DROP, 0)], ids=["NEXT", "DROP"])
def test_taps_come_after_tcx_on_the_way_out(
    veth: VethPair, journal: Journal, verdict: int, number_seen: int
) -> None:
    """MPROG-RUN-007, -004: they see what is left."""
    with veth.a.ns.entered():
        tcx.attach(veth.a, journal.prog(1, verdict), attach_type=BPF_TCX_EGRESS)
    with tapped(veth.a) as seen:
        fate(veth)
    assert journal.read() == [1]
    assert seen == [frame(veth.a, veth.b)] * number_seen


@pytest.mark.parametrize(
    ("verdict", "met", "number_seen"),
    [pytest.param(XDP_PASS, [5, 1], 1, id="PASS"), pytest.param(XDP_DROP, [5], 0, id="DROP")],
)
def test_generic_xdp_comes_before_taps_and_tcx(
    veth: VethPair, journal: Journal, verdict: int, met: list[int], number_seen: int
) -> None:
    """MPROG-RUN-007: 5 is the XDP program, 1 that of tcx."""
    tcx.attach(veth.b, journal.prog(1))
    with generic_xdp(veth.b, journal, 5, verdict), tapped(veth.b) as seen:
        assert fate(veth) == ("arrives" if number_seen else "lost")
    assert journal.read() == met
    assert len(seen) == number_seen


@pytest.fixture
def nf_tables() -> None:
    try:
        modules.modprobe("nf_tables")
    except KernrigError:
        pytest.skip("this kernel or its image lacks the module nf_tables")


@pytest.mark.usefixtures("nf_tables")
@pytest.mark.parametrize(("verdict", "met"), [(TCX_NEXT, [1, 2]), (TCX_PASS, [1])], ids=["NEXT", "PASS"])
def test_netfilter_comes_after_tcx_on_the_way_in(
    veth: VethPair, journal: Journal, verdict: int, met: list[int]
) -> None:
    """MPROG-RUN-007, -003: and after the filters of clsact (2); not even PASS leads past it."""
    qdisc.add_clsact(veth.b)
    legacy = journal.prog(2)
    qdisc.add_bpf_filter(veth.b, legacy.fd)
    tcx.attach(veth.b, journal.prog(1, verdict))
    with dropping(veth.b):
        assert fate(veth) == "lost"
        assert journal.read() == met
    assert fate(veth) == "arrives"


@pytest.mark.usefixtures("nf_tables")
def test_netfilter_comes_before_tcx_on_the_way_out(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-007: what it drops, no program meets."""
    with veth.a.ns.entered():
        tcx.attach(veth.a, journal.prog(1), attach_type=BPF_TCX_EGRESS)
    with dropping(veth.a, egress=True):
        assert fate(veth) == "refused"
        assert journal.read() == []
    assert fate(veth) == "arrives"
    assert journal.read() == [1]


def test_the_root_qdisc_comes_last(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-007: one that loses all gets what tcx (1) and clsact (2) have seen."""
    qdisc.add_netem(veth.a, loss_percent=100)
    qdisc.add_clsact(veth.a)
    legacy = journal.prog(2)
    qdisc.add_bpf_filter(veth.a, legacy.fd, egress=True)
    with veth.a.ns.entered():
        tcx.attach(veth.a, journal.prog(1), attach_type=BPF_TCX_EGRESS)
    assert fate(veth) == "lost"
    assert journal.read() == [1, 2]
