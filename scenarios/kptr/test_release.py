# SPDX-License-Identifier: MIT
"""When a map lets go of the objects it owns: at its own end, and at updates, deletions and evictions before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import VALUE_SIZE
from scenarios.kptr.slots import Slots

ZEROS = bytes(VALUE_SIZE)


class When(Enum):
    """When an act releases the object of the value that it writes over or removes."""

    NOW = "before it returns"
    STAYS = "not at all: the value keeps its object"
    SPARE = "not at all: the object stays in the spare element"
    LATER = "when the memory of the element goes"


def update(slots: Slots, key: int) -> None:
    slots.map.update(key, ZEROS, flags=uapi.BPF_EXIST)


def update_under_lock(slots: Slots, key: int) -> None:
    slots.map.update(key, ZEROS, flags=uapi.BPF_EXIST | uapi.BPF_F_LOCK)


def update_by_batch(slots: Slots, key: int) -> None:
    assert slots.map.update_batch([(key, ZEROS)]) == 1


def update_by_program(slots: Slots, key: int) -> None:
    assert slots.overwrite(key) == 0


def delete(slots: Slots, key: int) -> None:
    slots.map.delete(key)


def delete_by_batch(slots: Slots, key: int) -> None:
    assert slots.map.delete_batch([key]) == 1


def delete_by_program(slots: Slots, key: int) -> None:
    assert slots.delete(key) == 0


def lookup_and_delete(slots: Slots, key: int) -> None:
    assert slots.map.lookup_and_delete(key) is not None


def lookup_and_delete_all(slots: Slots, key: int) -> None:
    elements, _ = slots.map.lookup_batch(16, delete=True)
    assert [found for found, _ in elements] == [key.to_bytes(4, "little")]


Act = Callable[[Slots, int], None]
Rules = tuple[When, When]
"""By the older rule, and by that of "Cancel special fields on map value recycle" (KPTR-PROBE-005)."""

UPDATES: list[Act] = [update, update_by_batch, update_by_program]
DELETIONS: list[Act] = [
    delete,
    delete_by_batch,
    delete_by_program,
    lookup_and_delete,
    lookup_and_delete_all,
]


@dataclass(frozen=True)
class Kind:
    """A map type with flags; for each act on one of its values, when that releases by either rule."""

    map_type: int
    acts: dict[Act, Rules]
    flags: int = 0
    locked: bool = False


def each(acts: list[Act], older: When, newer: When) -> dict[Act, Rules]:
    return dict.fromkeys(acts, (older, newer))


NOW, STAYS, SPARE, LATER = When
NO_PREALLOC, NO_COMMON_LRU = uapi.BPF_F_NO_PREALLOC, uapi.BPF_F_NO_COMMON_LRU
HASH_LIKE = each(UPDATES + DELETIONS, NOW, SPARE)
PERCPU_HASH_LIKE = each(UPDATES, NOW, STAYS) | each(DELETIONS, NOW, SPARE)

KINDS = {
    # KPTR-FREE-001, -013
    "array": Kind(uapi.BPF_MAP_TYPE_ARRAY, each(UPDATES, NOW, STAYS)),
    "array_with_lock": Kind(
        uapi.BPF_MAP_TYPE_ARRAY, each([update, update_under_lock], NOW, STAYS), locked=True
    ),
    # KPTR-FREE-005, -006, -012, -013
    "hash": Kind(uapi.BPF_MAP_TYPE_HASH, HASH_LIKE),
    # KPTR-FREE-007
    "hash_with_lock": Kind(
        uapi.BPF_MAP_TYPE_HASH,
        each([update_under_lock], STAYS, STAYS) | each([update, delete], NOW, SPARE),
        locked=True,
    ),
    # KPTR-FREE-003, -004, -012, -013
    "hash_without_preallocation": Kind(
        uapi.BPF_MAP_TYPE_HASH, each(UPDATES + DELETIONS, NOW, LATER), NO_PREALLOC
    ),
    # KPTR-FREE-008
    "lru_hash": Kind(uapi.BPF_MAP_TYPE_LRU_HASH, HASH_LIKE),
    "lru_hash_without_common_list": Kind(uapi.BPF_MAP_TYPE_LRU_HASH, HASH_LIKE, NO_COMMON_LRU),
    # KPTR-FREE-009
    "percpu_array": Kind(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, each(UPDATES, NOW, STAYS)),
    # KPTR-FREE-010, KPTR-FIX-002, KPTR-HAZ-005; a preallocated element of KPTR-FREE-011 is not freed but kept
    "percpu_hash": Kind(uapi.BPF_MAP_TYPE_PERCPU_HASH, PERCPU_HASH_LIKE),
    "percpu_hash_without_preallocation": Kind(
        uapi.BPF_MAP_TYPE_PERCPU_HASH,
        each(UPDATES, NOW, STAYS) | each(DELETIONS, NOW, LATER),
        NO_PREALLOC,
    ),
    "lru_percpu_hash": Kind(uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH, PERCPU_HASH_LIKE),
    "lru_percpu_hash_without_common_list": Kind(
        uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH, PERCPU_HASH_LIKE, NO_COMMON_LRU
    ),
}


def slots_of(kind: Kind, make_slots: MakeSlots) -> Slots:
    return make_slots(kind.map_type, flags=kind.flags, max_entries=16, locked=kind.locked)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_end_of_map_releases_each_object_exactly_once(
    kr_kptr: KrKptr, make_slots: MakeSlots, kind: Kind
) -> None:
    """KPTR-FREE-014, -018, KPTR-LAW-001: one destructor call per stored pointer, and none before."""
    slots = slots_of(kind, make_slots)
    for key in range(3):
        slots.map.update(key, ZEROS)
        slots.put(key + 1, key)
    held = kr_kptr.counters()
    assert (held["created"], held["live"], held["dtor_calls"]) == (3, 3, 0)

    slots.close()

    wait_until(lambda: kr_kptr.count("freed") == 3, timeout=2, what="the objects of the map to be freed")
    left = kr_kptr.counters()
    assert (left["live"], left["dtor_calls"], left["released"]) == (0, 3, 0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_written_over_or_removed_value_releases_its_object_when_the_rule_says_so(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, kind: Kind
) -> None:
    """KPTR-FREE-001, -003 to -013, KPTR-FIX-002, -004, KPTR-HAZ-005: and by the end of the map once, whatever
    the rule.
    """
    for act, rules in kind.acts.items():
        # in a map of its own: what is in spare elements may come back under any key
        slots = slots_of(kind, make_slots)
        slots.map.update(0, ZEROS)
        slots.put(7)
        calls = kr_kptr.count("dtor_calls")
        when = rules[0] if updates_release else rules[1]

        act(slots, 0)

        counts = kr_kptr.counters()
        assert (counts["live"], counts["dtor_calls"] - calls) == ((0, 1) if when is NOW else (1, 0)), act
        assert slots.peek() == (-1 if act in DELETIONS else 7 if when is STAYS else 0), act
        slots.close()
        wait_until(lambda: kr_kptr.count("live") == 0, timeout=2, what="the map to release its object")
        assert kr_kptr.count("dtor_calls") == calls + 1, act


@pytest.mark.parametrize("kind", ["lru_hash", "lru_hash_without_common_list", "lru_percpu_hash"])
def test_evicted_element_releases_its_object_when_the_rule_says_so(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, kind: str
) -> None:
    """KPTR-FREE-008: an eviction is like a deletion."""
    slots = slots_of(KINDS[kind], make_slots)
    slots.map.update(0, ZEROS)
    slots.put(1, 0)
    calls = kr_kptr.count("dtor_calls")

    def first_is_gone_for(key: int) -> bool:
        slots.map.update(key, ZEROS)
        slots.peek(key)  # as used as the first one, which otherwise would stay
        return slots.map.lookup(0) is None

    assert any(map(first_is_gone_for, range(1, 200)))

    assert kr_kptr.count("dtor_calls") == calls + (1 if updates_release else 0)
    slots.close()
    wait_until(lambda: kr_kptr.count("live") == 0, timeout=2, what="the map to release its object")
    assert kr_kptr.count("dtor_calls") == calls + 1


def test_refused_deletion_releases_nothing(kr_kptr: KrKptr, make_slots: MakeSlots) -> None:
    """KPTR-FREE-002: an array's elements cannot be deleted, and the attempt leaves the object where it is."""
    slots = make_slots()
    slots.put(5)

    with refused(errno.EINVAL):
        slots.map.delete(0)
    assert slots.delete() == -errno.EINVAL

    assert (slots.peek(), kr_kptr.count("dtor_calls")) == (5, 0)
