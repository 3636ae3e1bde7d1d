# SPDX-License-Identifier: MIT
"""Tries, queues, stacks and maps of maps, and elements that are taken out while they are looked up."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, add, asm, call, exit_, ld_map_fd, mov, r1, r2, r3, r10, stdw
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source
from harness.guest.bpf.map_trace_hooks import Hook, Operation
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from scenarios.map_trace.actors import ACTORS, SMALLEST_PACKET
from scenarios.map_trace.conftest import Change, Trace, changes

NewMap = Callable[..., Map]
EVERYTHING = tuple(Operation)


@pytest.mark.parametrize("actor", ACTORS)
def test_a_tries_changes_are_seen(new_map: NewMap, trace: Trace, actor: str) -> None:
    """MTRACE-HOOK-007: with flags and errno."""
    map = new_map(uapi.BPF_MAP_TYPE_LPM_TRIE, flags=uapi.BPF_F_NO_PREALLOC, key_size=8)
    tracer, who = trace(map), ACTORS[actor]
    shortest = 0  # the length of the prefix, in bits
    assert who.update(map, shortest, 1) == 0
    assert who.update(map, shortest, 2, uapi.BPF_NOEXIST) == errno.EEXIST
    assert who.update(map, 33, 3) == errno.EINVAL
    assert who.delete(map, shortest) == 0
    assert who.delete(map, shortest) == errno.ENOENT
    events = tracer.events()
    assert [Change.of(event) for event in events] == [
        Change("update", shortest, 1),
        Change("update", shortest, 2, "EEXIST"),
        Change("update", 33, 3, "EINVAL"),
        Change("delete", shortest),
        Change("delete", shortest, error="ENOENT"),
    ]
    assert {event.source for event in events} == {Source(actor)}


def run(*items: Item) -> int:
    """What a program made of these instructions returns."""
    with Prog.load(asm(*items, exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS) as prog:
        return ctypes.c_int32(prog.test_run(SMALLEST_PACKET).retval).value


def on_queue(map: Map, helper: int, *, value: int = 0, flags: int = 0) -> int:
    """Call a queue's helper with a value on the stack."""
    return run(
        stdw(r10, -8, value), ld_map_fd(r1, map), mov(r2, r10), add(r2, -8), mov(r3, flags), call(helper)
    )


@pytest.mark.parametrize(
    ("map_type", "order"),
    [
        pytest.param(uapi.BPF_MAP_TYPE_QUEUE, [1, 2], id="QUEUE"),
        pytest.param(uapi.BPF_MAP_TYPE_STACK, [2, 1], id="STACK"),
    ],
)
def test_pushes_and_pops_are_seen_with_their_values(
    new_map: NewMap, trace: Trace, map_type: int, order: list[int]
) -> None:
    """MTRACE-HOOK-008: a peek is no change; a push into a full one shows its errno."""
    map = new_map(map_type, 2, key_size=0)
    tracer = trace(map)
    map.update(None, 1)
    assert on_queue(map, uapi.BPF_FUNC_map_push_elem, value=2) == 0
    with refused(errno.E2BIG):
        map.update(None, 3)
    assert on_queue(map, uapi.BPF_FUNC_map_push_elem, value=4) == -errno.E2BIG
    assert on_queue(map, uapi.BPF_FUNC_map_peek_elem) == 0
    assert map.lookup_and_delete() == order[0].to_bytes(8, "little")
    assert on_queue(map, uapi.BPF_FUNC_map_pop_elem) == 0
    assert on_queue(map, uapi.BPF_FUNC_map_pop_elem) == -errno.ENOENT
    events = tracer.events()
    assert [Change.of(event) for event in events][:-1] == [
        Change("push", None, 1),
        Change("push", None, 2),
        Change("push", None, 3, "E2BIG"),
        Change("push", None, 4, "E2BIG"),
        Change("pop", None, order[0]),
        Change("pop", None, order[1]),
    ]
    assert (events[-1].operation, events[-1].error) == (Operation.POP, errno.ENOENT)
    call, program = Source.SYSTEM_CALL, Source.PROGRAM
    assert [event.source for event in events] == [call, program, call, program, call, program, program]


