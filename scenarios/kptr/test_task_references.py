# SPDX-License-Identifier: MIT
"""When a program gets a reference to a task, and when there is no task any more that could be referred to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Operand,
    add,
    asm,
    call,
    exit_,
    jeq,
    jne,
    label,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r9,
    r10,
    stw,
    stxdw,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.netns import libc
from harness.guest.waiting import wait_until
from scenarios.kptr.bench import kfunc
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, owning_map

pytestmark = pytest.mark.requires("kfunc:bpf_task_from_pid")

CLONE_NEWPID = 0x20000000
"""include/uapi/linux/sched.h"""


def run(*items: Item) -> int:
    """What r8 is behind this; it starts at zero."""
    with load(*items) as prog:
        return prog.test_run(bytes(64)).retval


def load(*items: Item) -> Prog:
    code = asm(mov(r8, 0), *items, label("out"), mov(r0, r8), exit_())
    return Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)


def pid_of(number: Operand, by: str) -> Item:
    """r8 = the pid of the task that a kfunc finds by a number, or 0."""
    return [
        mov(r1, number),
        kfunc(by),
        jeq(r0, 0, "out"),
        ldxw(r8, r0, btf.vmlinux().offset("task_struct", "pid")),
        mov(r1, r0),
        kfunc("bpf_task_release"),
    ]


def test_task_is_found_by_its_number() -> None:
    """KPTR-TASK-003: also one that is dead but not waited for; a number that nobody has finds nothing."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert run(pid_of(process.pid, "bpf_task_from_pid")) == process.pid
        assert run(pid_of(os.getpid(), "bpf_task_from_pid")) == os.getpid()
        assert [run(pid_of(no, "bpf_task_from_pid")) for no in (-1, 0, 0x7FFFFFFF)] == [0, 0, 0]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert run(pid_of(process.pid, "bpf_task_from_pid")) == process.pid
        dead = process.pid
    assert run(pid_of(dead, "bpf_task_from_pid")) == 0


@pytest.mark.requires("kfunc:bpf_task_from_vpid")
def test_task_is_found_by_its_number_in_the_callers_namespace() -> None:
    """KPTR-TASK-003: of the task that runs the program; by the other number it is found everywhere."""
    assert run(pid_of(os.getpid(), "bpf_task_from_vpid")) == os.getpid()
    assert [run(pid_of(no, "bpf_task_from_vpid")) for no in (-1, 0, 0x7FFFFFFF)] == [0, 0, 0]
    reader, writer = os.pipe()
    with load(pid_of(1, "bpf_task_from_vpid")) as by_vpid, load(pid_of(1, "bpf_task_from_pid")) as by_pid:
        maker = os.fork()
        if maker == 0:
            try:
                assert libc().unshare(CLONE_NEWPID) == 0
                first = os.fork()
                if first == 0:
                    seen = by_vpid.test_run(bytes(64)).retval, by_pid.test_run(bytes(64)).retval
                    os.write(writer, b"%d %d " % seen)
                else:
                    os.waitpid(first, 0)
                    os.write(writer, b"%d" % first)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as answers:
            inside, outside, first = map(int, answers.read().split())
        os.waitpid(maker, 0)
    assert (inside, outside) == (first, 1)


@pytest.fixture
def notes() -> Iterator[Map]:
    """Number 0: the pid to look for; from 1 on: how often a tracer saw it, and how often it got a reference."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 8) as map:
        yield map


def lookup(notes: Map, number: int) -> Item:
    """r0 = the address of a note."""
    return [
        stw(r10, -4, number),
        ld_map_fd(r1, notes),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "out"),
    ]


def count(notes: Map, number: int) -> Item:
    """One more."""
    return [lookup(notes, number), ldxdw(r1, r0), add(r1, 1), stxdw(r0, 0, r1)]


def tracer(notes: Map, event: str, first: int) -> Prog:
    """A program that notes at an event how often it saw the task, and how often it could acquire it."""
    code = asm(
        ldxdw(r6, r1, 0),
        lookup(notes, 0),
        ldxdw(r7, r0),
        ldxw(r1, r6, btf.vmlinux().offset("task_struct", "pid")),
        jne(r1, r7, "out"),
        count(notes, first),
        mov(r1, r6),
        kfunc("bpf_task_acquire"),
        jeq(r0, 0, "out"),
        mov(r1, r0),
        kfunc("bpf_task_release"),
        count(notes, first + 1),
        label("out"),
        mov(r0, 0),
        exit_(),
    )
    return Prog.load(
        code,
        uapi.BPF_PROG_TYPE_TRACING,
        expected_attach_type=uapi.BPF_TRACE_RAW_TP,
        attach_btf_id=btf.vmlinux().id(f"btf_trace_{event}", uapi.BTF_KIND_TYPEDEF),
    )


def test_task_whose_last_user_went_is_not_acquired(notes: Map) -> None:
    """KPTR-TASK-001, -004: while it ends, a reference can be had; where it is freed, none."""
    with (
        tracer(notes, "sched_process_exit", 1) as ending,
        tracer(notes, "sched_process_free", 3) as freed,
        Link.raw_tracepoint(ending),
        Link.raw_tracepoint(freed),
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process,
    ):
        notes.update(0, process.pid)
        process.kill()
        process.wait()
        wait_until(lambda: notes.number(3) == 1, timeout=3, what="the task to be freed")
        assert [notes.number(each) for each in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_stashed_task_can_be_read_and_acquired_though_nobody_finds_it() -> None:
    """KPTR-TASK-004: once its process has been waited for; its name and number are what they were."""
    kernel = btf.vmlinux()
    with owning_map("task_struct") as owner:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            dead = process.pid
            put = [
                value_of(owner),
                mov(r1, dead),
                kfunc("bpf_task_from_pid"),
                jeq(r0, 0, "out"),
                exchange(mov(r2, r0)),
                mov(r8, 1),
                jeq(r0, 0, "out"),
                mov(r1, r0),
                kfunc("bpf_task_release"),
            ]
            assert run(put) == 1
        refs = kernel.offset("task_struct", "rcu_users.refs.counter")
        stashed = [value_of(owner), ldxdw(r7, r6, OWNED), jeq(r7, 0, "out")]
        wait_until(
            lambda: run(stashed, ldxw(r8, r7, refs)) == 1, timeout=3, what="the map to be the last user"
        )

        assert run(pid_of(dead, "bpf_task_from_pid")) == 0
        assert run(stashed, ldxw(r8, r7, kernel.offset("task_struct", "pid"))) == dead
        comm = run(stashed, ldxw(r8, r7, kernel.offset("task_struct", "comm")))
        assert comm.to_bytes(4, "little") == b"cat\0"
        acquired = run(
            stashed,
            mov(r1, r7),
            kfunc("bpf_task_acquire"),
            jeq(r0, 0, "out"),
            mov(r9, r0),
            ldxw(r8, r9, refs),
            mov(r1, r9),
            kfunc("bpf_task_release"),
        )
        assert acquired == 2
        assert run(stashed, ldxw(r8, r7, refs)) == 1
