# SPDX-License-Identifier: MIT
"""Pointers to user memory in the storage of tasks: what they may point to, and what programs may do with them."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import E2BIG, EACCES, EEXIST, EFAULT, EINVAL, ENOENT, EOPNOTSUPP
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    jeq,
    label,
    ld_map_fd,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.waiting import wait_until
from scenarios.kptr.pointers import pointer_map
from scenarios.kptr.special import Types
from scenarios.kptr.workshop import Workshop

PAGE = mmap.PAGESIZE
SIZE = 16
"""Of the structure that is pointed to."""

USER = 8
"""Where the pointer is: struct value { u64 before; struct shared *user; struct { struct shared *user; } nested; }."""
NESTED, VALUE_SIZE = 16, 24


@pytest.fixture(autouse=True)
def _pointers_to_user_memory() -> None:
    """KPTR-TAG-004: where they are known, an array may not have them; before 6.13 the tag is no special one."""
    try:
        pointer_map("uptr", "kr_unknown").close()
    except BpfError as error:
        assert error.errno == EOPNOTSUPP
    else:
        pytest.skip("this kernel lacks pointers to user memory in values")


def storage(build: Callable[[Types], tuple[int, int]]) -> Map:
    """A task storage of the value that `build` makes, which returns its type and size. Raises BpfError."""
    b = Types()
    value, size = build(b)
    with b.load() as types:
        return Map.create(
            uapi.BPF_MAP_TYPE_TASK_STORAGE,
            4,
            size,
            0,
            flags=uapi.BPF_F_NO_PREALLOC,
            btf=types,
            btf_key_type_id=b.u32,
            btf_value_type_id=value,
        )


def pointing_to(name: str, size: int) -> Map:
    """A task storage of a pointer to a structure of this name and size. Raises BpfError."""

    def build(b: Types) -> tuple[int, int]:
        return b.struct("value", 8, [("user", b.pointer("uptr", to=b.struct(name, size)), 0)]), 8

    return storage(build)


def shared_value(b: Types) -> tuple[int, int]:
    """The value of these scenarios."""
    target = b.struct("shared", SIZE, [("one", b.u64, 0), ("two", b.u64, 8)])
    pointer = b.pointer("uptr", to=target)
    nested = b.struct("nested", 8, [("user", pointer, 0)])
    members = [("before", b.u64, 0), ("user", pointer, USER), ("nested", nested, NESTED)]
    return b.struct("value", VALUE_SIZE, members), VALUE_SIZE


@dataclass(frozen=True)
class Bench:
    """A task storage, this task's element of it, and two pages of memory."""

    map: Map
    task: int
    memory: mmap.mmap

    @property
    def address(self) -> int:
        """Where the memory is."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def point(self, address: int, nested: int = 0, *, flags: int = 0) -> None:
        """Let this task's value point there. Raises BpfError."""
        value = (7).to_bytes(8, "little") + address.to_bytes(8, "little") + nested.to_bytes(8, "little")
        self.map.update(self.task, value, flags=flags)

    def program(self, *items: Item) -> Prog:
        """A program with r6 = this task's value, which returns 0, also from label "out". Raises BpfError."""
        code = asm(
            call(uapi.BPF_FUNC_get_current_task_btf),
            ld_map_fd(r1, self.map),
            mov(r2, r0),
            mov(r3, 0),
            mov(r4, 0),
            call(uapi.BPF_FUNC_task_storage_get),
            jeq(r0, 0, "out"),
            mov(r6, r0),
            items,
            label("out"),
            mov(r0, 0),
            exit_(),
        )
        return Prog.load(code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE)

    def run(self, *items: Item) -> None:
        """Load such a program and run it once. Raises BpfError."""
        with self.program(*items) as program:
            program.test_run()


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = pinned()
    task = os.pidfd_open(os.getpid())
    memory = mmap.mmap(-1, 2 * PAGE)
    try:
        with storage(shared_value) as map:
            yield Bench(map, task, memory)
    finally:
        os.close(task)
    wait_until(lambda: pinned() == before, timeout=2, what="all pages to be let go")


def pinned() -> int:
    """How many pages the kernel holds for others."""
    # or the counts of this CPU may be up to a second old
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["nr_foll_pin_acquired"]) - int(counts["nr_foll_pin_released"])


def user(at: int = USER) -> Item:
    """r7 = the pointer, not NULL."""
    return [ldxdw(r7, r6, at), jeq(r7, 0, "out")]


def test_pointer_to_user_memory_is_for_tasks() -> None:
    """KPTR-TAG-004: to a structure of the program's own that has a size, up to that of a page."""
    for name, size in (("shared", 1), ("shared", PAGE)):
        pointing_to(name, size).close()
    for name, size, errno in (("shared", 0, EINVAL), ("shared", PAGE + 1, E2BIG), ("task_struct", 8, EINVAL)):
        with refused(errno):
            pointing_to(name, size)
    for map_type in (uapi.BPF_MAP_TYPE_ARRAY, uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_PERCPU_ARRAY):
        with refused(EOPNOTSUPP):
            pointer_map("uptr", "kr_unknown", map_type=map_type)


