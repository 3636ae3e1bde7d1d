# SPDX-License-Identifier: MIT
"""A tracer that changes maps itself is not entered again, and the kernel counts how often it was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    add,
    asm,
    call,
    exit_,
    jne,
    label,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r10,
    stdw,
    stw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.bpf.uapi import BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH
from scenarios.map_trace.conftest import Migration, misses

NewMap = Callable[..., Map]


@pytest.mark.parametrize(
    ("map_type", "own_writes_missed"),
    [
        pytest.param(BPF_MAP_TYPE_HASH, True, id="HASH"),
        pytest.param(BPF_MAP_TYPE_LRU_HASH, False, id="LRU_HASH"),
    ],
)
def test_a_mirror_misses_just_its_own_writes_into_the_traced_type(
    migration: Callable[..., Migration], map_type: int, own_writes_missed: bool
) -> None:
    """MTRACE-REC-003: more misses than that are lost events."""
    with Map.create(map_type, 8, 8, 4096, name="new_state") as destination:
        moving = migration(destination).mirroring()
        for number in range(10):
            moving.old[number, 3] = number
        for number in range(4):
            del moving.old[number, 3]
        assert dict(moving.new.items()) == moving.expected()
        assert (moving["mirrored_updates"], moving["mirrored_deletes"], moving["failures"]) == (10, 4, 0)
        assert misses(moving.mirror_update) == (10 if own_writes_missed else 0)
        assert misses(moving.mirror_delete) == (4 if own_writes_missed else 0)


@pytest.fixture
def echo() -> Iterator[Callable[[Map, Map, int], Prog]]:
    """Attaches a tracer: on an update of the first map it writes `key` -> 1 into the second."""
    with ExitStack() as stack:

        def attach(traced: Map, target: Map, key: int) -> Prog:
            code = asm(
                mov(r6, r1),
                ldxdw(r1, r6),
                ldxw(r1, r1, btf.vmlinux().offset("bpf_map", "id")),
                jne(r1, traced.id, "out"),
                stw(r10, -8, key),
                stdw(r10, -16, 1),
                ld_map_fd(r1, target),
                mov(r2, r10),
                add(r2, -8),
                mov(r3, r10),
                add(r3, -16),
                mov(r4, uapi.BPF_ANY),
                call(uapi.BPF_FUNC_map_update_elem),
                label("out"),
                mov(r0, 0),
                exit_(),
            )
            prog = stack.enter_context(load_tracing("htab_map_update_elem", code))
            stack.enter_context(attach_tracing(prog))
            return prog

        yield attach


Echo = Callable[[Map, Map, int], Prog]


def test_a_tracer_of_the_map_that_it_changes_does_not_loop(new_map: NewMap, echo: Echo) -> None:
    """MTRACE-REC-001, MTRACE-TEST-003: the RFC refused to attach it; now its own change is made, but not traced."""
    map = new_map()
    prog = echo(map, map, 100)
    map[1] = 1
    assert dict(map.items()) == {1: 1, 100: 1}
    assert misses(prog) == 1


def test_tracers_of_each_others_maps_run_once_each(new_map: NewMap, echo: Echo) -> None:
    """MTRACE-REC-002, MTRACE-TEST-004: the second one's change of the first map starts nothing any more."""
    one, two = new_map(), new_map()
    echo(one, two, 100)
    echo(two, one, 200)
    one[1] = 1
    assert dict(one.items()) == {1: 1, 200: 1}
    assert dict(two.items()) == {100: 1}
