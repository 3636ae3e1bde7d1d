# SPDX-License-Identifier: MIT
"""When a map lets go of the objects it owns: at its own end, and at updates and deletions before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakePocket
from scenarios.kptr.owning_map import VALUE_SIZE
from scenarios.kptr.pocket import Pocket

ARRAY = uapi.BPF_MAP_TYPE_ARRAY
HASH = uapi.BPF_MAP_TYPE_HASH
LRU_HASH = uapi.BPF_MAP_TYPE_LRU_HASH
PERCPU_ARRAY = uapi.BPF_MAP_TYPE_PERCPU_ARRAY
PERCPU_HASH = uapi.BPF_MAP_TYPE_PERCPU_HASH
ZEROS = bytes(VALUE_SIZE)


@pytest.mark.parametrize(
    "map_type",
    [ARRAY, HASH, LRU_HASH, PERCPU_ARRAY, PERCPU_HASH],
    ids=["array", "hash", "lru_hash", "percpu_array", "percpu_hash"],
)
def test_end_of_map_releases_each_object_exactly_once(
    kr_kptr: KrKptr, make_pocket: MakePocket, map_type: int
) -> None:
    """KPTR-FREE-014, KPTR-FREE-018, KPTR-LAW-001: one destructor call per stored pointer, and none before."""
    pocket = make_pocket(map_type)
    for key in range(3):
        pocket.map.update(key, ZEROS)
        pocket.put(key + 1, key)
    held = kr_kptr.counters()
    assert (held["created"], held["live"], held["dtor_calls"]) == (3, 3, 0)

    pocket.close()

    wait_until(lambda: kr_kptr.count("freed") == 3, timeout=2, what="the objects of the map to be freed")
    left = kr_kptr.counters()
    assert (left["live"], left["dtor_calls"], left["released"]) == (0, 3, 0)


@dataclass(frozen=True)
class Case:
    """One way to write over or remove a value."""

    map_type: int
    act: Callable[[Pocket], object]
    flags: int = 0


def update(pocket: Pocket) -> None:
    pocket.map.update(0, ZEROS, flags=uapi.BPF_EXIST)


def delete(pocket: Pocket) -> None:
    pocket.map.delete(0)


CASES = {
    "array_update": Case(ARRAY, update),
    "array_update_by_program": Case(ARRAY, Pocket.overwrite),
    "percpu_array_update": Case(PERCPU_ARRAY, update),
    "hash_update": Case(HASH, update),
    "hash_update_by_program": Case(HASH, Pocket.overwrite),
    "hash_delete": Case(HASH, delete),
    "hash_delete_by_program": Case(HASH, Pocket.delete),
    "hash_lookup_and_delete": Case(HASH, lambda pocket: pocket.map.lookup_and_delete(0)),
    "hash_batch_delete": Case(HASH, lambda pocket: pocket.map.delete_batch([0])),
    "lru_hash_delete": Case(LRU_HASH, delete),
    "unpreallocated_hash_update": Case(HASH, update, uapi.BPF_F_NO_PREALLOC),
    "unpreallocated_hash_delete": Case(HASH, delete, uapi.BPF_F_NO_PREALLOC),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_written_over_or_removed_value_releases_its_object_once(
    kr_kptr: KrKptr, make_pocket: MakePocket, updates_release: bool, case: Case
) -> None:
    """KPTR-FREE-001 to -013: before the call returns; by the newer rule when the memory is freed, which is
    never before the grace period, and for recycled values only at the map's end.
    """
    pocket = make_pocket(case.map_type, flags=case.flags)
    pocket.map.update(0, ZEROS)
    pocket.put_static(1)
    calls = kr_kptr.count("dtor_calls")
    assert kr_kptr.static_refs(1) == 1

    case.act(pocket)

    assert kr_kptr.static_refs(1) == (0 if updates_release else 1)
    pocket.close()
    wait_until(lambda: kr_kptr.static_refs(1) == 0, timeout=2, what="the map to release its object")
    assert kr_kptr.count("dtor_calls") == calls + 1


def test_refused_deletion_releases_nothing(kr_kptr: KrKptr, make_pocket: MakePocket) -> None:
    """KPTR-FREE-002: an array's elements cannot be deleted, and the attempt leaves the object where it is."""
    pocket = make_pocket(ARRAY)
    pocket.put(5)

    with refused(errno.EINVAL):
        pocket.map.delete(0)
    assert pocket.delete() == -errno.EINVAL

    assert (pocket.peek(), kr_kptr.count("dtor_calls")) == (5, 0)