def test_program_reads_and_writes_the_tasks_own_memory(bench: Bench) -> None:
    """KPTR-TAG-004: what the task sees is what the program wrote; the pointers themselves read as zeros."""
    bench.memory[:SIZE] = (40).to_bytes(8, "little") + bytes(8)
    bench.point(bench.address, bench.address + PAGE)

    bench.run(
        user(),
        ldxdw(r1, r7, 0),
        add(r1, 2),
        stxdw(r7, 8, r1),
        user(NESTED),
        stdw(r7, 0, 9),
    )

    assert int.from_bytes(bench.memory[8:16], "little") == 42
    assert int.from_bytes(bench.memory[PAGE : PAGE + 8], "little") == 9
    assert bench.map.lookup(bench.task) == (7).to_bytes(8, "little") + bytes(16)


def test_value_keeps_its_pages_until_it_goes(bench: Bench) -> None:
    """KPTR-TAG-004: each update takes its own, and lets go of those before it once nobody can look at them any more."""
    before = pinned()
    bench.point(bench.address, bench.address + PAGE)
    assert pinned() == before + 2
    bench.point(bench.address)
    wait_until(lambda: pinned() == before + 1, timeout=2, what="the old value's pages to be let go")
    bench.point(0)
    wait_until(lambda: pinned() == before, timeout=2, what="the page to be let go")
    bench.point(bench.address)
    bench.map.delete(bench.task)
    wait_until(lambda: pinned() == before, timeout=2, what="the deleted value's page to be let go")


def test_address_that_cannot_be_shared_is_refused(bench: Bench) -> None:
    """KPTR-TAG-004: across two pages, of nothing, of the kernel, read-only; nothing stays of a refused update."""
    read_only = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    readable = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    before = pinned()
    for address, errno in (
        (bench.address + PAGE - 8, EOPNOTSUPP),
        (PAGE, EFAULT),
        (0xFFFF888000000000, EFAULT),
        ((1 << 64) - 8, EFAULT),
        (readable, EFAULT),
    ):
        with refused(errno):
            bench.point(address)
        # the first pointer was fine
        with refused(errno):
            bench.point(bench.address, address)
        assert pinned() == before
    with refused(ENOENT):
        bench.point(bench.address, flags=uapi.BPF_EXIST)
    bench.point(bench.address, flags=uapi.BPF_NOEXIST)
    with refused(EEXIST):
        bench.point(bench.address, flags=uapi.BPF_NOEXIST)
    assert pinned() == before + 1
    read_only.close()


REFUSED: dict[str, tuple[int, str, Callable[[], Item]]] = {
    "store": (EACCES, "store to uptr disallowed", lambda: stdw(r6, USER, 0)),
    "store of a register": (EACCES, "store to uptr disallowed", lambda: [mov(r1, 0), stxdw(r6, USER, r1)]),
    "store to the nested one": (EACCES, "store to uptr disallowed", lambda: stdw(r6, NESTED, 0)),
    "store of itself": (EACCES, "store to uptr disallowed", lambda: [user(), stxdw(r6, NESTED, r7)]),
    "read without a test": (
        EACCES,
        "invalid mem access 'mem_or_null'",
        lambda: [ldxdw(r7, r6, USER), ldxdw(r0, r7, 0)],
    ),
    "read past the end": (
        EACCES,
        "invalid access to memory, mem_size=16",
        lambda: [user(), ldxdw(r0, r7, SIZE)],
    ),
    "load of a part": (EACCES, "uptr access misaligned", lambda: ldxdw(r0, r6, USER + 4)),
    "exchange": (
        EINVAL,
        "has no valid kptr",
        lambda: [mov(r1, r6), add(r1, USER), mov(r2, 0), call(uapi.BPF_FUNC_kptr_xchg)],
    ),
}


def test_program_does_not_change_where_it_points_to(bench: Bench) -> None:
    """KPTR-TAG-004: nor goes beyond the structure."""
    bench.program(user(), stdw(r7, SIZE - 8, 1)).close()
    for errno, says, make in REFUSED.values():
        with refused(errno, log=says):
            bench.program(make())


def test_new_object_has_no_pointer_to_user_memory(workshop: Workshop) -> None:
    """KPTR-TAG-004: what programs allocate has a number there, which they may look at but not follow."""
    w, b = workshop, Types()
    value, _ = shared_value(b)
    main = b.func("main", b.func_proto(b.integer("int", 4), [("ctx", b.ptr(b.struct("__sk_buff", 0)))]))
    with b.load() as types:

        def load(*items: Item) -> None:
            """A program with r6 = a new object, which is dropped behind label "done"."""
            code = asm(
                [mov(r1, value), w.kfunc("bpf_obj_new"), jeq(r0, 0, "out"), mov(r6, r0)],
                items,
                [label("done"), mov(r1, r6), w.kfunc("bpf_obj_drop")],
                [label("out"), mov(r0, 0), exit_()],
            )
            Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, btf=types, func_info=[(0, main)]).close()

        for at in (USER, NESTED):
            look = [ldxdw(r7, r6, at), jeq(r7, 0, "done")]
            load(look)
            with refused(EACCES, log="R7 invalid mem access 'scalar'"):
                load(look, stdw(r7, 0, 1))
