# SPDX-License-Identifier: MIT
"""Elements that are used again, or freed: where the object of a deleted element is by then."""

from __future__ import annotations

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, exit_, jeq, ldxdw, ldxw, mov, r0, r1, r6, r7, stxdw
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import SEEN, VALUE_SIZE
from scenarios.kptr.slots import Slots

ZEROS = bytes(VALUE_SIZE)
KEYS = range(10, 14)


@pytest.mark.parametrize(
    "map_type", [uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_PERCPU_HASH], ids=["hash", "percpu_hash"]
)
def test_deleted_elements_object_comes_back_whole_or_not_at_all(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, map_type: int
) -> None:
    """KPTR-HAZ-006, KPTR-FREE-005, -006, KPTR-LAW-001, -003: under the key that gets the spare element, by the newer
    rule. It is a counted object like any other: taken out there, the end of the map has none left to release.
    """
    slots = make_slots(map_type)
    slots.map.update(0, ZEROS)
    slots.put(7)
    calls = kr_kptr.count("dtor_calls")

    slots.map.delete(0)
    for key in KEYS:
        slots.map.update(key, b"\xff" * VALUE_SIZE)

    back = 0 if updates_release else 7
    assert sorted(slots.peek(key) for key in KEYS) == [0, 0, 0, back]
    assert kr_kptr.count("live") == (0 if updates_release else 1)
    assert sorted(slots.take(key) for key in KEYS) == [0, 0, 0, back]
    assert kr_kptr.count("live") == 0
    slots.close()
    assert kr_kptr.count("dtor_calls") == calls + (1 if updates_release else 0)


def test_memory_that_goes_takes_its_objects_along(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool
) -> None:
    """KPTR-FREE-004, -012, -014: more deleted elements than the allocator keeps in store; the map lives on."""
    count = 300
    slots = make_slots(uapi.BPF_MAP_TYPE_HASH, flags=uapi.BPF_F_NO_PREALLOC, max_entries=count)
    slots.map.update_batch([(key, ZEROS) for key in range(count)])
    for key in range(count):
        slots.put_static(1, key)
    calls = kr_kptr.count("dtor_calls")
    assert kr_kptr.static_refs(1) == count

    slots.map.delete_batch(list(range(count)))

    if updates_release:
        assert kr_kptr.static_refs(1) == 0
    wait_until(lambda: kr_kptr.static_refs(1) < count, timeout=2, what="the allocator to free elements")
    slots.close()
    wait_until(lambda: kr_kptr.static_refs(1) == 0, timeout=2, what="the map to release the others")
    assert kr_kptr.count("dtor_calls") == calls + count


def test_pointer_that_owns_nothing_is_only_cleared(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool
) -> None:
    """KPTR-FREE-018, KPTR-ACC-014: no destructor, no change of the count; by the newer rule it stays as it is."""
    slots = make_slots()

    def see(slots: Slots = slots) -> Item:
        return [slots.acquire("kr_obj_find"), stxdw(r6, SEEN, r7), slots.kfuncs.release()]

    def seen(slots: Slots = slots) -> Item:
        return [ldxdw(r1, r6, SEEN), jeq(r1, 0, "out"), mov(r7, r1), ldxw(r0, r7, slots.id_offset), exit_()]

    slots.run(see, id=2)
    calls = kr_kptr.count("dtor_calls")
    assert slots.run(seen) == 2

    slots.map.update(0, ZEROS)

    assert slots.run(seen) == (0 if updates_release else 2)
    slots.close()
    assert (kr_kptr.count("dtor_calls"), kr_kptr.static_refs(2)) == (calls, 0)
