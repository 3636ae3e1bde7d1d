# SPDX-License-Identifier: MIT
"""A program on another CPU still has a value, while user space deletes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    call,
    exit_,
    jeq,
    ld_func,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import OWNED, VALUE_SIZE, owning_map
from scenarios.kptr.workshop import Workshop

pytestmark = pytest.mark.vm(cpus=2)
ZEROS = bytes(VALUE_SIZE)
ENTERED, LEAVE = 0, 8
LONG = 1 << 23  # the most rounds of one bpf_loop, about half a second

HASH, PERCPU_HASH = uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_PERCPU_HASH


KINDS = {
    "hash": (HASH, 0),
    "hash_without_preallocation": (HASH, uapi.BPF_F_NO_PREALLOC),
    "percpu_hash_without_preallocation": (PERCPU_HASH, uapi.BPF_F_NO_PREALLOC),
}


def late_put(workshop: Workshop, map: Map, notes: Map) -> Prog:
    """Look the value of key 0 up, wait until user space says so, and put a new object there."""
    flags = ld_map_value(r1, notes)
    wait: Item = [mov(r1, LONG), ld_func(r2, "part"), mov(r3, 0), mov(r4, 0), call(uapi.BPF_FUNC_loop)]
    return workshop.load(
        workshop.value(map),
        flags,
        stdw(r1, ENTERED, 1),
        [wait] * 6,
        mov(r1, 7),
        workshop.ours("kr_obj_new"),
        jeq(r0, 0, "out"),
        mov(r2, r0),
        mov(r1, r6),
        add(r1, OWNED),
        call(uapi.BPF_FUNC_kptr_xchg),
        jeq(r0, 0, "out"),
        mov(r1, r0),
        workshop.ours("kr_obj_release"),
        parts={"part": [call(uapi.BPF_FUNC_ktime_get_ns), flags, ldxdw(r0, r1, LEAVE), and_(r0, 1), exit_()]},
    )


@pytest.mark.parametrize(("map_type", "flags"), KINDS.values(), ids=KINDS)
def test_value_in_use_takes_an_object_and_loses_none(
    kr_kptr: KrKptr, workshop: Workshop, map_type: int, flags: int
) -> None:
    """KPTR-HAZ-004, KPTR-FREE-014, -015, KPTR-FIX-003: it is released once when the memory goes, which
    waits for the program.
    """
    before = kr_kptr.users()
    first, *_, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    with ExitStack() as stack:
        notes = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1))
        map = stack.enter_context(owning_map("kr_obj", map_type, flags=flags))
        map.update(0, ZEROS)
        prog = stack.enter_context(late_put(workshop, map, notes))
        pool = stack.enter_context(ThreadPoolExecutor(1))

        done = pool.submit(on_cpu, last, lambda: prog.test_run(bytes(64)))
        wait_until(lambda: any(notes.lookup(0) or b""), timeout=5, what="the program to have its value")
        map.delete(0)
        assert not done.done()
        notes.update(0, (1).to_bytes(8, "little") * 2)
        done.result()

        counts = kr_kptr.counters()
        assert (counts["created"], counts["released"]) == (1, 0)
    # while anything of the map is left, it holds the module with the destructor
    wait_until(lambda: kr_kptr.users() == before, timeout=2, what="map and program to be freed")
    assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (0, 1)


def on_cpu(cpu: int, act: Callable[[], object]) -> None:
    os.sched_setaffinity(0, {cpu})
    act()
