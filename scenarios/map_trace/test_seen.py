# SPDX-License-Identifier: MIT
"""What a tracer of a map tells: each change once, with key, value, result, CPU and who made it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source
from harness.guest.bpf.uapi import (
    BPF_EXIST,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_LRU_HASH,
    BPF_MAP_TYPE_LRU_PERCPU_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_PERCPU_HASH,
    BPF_NOEXIST,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from scenarios.map_trace.actors import ACTORS
from scenarios.map_trace.conftest import Change, Trace, changes

NewMap = Callable[..., Map]


@dataclass(frozen=True)
class Type:
    """The functions behind the operations of a map type."""

    map_type: int
    delete: str
    by_program: str
    by_system_call: str

    def update(self, actor: str) -> str:
        return self.by_program if actor == "program" else self.by_system_call


HASH_DELETE, LRU_DELETE, ARRAY_DELETE = (
    "htab_map_delete_elem",
    "htab_lru_map_delete_elem",
    "array_map_delete_elem",
)
TYPES = {
    "HASH": Type(BPF_MAP_TYPE_HASH, HASH_DELETE, "htab_map_update_elem", "htab_map_update_elem"),
    "LRU_HASH": Type(
        BPF_MAP_TYPE_LRU_HASH, LRU_DELETE, "htab_lru_map_update_elem", "htab_lru_map_update_elem"
    ),
    "PERCPU_HASH": Type(
        BPF_MAP_TYPE_PERCPU_HASH, HASH_DELETE, "htab_percpu_map_update_elem", "bpf_percpu_hash_update"
    ),
    "LRU_PERCPU_HASH": Type(
        BPF_MAP_TYPE_LRU_PERCPU_HASH, LRU_DELETE, "htab_lru_percpu_map_update_elem", "bpf_percpu_hash_update"
    ),
    "ARRAY": Type(BPF_MAP_TYPE_ARRAY, ARRAY_DELETE, "array_map_update_elem", "array_map_update_elem"),
    "PERCPU_ARRAY": Type(
        BPF_MAP_TYPE_PERCPU_ARRAY, ARRAY_DELETE, "array_map_update_elem", "bpf_percpu_array_update"
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_each_change_is_seen_once_behind_its_function(new_map: NewMap, trace: Trace, kind: str) -> None:
    """MTRACE-HOOK-001 to -006, -020, -023, MTRACE-SEED-003: with key, value and result, and who made it where."""
    type = TYPES[kind]
    map = new_map(type.map_type)
    tracer = trace(map)
    for name, who in ACTORS.items():
        assert who.update(map, 5, 41) == 0
        refused = who.delete(map, 5)
        assert refused == (errno.EINVAL if "ARRAY" in kind else 0)
        update, delete = tracer.events()
        assert Change.of(update) == Change("update", 5, 41)
        assert Change.of(delete) == Change("delete", 5, error=errno.errorcode[refused] if refused else None)
        assert [update.function, delete.function] == [type.update(name), type.delete]
        assert {(each.source, each.cpu, each.thread) for each in (update, delete)} == {
            (Source(name), 0, threading.get_native_id())
        }


@pytest.mark.parametrize("actor", ACTORS)
def test_a_failed_change_is_seen_with_its_errno(new_map: NewMap, trace: Trace, actor: str) -> None:
    """MTRACE-HOOK-022, MTRACE-SCN-001: so that a tracer can leave it out."""
    map = new_map(max_entries=1)
    tracer, who = trace(map), ACTORS[actor]
    assert who.update(map, 1, 10, BPF_NOEXIST) == 0
    assert who.update(map, 1, 11, BPF_NOEXIST) == errno.EEXIST
    assert who.update(map, 2, 20, BPF_EXIST) == errno.ENOENT
    assert who.update(map, 2, 21) == errno.E2BIG
    assert who.delete(map, 2) == errno.ENOENT
    events = tracer.events()
    assert [Change.of(event) for event in events] == [
        Change("update", 1, 10),
        Change("update", 1, 11, "EEXIST"),
        Change("update", 2, 20, "ENOENT"),
        Change("update", 2, 21, "E2BIG"),
        Change("delete", 2, error="ENOENT"),
    ]
    assert [event.flags for event in events] == [BPF_NOEXIST, BPF_NOEXIST, BPF_EXIST, 0, 0]


def test_changes_of_another_map_of_the_type_are_not_noted(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-SCN-002, MTRACE-SEED-001."""
    traced, other = new_map(), new_map()
    tracer = trace(traced)
    for who in ACTORS.values():
        for map in (other, traced, other):
            who.update(map, map.id, 1)
            who.delete(map, map.id)
    assert changes(tracer) == [Change("update", traced.id, 1), Change("delete", traced.id)] * len(ACTORS)


def test_a_batch_is_seen_one_by_one(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-014, MTRACE-SCN-003."""
    map = new_map()
    tracer = trace(map)
    map.update_batch([(1, 10), (2, 20), (3, 30)])
    map.delete_batch([3, 1])
    events = tracer.events()
    assert [Change.of(event) for event in events] == [
        Change("update", 1, 10),
        Change("update", 2, 20),
        Change("update", 3, 30),
        Change("delete", 3),
        Change("delete", 1),
    ]
    assert {event.source for event in events} == {Source.SYSTEM_CALL}


def test_before_and_after_an_operation_the_same_changes_are_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-SCN-004, MTRACE-HOOK-022, MTRACE-RFC-004: only behind it the result is known."""
    map = new_map(max_entries=2)
    before, after = trace(map, kind=BPF_TRACE_FENTRY), trace(map, kind=BPF_TRACE_FEXIT)
    for who in ACTORS.values():
        for key in range(4):
            who.update(map, key, key + 10)
        for key in range(4):
            who.delete(map, key)
    early, late = before.events(), after.events()
    assert len(early) == len(late) == 16
    assert [(e.operation, e.key, e.value, e.source, e.caller) for e in early] == [
        (e.operation, e.key, e.value, e.source, e.caller) for e in late
    ]
    assert {event.error for event in early} == {None}
    assert [event.error for event in late] == [
        0,
        0,
        errno.E2BIG,
        errno.E2BIG,
        0,
        0,
        errno.ENOENT,
        errno.ENOENT,
    ] * 2


@pytest.mark.parametrize(("key_size", "value_size"), [(1, 1), (3, 5), (64, 3000), (400, 20000)])
def test_keys_and_values_of_any_size_are_told_whole(trace: Trace, key_size: int, value_size: int) -> None:
    """MTRACE-HOOK-023: they are untyped pointers, which the tracer reads as long as the map says."""
    with Map.create(BPF_MAP_TYPE_HASH, key_size, value_size, 4) as map:
        tracer = trace(map)
        key, value = os.urandom(key_size), os.urandom(value_size)
        map.update(key, value)
        map.delete(key)
        update, delete = tracer.events()
    assert (update.key, update.value, delete.key, delete.value) == (key, value, key, None)
