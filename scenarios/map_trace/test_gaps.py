# SPDX-License-Identifier: MIT
"""Changes that no tracer of updates and deletes sees. Each documents a limit, and tells when a kernel moves it."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest

from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.map_trace import Source, Tracer
from harness.guest.bpf.map_trace_hooks import Operation
from harness.guest.bpf.uapi import (
    BPF_F_LOCK,
    BPF_F_MMAPABLE,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_LRU_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_PERCPU_HASH,
)
from harness.guest.waiting import wait_until
from scenarios.map_trace.clock import Changes
from scenarios.map_trace.conftest import Change, Trace, changes

NewMap = Callable[..., Map]


def assert_blind(tracer: Tracer, map: Map) -> None:
    """The tracer has seen nothing so far, and sees the map's element 0 written."""
    assert tracer.seen == 0
    map.update(0, bytes(map.shape.value_size))
    assert tracer.seen == 1


IN_PLACE = {
    "a store through a looked-up pointer": lambda programs: programs.run("store"),
    "an atomic addition": lambda programs: programs.run("add"),
    "a store of a for_each call-back": lambda programs: programs.run("for_each"),
    "a store of an iterator program": lambda programs: programs.iterate(programs.plain),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_change_in_place_is_not_seen(programs: Changes, trace: Trace, how: str) -> None:
    """MTRACE-GAP-001, -007, -008, MTRACE-RFC-005, MTRACE-SEED-002."""
    programs.plain[5] = 1
    tracer = trace(programs.plain, tuple(Operation))
    IN_PLACE[how](programs)
    assert programs.plain[5] == 2
    assert_blind(tracer, programs.plain)


def test_a_store_into_a_mapped_array_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-002."""
    array = new_map(BPF_MAP_TYPE_ARRAY, flags=BPF_F_MMAPABLE)
    tracer = trace(array)
    with mmap.mmap(array.fd, mmap.PAGESIZE) as memory:
        memory[0:8] = (7).to_bytes(8, "little")
    assert array[0] == 7
    assert_blind(tracer, array)


def test_a_store_into_a_global_variable_is_not_seen(programs: Changes, trace: Trace) -> None:
    """MTRACE-GAP-003: an array, too."""
    tracer = trace(programs.globals)
    before = programs.globals.lookup(0)
    programs.run("store_global")
    assert programs["global"] == 2
    assert programs.globals.lookup(0) != before
    assert_blind(tracer, programs.globals)


def test_a_timer_that_changes_its_own_value_is_not_seen(programs: Changes, trace: Trace) -> None:
    """MTRACE-GAP-006."""
    tracer = trace(programs.clock)
    programs.run("store_later")
    wait_until(
        lambda: (programs.clock.lookup(0) or b"")[-8:] == (2).to_bytes(8, "little"),
        timeout=1,
        what="the timer's store",
    )
    assert_blind(tracer, programs.clock)


def test_the_end_of_a_map_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-006: its elements go without a delete."""
    map = new_map()
    tracer = trace(map, tuple(Operation))
    map[1] = 1
    map.close()
    wait_until(lambda: tracer.map_id not in Map.ids(), timeout=2, what="the map to be freed")
    assert tracer.seen == 1


def test_taking_elements_out_in_a_batch_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-005, MTRACE-HOOK-013."""
    map = new_map()
    map[1], map[2] = 10, 20
    tracer = trace(map)
    taken, _ = map.lookup_batch(16, delete=True)
    assert len(taken) == 2
    assert not list(map.keys())
    assert_blind(tracer, map)


def test_an_eviction_is_not_seen_as_a_delete(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-004."""
    map = new_map(BPF_MAP_TYPE_LRU_HASH, max_entries=1)
    tracer = trace(map)
    keys = range(1, 6)
    for key in keys:
        map[key] = key
    assert len(list(map.keys())) < len(keys)
    assert changes(tracer) == [Change("update", key, key) for key in keys]


def test_an_update_in_place_under_the_elements_lock_is_seen(programs: Changes, trace: Trace) -> None:
    """MTRACE-GAP-009, upstream prog_tests/map_lock.c: with BPF_F_LOCK, by both; the lock itself is not written."""
    programs.locked.update(5, (99, 1), flags=0)
    tracer = trace(programs.locked)
    programs.locked.update(5, (99, 3), flags=BPF_F_LOCK)
    assert programs.locked.lookup(5, flags=BPF_F_LOCK) == bytes(4) + (3).to_bytes(4, "little")
    programs.run("update_locked")
    assert programs.locked.lookup(5, flags=BPF_F_LOCK) == bytes(4) + (2).to_bytes(4, "little")
    events = tracer.events()
    assert [(event.flags, event.error, (event.value or b"")[4]) for event in events] == [
        (BPF_F_LOCK, 0, 3),
        (BPF_F_LOCK, 0, 2),
    ]
    assert [event.source for event in events] == [Source.SYSTEM_CALL, Source.PROGRAM]


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize(
    ("map_type", "function"),
    [
        pytest.param(BPF_MAP_TYPE_PERCPU_HASH, "bpf_percpu_hash_update", id="PERCPU_HASH"),
        pytest.param(BPF_MAP_TYPE_PERCPU_ARRAY, "bpf_percpu_array_update", id="PERCPU_ARRAY"),
    ],
)
def test_a_system_calls_update_of_all_cpus_is_seen_once_with_all_values(
    new_map: NewMap, trace: Trace, map_type: int, function: str
) -> None:
    """MTRACE-GAP-010, MTRACE-HOOK-003, -006: and the other function, which programs call, is not called."""
    map = new_map(map_type)
    tracer = trace(map)
    values = [cpu + 40 for cpu in range(possible_cpus())]
    map.update(1, list(values))
    (event,) = tracer.events()
    assert event.function == function
    assert event.value == b"".join(value.to_bytes(8, "little") for value in values)
    assert map[1] == values


def test_what_happens_before_the_tracer_is_attached_is_lost_to_it(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-011: a copy first and a tracer second leave a window; the other order leaves none."""
    map = new_map()
    map[1] = 1
    copied = dict(map.items())
    map[2] = 2
    tracer = trace(map)
    map[3] = 3
    known = copied | {change.key: change.value for change in changes(tracer)}
    assert known == {1: 1, 3: 3}
    later = dict(map.items()) | {change.key: change.value for change in changes(tracer)}
    assert later == {1: 1, 2: 2, 3: 3}
