# SPDX-License-Identifier: MIT
"""What an fexit tracer on the function behind a map operation sees."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.guest.bpf.map import Map
from harness.guest.bpf.uapi import (
    BPF_EXIST,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_LRU_HASH,
    BPF_MAP_TYPE_LRU_PERCPU_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_PERCPU_HASH,
    BPF_NOEXIST,
)
from scenarios.map_trace.actors import ACTORS
from scenarios.map_trace.conftest import Event, Trace

NewMap = Callable[..., Map]


@dataclass(frozen=True)
class Hooks:
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
HOOKS = {
    "HASH": Hooks(BPF_MAP_TYPE_HASH, HASH_DELETE, "htab_map_update_elem", "htab_map_update_elem"),
    "LRU_HASH": Hooks(
        BPF_MAP_TYPE_LRU_HASH, LRU_DELETE, "htab_lru_map_update_elem", "htab_lru_map_update_elem"
    ),
    "PERCPU_HASH": Hooks(
        BPF_MAP_TYPE_PERCPU_HASH, HASH_DELETE, "htab_percpu_map_update_elem", "bpf_percpu_hash_update"
    ),
    "LRU_PERCPU_HASH": Hooks(
        BPF_MAP_TYPE_LRU_PERCPU_HASH, LRU_DELETE, "htab_lru_percpu_map_update_elem", "bpf_percpu_hash_update"
    ),
    "ARRAY": Hooks(BPF_MAP_TYPE_ARRAY, ARRAY_DELETE, "array_map_update_elem", "array_map_update_elem"),
    "PERCPU_ARRAY": Hooks(
        BPF_MAP_TYPE_PERCPU_ARRAY, ARRAY_DELETE, "array_map_update_elem", "bpf_percpu_array_update"
    ),
}


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("kind", HOOKS)
def test_an_update_and_a_delete_are_seen_behind_their_function(
    new_map: NewMap, trace: Trace, kind: str, actor: str
) -> None:
    """MTRACE-HOOK-001 to -006, -020, -023, MTRACE-TEST-001, -002: with key, value and result, once each."""
    hooks = HOOKS[kind]
    map = new_map(hooks.map_type)
    tracer = trace(map, hooks.update(actor), hooks.delete)
    who = ACTORS[actor]
    assert who.update(map, 5, 41) == 0
    refused = who.delete(map, 5)
    assert tracer.events() == [
        Event("update", 5, 41),
        Event("delete", 5, error=errno.errorcode[refused] if refused else None),
    ]
    assert refused == (errno.EINVAL if "ARRAY" in kind else 0)


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
    assert tracer.events() == [
        Event("update", 1, 10),
        Event("update", 1, 11, "EEXIST"),
        Event("update", 2, 20, "ENOENT"),
        Event("update", 2, 21, "E2BIG"),
        Event("delete", 2, error="ENOENT"),
    ]


def test_changes_of_another_map_of_the_type_are_not_noted(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-SCN-002."""
    traced, other = new_map(), new_map()
    tracer = trace(traced)
    for who in ACTORS.values():
        for map in (other, traced, other):
            who.update(map, map.id, 1)
            who.delete(map, map.id)
    assert tracer.events() == [Event("update", traced.id, 1), Event("delete", traced.id)] * len(ACTORS)


def test_a_batch_is_seen_one_by_one(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-014, MTRACE-SCN-003."""
    map = new_map()
    tracer = trace(map)
    map.update_batch([(1, 10), (2, 20), (3, 30)])
    map.delete_batch([3, 1])
    assert tracer.events() == [
        Event("update", 1, 10),
        Event("update", 2, 20),
        Event("update", 3, 30),
        Event("delete", 3),
        Event("delete", 1),
    ]