@pytest.mark.parametrize(
    ("map_type", "update", "delete"),
    [
        (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, "bpf_fd_htab_map_update_elem", "htab_map_delete_elem"),
        (uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, "bpf_fd_array_map_update_elem", "fd_array_map_delete_elem"),
    ],
    ids=["HASH_OF_MAPS", "ARRAY_OF_MAPS"],
)
def test_an_inner_maps_replacement_is_seen_with_its_descriptor(
    new_map: NewMap, trace: Trace, map_type: int, update: str, delete: str
) -> None:
    """MTRACE-HOOK-009, MTRACE-HOOK-021: what happens inside of the inner map is no change of the outer one."""
    inner = new_map()
    outer = new_map(map_type, 4, value_size=4, inner_map=inner)
    tracer = trace(outer)
    outer[2] = inner.fd
    inner[1] = 1
    del outer[2]
    events = tracer.events()
    assert [Change.of(event) for event in events] == [Change("update", 2, inner.fd), Change("delete", 2)]
    assert [event.function for event in events] == [update, delete]
    assert {event.source for event in events} == {Source.SYSTEM_CALL}


HASHES = {
    "HASH": uapi.BPF_MAP_TYPE_HASH,
    "LRU_HASH": uapi.BPF_MAP_TYPE_LRU_HASH,
    "PERCPU_HASH": uapi.BPF_MAP_TYPE_PERCPU_HASH,
    "LRU_PERCPU_HASH": uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH,
}


@pytest.mark.parametrize("kind", HASHES)
def test_taking_an_element_out_is_seen_behind_a_function_of_its_own_only(
    new_map: NewMap, trace: Trace, kind: str
) -> None:
    """MTRACE-HOOK-012, -013, MTRACE-GAP-005: with its value; a batch is one call, which names no element."""
    map = new_map(HASHES[kind])
    for key in range(5):
        map[key] = key + 10
    usual, taken = trace(map), trace(map, (Operation.TAKE, Operation.TAKE_BATCH))
    shared = trace(map, hooks=[Hook(Operation.TAKE, "__htab_map_lookup_and_delete_elem", value="value")])
    batches = trace(map, hooks=[Hook(Operation.TAKE_BATCH, "__htab_map_lookup_and_delete_batch", key=None)])
    found = map.lookup_and_delete(3)
    assert found is not None
    assert found[:8] == (13).to_bytes(8, "little")
    assert map.lookup_and_delete(3) is None
    elements, _ = map.lookup_batch(16, delete=True)
    assert len(elements) == 4
    assert not list(map.keys())
    one, none, batch = taken.events()
    assert Change.of(one) == Change("look up and delete", 3, 13)
    assert (none.operation, none.number, none.error) == (Operation.TAKE, 3, errno.ENOENT)
    assert (batch.operation, batch.key, batch.value) == (Operation.TAKE_BATCH, None, None)
    assert {event.source for event in (one, none, batch)} == {Source.SYSTEM_CALL}
    assert (usual.seen, shared.seen, batches.seen) == (0, 2, 1)
    assert changes(usual) == []


def test_evictions_are_seen_behind_the_lrus_call_back(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-004, MTRACE-HOOK-002: which keys have gone; nobody deleted them."""
    for kind in ("LRU_HASH", "LRU_PERCPU_HASH"):
        map = new_map(HASHES[kind], max_entries=1)
        usual, evicted = trace(map, capacity=1024), trace(map, [Operation.EVICT], capacity=1024)
        count = 3 * 128  # more than an LRU of any make keeps back per CPU
        for key in range(count):
            map[key] = key
        left = set(map.keys())
        gone = [event for event in evicted.events() if event.error == 0]
        keys = {key.to_bytes(4, "little") for key in range(count)}
        assert sorted(event.key or b"" for event in gone) == sorted(keys - left)
        assert {(event.operation, event.source) for event in gone} == {(Operation.EVICT, Source.KERNEL)}
        assert {event.operation for event in usual.events()} == {Operation.UPDATE}
