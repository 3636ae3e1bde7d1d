# SPDX-License-Identifier: MIT
"""How long a link lives: as long as a descriptor, in whatever process, or a pin holds it."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest.bpf import btf, tcx, uapi
from harness.guest.bpf.asm import (
    asm,
    atomic_add,
    call,
    exit_,
    jne,
    label,
    ld_map_value,
    mov,
    r0,
    r1,
    r2,
    rsh,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS
from harness.guest.net import VethPair
from harness.guest.traffic import send_frames
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids

PIN = Path("/sys/fs/bpf/kernrig-link")


@dataclass(frozen=True)
class Hooked:
    """A link and a way to see whether its program still runs."""

    link: Link
    runs: Callable[[], bool]


@pytest.fixture
def hooked(request: pytest.FixtureRequest) -> Iterator[Hooked]:
    """A tcx link, or one of a raw or typed tracepoint: what system calls of this process meet."""
    if request.param == "tcx":
        journal, veth = request.getfixturevalue("journal"), request.getfixturevalue("veth")

        def met() -> bool:
            send_frames(veth, 1)
            return bool(journal.read())

        with tcx.link(veth.b, journal.prog(1)) as link:
            yield Hooked(link, met)
        return
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as calls:
        code = asm(
            call(uapi.BPF_FUNC_get_current_pid_tgid),
            rsh(r0, 32),
            jne(r0, os.getpid(), "out"),
            ld_map_value(r1, calls),
            mov(r2, 1),
            atomic_add(r1, 0, r2),
            label("out"),
            mov(r0, 0),
            exit_(),
        )

        def counted() -> bool:
            # Reading the count is a system call, too.
            return calls.number(0) != calls.number(0)

        if request.param == "raw_tp":
            prog = Prog.load(code, uapi.BPF_PROG_TYPE_RAW_TRACEPOINT)
        else:
            prog = Prog.load(
                code,
                uapi.BPF_PROG_TYPE_TRACING,
                expected_attach_type=uapi.BPF_TRACE_RAW_TP,
                attach_btf_id=btf.vmlinux().id("btf_trace_sys_enter", uapi.BTF_KIND_TYPEDEF),
            )
        with prog, Link.raw_tracepoint(prog, "sys_enter" if request.param == "raw_tp" else None) as link:
            yield Hooked(link, counted)


@pytest.mark.parametrize("hooked", ["tcx", "raw_tp", "tp_btf"], indirect=True)
@pytest.mark.parametrize("last", ["descriptor", "pin"])
def test_a_link_lives_until_its_last_holder_lets_go(hooked: Hooked, last: str) -> None:
    """MPROG-LINK-042, -043: pinned, closed, reopened from the pin and by id; the end is at once by close, but in the
    background by unlink."""
    link = hooked.link
    number = link.id
    assert hooked.runs()
    link.pin(PIN)
    try:
        link.close()
        assert hooked.runs()
        with Link.get(PIN) as reopened, Link.from_id(number) as found:
            assert reopened.id == found.info().id == number
            if last == "descriptor":
                PIN.unlink()
                found.close()
                assert hooked.runs()
                reopened.close()
                assert not hooked.runs()
        if last == "pin":
            assert hooked.runs()
    finally:
        PIN.unlink(missing_ok=True)
    wait_until(lambda: not hooked.runs(), timeout=2, what="the program not to run any more")
    assert number not in Link.ids()
    with refused(errno.ENOENT):
        Link.from_id(number)


@contextmanager
def another_process(work: Callable[[], object] = lambda: None, *, end: str = "exit") -> Iterator[None]:
    """Within the block there is a fork of this process that has done `work`; it ends by exit, or by being killed."""
    ready_r, ready_w = os.pipe()
    gate_r, gate_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(gate_w)
            work()
            os.write(ready_w, b"+")
            os.read(gate_r, 1)
        finally:
            os._exit(0)
    os.close(gate_r)
    os.close(ready_w)
    try:
        assert os.read(ready_r, 1) == b"+", "the other process failed"
        yield
    finally:
        if end == "kill":
            os.kill(pid, signal.SIGKILL)
        os.close(gate_w)
        os.close(ready_r)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_an_inherited_descriptor_holds_the_link(entry: Entry, end: str) -> None:
    """MPROG-LINK-042: until the process that inherited it ends, in whatever way."""
    with another_process(end=end):
        entry.link.close()
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_process_takes_its_links_with_it(entry: Entry, sched_cls: LoadSchedCls, end: str) -> None:
    """MPROG-LINK-042: but not what it attached directly."""
    linked, direct = sched_cls(), sched_cls()
    kept: list[Link] = []

    def attach_both() -> None:
        kept.append(tcx.link(entry.dev, linked))
        tcx.attach(entry.dev, direct)

    with another_process(attach_both, end=end):
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c, linked, direct)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c, direct)


def test_a_duplicate_holds_the_link(entry: Entry) -> None:
    """MPROG-LINK-042: made by dup, or on its way to another process and never received."""
    copy = entry.link.dup()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        socket.send_fds(ours, [b"+"], [entry.link.fd])
        entry.link.close()
        assert copy.info().prog_id == entry.b.id
        copy.close()
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)
    # A socket's queue is emptied in the background.
    wait_until(
        lambda: tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c), timeout=2, what="B to leave the list"
    )


def test_a_received_descriptor_updates_and_detaches(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-029, -040: what another process does with it holds for all."""
    d = sched_cls()

    def update() -> None:
        entry.link.update(d, old=entry.b)

    with another_process(update):
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, d, entry.c)
        assert entry.link.info().prog_id == d.id
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, d, entry.c)
    with another_process(entry.link.detach):
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)
        assert entry.link.info().ifindex == 0


def exists(prog: int) -> bool:
    try:
        Prog.from_id(prog).close()
    except BpfError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def gone(prog: int) -> Callable[[], bool]:
    return lambda: not exists(prog)


def test_a_program_goes_with_its_last_holder(veth: VethPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-LIFE-008, MPROG-LINK-041, MPROG-ATTACH-018: each of a list, a link, a detached link, a pin and a descriptor
    keeps it, whichever is the last."""
    holders = ["list", "link", "detached link", "pin", "descriptor"]
    for first in range(len(holders)):
        prog = sched_cls()
        number = prog.id
        with ExitStack() as stack:
            tcx.attach(veth.b, prog)
            link = stack.enter_context(tcx.link(veth.b, prog, attach_type=BPF_TCX_EGRESS))
            with veth.ns_a.entered():
                defunct = stack.enter_context(tcx.link(veth.a, prog))
            defunct.detach()
            prog.pin(PIN)
            let_go: dict[str, Callable[[], object]] = {
                "list": lambda: tcx.detach(veth.b),
                "link": link.close,
                "detached link": defunct.close,
                "pin": PIN.unlink,
                "descriptor": prog.close,
            }
            for holder in holders[first:] + holders[:first]:
                assert exists(number), f"the program was gone before its holder {holder} let go"
                let_go[holder]()
            wait_until(gone(number), timeout=2, what=f"the program to go with its {holder}")


def test_an_update_hands_the_reference_over(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-026, -029: the link holds the new program and not the old one; once, however often it is told."""
    d = sched_cls()
    entry.link.update(d)
    entry.link.update(d)
    old, new = entry.b.id, d.id
    entry.b.close()
    wait_until(gone(old), timeout=2, what="the old program to go")
    d.close()
    assert exists(new)
    entry.link.close()
    wait_until(gone(new), timeout=2, what="the new program to go with the link")
