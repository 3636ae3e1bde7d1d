# SPDX-License-Identifier: MIT
"""Congestion controls run where nobody may sleep, and their code is freed as if nobody did."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.guest import tcp
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    call_kfunc,
    exit_,
    ld_imm64,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r6,
    r10,
    stxdw,
)
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.late_page import LatePage
from harness.guest.net import VethPair
from harness.guest.netns import libc
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import MEMBERS, NAME, TYPE, Algorithm

pytestmark = [pytest.mark.requires("struct_ops")]

not_refused = "the type does not ask whether a program may sleep"


@pytest.fixture
def late_page() -> Iterator[LatePage]:
    """Memory for which a program has to wait."""
    try:
        page = LatePage()
    except OSError as error:
        pytest.skip(f"no userfaultfd: {error}")
    with page:
        yield page


@pytest.mark.known_issue("STOPS-QUIRK-010", reason=not_refused, spared=("6.1.192",))
def test_a_program_that_may_sleep_is_refused() -> None:
    """STOPS-QUIRK-010, STOPS-PROG-014: all of these are called from soft interrupts, or with RCU held."""
    for member in MEMBERS:
        with refused(errno.EINVAL):
            load_struct_ops_prog(TYPE, member, asm(mov(r0, 2), exit_()), flags=uapi.BPF_F_SLEEPABLE).close()


def sleeper(member: str, page: LatePage, *before: Item) -> Prog:
    """A program that reads the page after some instructions, with r6 the socket."""
    return load_struct_ops_prog(
        TYPE,
        member,
        asm(
            ldxdw(r6, r1),
            *before,
            mov(r1, r10),
            add(r1, -16),
            mov(r2, 8),
            ld_imm64(r3, page.address),
            mov(r4, 0),
            call_kfunc(btf.vmlinux().func("bpf_copy_from_user_str")),
            mov(r0, 2),
            exit_(),
        ),
        flags=uapi.BPF_F_SLEEPABLE,
    )


def choose(sock: socket.socket, name: str) -> int:
    """setsockopt(TCP_CONGESTION) without Python's lock, which socket.setsockopt keeps; returns 0 or -1."""
    return int(
        libc().setsockopt(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode(), len(name))
    )


def change_to_reno() -> Item:
    """The socket in r6 takes another algorithm."""
    return [
        ld_imm64(r4, int.from_bytes(b"reno".ljust(8, b"\0"), "little")),
        stxdw(r10, -8, r4),
        mov(r1, r6),
        mov(r2, socket.IPPROTO_TCP),
        mov(r3, socket.TCP_CONGESTION),
        mov(r4, r10),
        add(r4, -8),
        mov(r5, len("reno")),
        call(uapi.BPF_FUNC_setsockopt),
    ]


@pytest.mark.known_issue(
    "STOPS-QUIRK-010",
    reason=not_refused,
    splat="Voluntary context switch within RCU",
    shown_by="CONFIG_PREEMPT_RCU",
)
@pytest.mark.requires("kfunc:bpf_copy_from_user_str")
def test_setsockopt_does_not_sleep_with_rcu_held(
    veth: VethPair, ops: StructOps, idle: Algorithm, late_page: LatePage
) -> None:
    """STOPS-QUIRK-010: init runs inside net/ipv4/tcp_cong.c:tcp_set_congestion_control, between rcu_read_lock() and
    rcu_read_unlock().
    """
    try:
        init = sleeper("init", late_page)
    except BpfError:
        return
    with init:
        ops.update({**idle.members(), "init": init})
    with tcp.connect(veth) as pair, ThreadPoolExecutor(1) as pool:
        change = pool.submit(choose, pair.client, NAME)
        assert late_page.wait_for_reader(2)
        late_page.arrive()
        assert change.result() == 0


@pytest.mark.known_issue(
    "STOPS-QUIRK-010", reason="code is freed while a program sleeps in it", splat="tcp_tso_segs"
)
@pytest.mark.requires("kfunc:bpf_copy_from_user_str")
@pytest.mark.usefixtures("panic_on_oops")
def test_code_is_not_freed_under_a_program_that_sleeps(
    veth: VethPair, ops: StructOps, idle: Algorithm, late_page: LatePage
) -> None:
    """STOPS-QUIRK-010, STOPS-TCP-021, STOPS-FIX-002: freeing waits for RCU and RCU-tasks, which take a sleeper for one
    that has left.
    """
    try:
        sizing = sleeper("min_tso_segs", late_page, change_to_reno())
    except BpfError:
        return
    with sizing:
        ops.update({**idle.members(), "min_tso_segs": sizing})
    witness = idle.progs["init"].id
    idle.close_programs()
    with tcp.connect(veth, congestion=NAME) as pair, ThreadPoolExecutor(1) as pool:
        ops.delete()
        ops.close()
        sending = pool.submit(pair.client.send, b"x")
        assert late_page.wait_for_reader(2)
        wait_until(lambda: witness not in Prog.ids(), timeout=10, what="the map's programs to be freed")
        late_page.arrive()
        assert sending.result() == 1
        assert pair.server.recv(1) == b"x"
