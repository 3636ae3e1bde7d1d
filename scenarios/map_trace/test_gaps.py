# SPDX-License-Identifier: MIT
"""Changes that no tracer sees. Each documents a limit, and tells when a kernel moves it."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from harness.guest.bpf.map import Map
from harness.guest.bpf.uapi import BPF_F_MMAPABLE, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_LRU_HASH
from scenarios.map_trace.actors import Program
from scenarios.map_trace.conftest import Change, Trace, changes

NewMap = Callable[..., Map]


def test_a_store_through_a_looked_up_pointer_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-001, MTRACE-RFC-005, MTRACE-SEED-002."""
    map = new_map()
    map[5] = 1
    tracer = trace(map)
    assert Program().store(map, 5, 2) == 0
    assert map[5] == 2
    assert changes(tracer) == []


def test_a_store_into_a_mapped_array_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-002."""
    array = new_map(BPF_MAP_TYPE_ARRAY, flags=BPF_F_MMAPABLE)
    tracer = trace(array)
    with mmap.mmap(array.fd, mmap.PAGESIZE) as memory:
        memory[0:8] = (7).to_bytes(8, "little")
    assert array[0] == 7
    assert changes(tracer) == []


def test_taking_elements_out_in_a_batch_is_not_seen(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-005, MTRACE-HOOK-013."""
    map = new_map()
    map[1], map[2] = 10, 20
    tracer = trace(map)
    taken, _ = map.lookup_batch(16, delete=True)
    assert len(taken) == 2
    assert not list(map.keys())
    assert changes(tracer) == []


def test_an_eviction_is_not_seen_as_a_delete(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-GAP-004."""
    map = new_map(BPF_MAP_TYPE_LRU_HASH, max_entries=1)
    tracer = trace(map)
    keys = range(1, 6)
    for key in keys:
        map[key] = key
    assert len(list(map.keys())) < len(keys)
    assert changes(tracer) == [Change("update", key, key) for key in keys]
