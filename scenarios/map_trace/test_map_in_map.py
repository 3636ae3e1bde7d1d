# SPDX-License-Identifier: MIT
"""An inner map that is replaced while programs use it lives until the last of them is done."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import pairwise
from threading import Thread

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    add,
    asm,
    call,
    exit_,
    jeq,
    jlt,
    jne,
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
    r8,
    r10,
    stw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import ENOTSUPP, refused
from harness.guest.waiting import wait_until
from scenarios.map_trace.actors import SMALLEST_PACKET

NewMap = Callable[..., Map]
OUTER = {
    "ARRAY_OF_MAPS": (uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 0),
    "HASH_OF_MAPS": (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, 0),
    "HASH_OF_MAPS without preallocation": (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, uapi.BPF_F_NO_PREALLOC),
}


WRITES = 500
NOTHING, TOO_MUCH = 99, 98


def look_up(outer: Map, key: int) -> Item:
    """r0 is the inner map at `key`, or 0."""
    return (
        stw(r10, -4, key),
        *ld_map_fd(r1, outer),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
    )


def worker(outer: Map) -> Code:
    """Code that returns element 0 of the inner map 0, having written that back many times meanwhile."""
    return asm(
        look_up(outer, 1),
        mov(r6, r0),
        mov(r0, TOO_MUCH),
        jne(r6, 0, "out"),
        look_up(outer, 0),
        mov(r6, r0),
        mov(r0, NOTHING),
        jeq(r6, 0, "out"),
        mov(r1, r6),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        mov(r8, NOTHING),
        jeq(r0, 0, "done"),
        ldxdw(r8, r0),
        stxdw(r10, -16, r8),
        mov(r7, 0),
        label("again"),
        mov(r1, r6),
        mov(r2, r10),
        add(r2, -4),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, uapi.BPF_ANY),
        call(uapi.BPF_FUNC_map_update_elem),
        add(r7, 1),
        jlt(r7, WRITES, "again"),
        label("done"),
        mov(r0, r8),
        label("out"),
        exit_(),
    )


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize("sleepable", [False, True], ids=["", "sleepable"])
@pytest.mark.parametrize("kind", OUTER)
def test_a_replaced_inner_map_goes_when_nobody_works_on_it_any_more(
    new_map: NewMap, kind: str, sleepable: bool
) -> None:
    """KPTR-MAP-026, MTRACE-HOOK-021, upstream prog_tests/map_in_map.c: acc_map_in_array, acc_map_in_htab, and their
    sleepable forms.
    """
    map_type, flags = OUTER[kind]
    inner = [Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) for _ in range(4)]
    for number, map in enumerate(inner):
        map[0] = number
    replaced = {map.id for map in inner[:3]}
    outer = new_map(map_type, 2, value_size=4, inner_map=inner[0], flags=flags)
    outer[0] = inner[0].fd
    seen: list[int] = []
    on = True
    prog_type = uapi.BPF_PROG_TYPE_SYSCALL if sleepable else uapi.BPF_PROG_TYPE_SCHED_CLS
    with Prog.load(worker(outer), prog_type, flags=uapi.BPF_F_SLEEPABLE if sleepable else 0) as prog:

        def work() -> None:
            while on:
                seen.append(prog.test_run(b"" if sleepable else SMALLEST_PACKET).retval)

        def run_on() -> None:
            count = len(seen) + 3
            wait_until(lambda: len(seen) >= count, timeout=1, what="the program to run on")

        thread = Thread(target=work)
        thread.start()
        try:
            for old, new in pairwise(inner):
                run_on()
                outer[0] = new.fd
                old.close()
            run_on()
        finally:
            on = False
            thread.join()
    assert set(seen) <= {0, 1, 2, 3}
    assert seen == sorted(seen)
    assert seen[-1] == 3
    wait_until(lambda: not replaced & set(Map.ids()), timeout=2, what="the replaced maps to be freed")
    assert inner[3].id in Map.ids()
    inner[3].close()


def delete(outer: Map, inner: list[Map]) -> None:
    outer.update(1, inner[0].fd, flags=uapi.BPF_NOEXIST)
    del outer[1]


def overwrite(outer: Map, inner: list[Map]) -> None:
    outer.update(1, inner[0].fd, flags=uapi.BPF_NOEXIST)
    with refused(errno.EEXIST):
        outer.update(1, inner[1].fd, flags=uapi.BPF_NOEXIST)
    outer.update(1, inner[1].fd, flags=uapi.BPF_EXIST)
    del outer[1]


def take(outer: Map, inner: list[Map]) -> None:
    outer[1] = inner[0].fd
    with refused(ENOTSUPP):
        outer.lookup_and_delete(1)
    assert outer[1] == inner[0].id
    del outer[1]


def take_all(outer: Map, inner: list[Map]) -> None:
    outer[1], outer[2] = inner[0].fd, inner[1].fd
    taken, _ = outer.lookup_batch(2, delete=True)
    assert {int.from_bytes(value, "little") for _, value in taken} == {map.id for map in inner}


@pytest.mark.parametrize("act", [delete, overwrite, take, take_all])
@pytest.mark.parametrize("kind", [kind for kind in OUTER if kind != "ARRAY_OF_MAPS"])
def test_an_inner_map_goes_with_its_element(
    new_map: NewMap, kind: str, act: Callable[[Map, list[Map]], None]
) -> None:
    """KPTR-MAP-026, MTRACE-HOOK-009, upstream prog_tests/map_in_map.c: update_map_in_htab, update_map_in_alloc_htab:
    deleted, overwritten or taken out in a batch; a single one can't be taken out.
    """
    map_type, flags = OUTER[kind]
    inner = [Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) for _ in range(2)]
    outer = new_map(map_type, 2, value_size=4, inner_map=inner[0], flags=flags)
    act(outer, inner)
    assert not list(outer.keys())
    ids = {map.id for map in inner}
    assert ids <= set(Map.ids())
    for map in inner:
        map.close()
    wait_until(lambda: not ids & set(Map.ids()), timeout=2, what="the inner maps to be freed")
