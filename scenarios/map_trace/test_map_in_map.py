# SPDX-License-Identifier: MIT
"""An inner map that is replaced while programs use it lives until the last of them is done."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from threading import Thread

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
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
    r10,
    stw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.waiting import wait_until
from scenarios.map_trace.actors import SMALLEST_PACKET

NewMap = Callable[..., Map]
OUTER = {
    "ARRAY_OF_MAPS": (uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 0),
    "HASH_OF_MAPS": (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, 0),
    "HASH_OF_MAPS without preallocation": (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, uapi.BPF_F_NO_PREALLOC),
}


def reader(outer: Map) -> Code:
    """Code that returns element 0 of the inner map 0, or 99."""
    return asm(
        stw(r10, -4, 0),
        ld_map_fd(r1, outer),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "none"),
        mov(r1, r0),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "none"),
        ldxdw(r0, r0),
        exit_(),
        label("none"),
        mov(r0, 99),
        exit_(),
    )


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize("sleepable", [False, True], ids=["", "sleepable"])
@pytest.mark.parametrize("kind", OUTER)
def test_a_replaced_inner_map_goes_when_nobody_reads_it_any_more(
    new_map: NewMap, kind: str, sleepable: bool
) -> None:
    """KPTR-MAP-026, MTRACE-HOOK-021, upstream prog_tests/map_in_map.c: acc_map_in_array, acc_map_in_htab, their
    sleepable forms, update_map_in_htab, update_map_in_alloc_htab.
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
    with Prog.load(reader(outer), prog_type, flags=uapi.BPF_F_SLEEPABLE if sleepable else 0) as prog:

        def read() -> None:
            while on:
                seen.append(prog.test_run(b"" if sleepable else SMALLEST_PACKET).retval)

        def run_on() -> None:
            count = len(seen) + 3
            wait_until(lambda: len(seen) >= count, timeout=1, what="the program to run on")

        thread = Thread(target=read)
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
