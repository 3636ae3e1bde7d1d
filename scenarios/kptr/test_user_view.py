# SPDX-License-Identifier: MIT
"""What user space sees of a pointer in a value: zeros, whichever way it looks; and what it writes there is nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, exit_, jeq, ld_map_value, ldxdw, mov, r0, r1, r2, r6, stxdw
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.tracing import load_iterator
from harness.guest.kmsg import Mark
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE
from scenarios.kptr.storage import EACH_TYPE, Storage, some_owner
from scenarios.kptr.storage import KINDS as STORAGES

ONES = b"\x11" * VALUE_SIZE


def masked(value: bytes, *, lock: bool = False) -> bytes:
    """Values, one after the other, with zeros where they have special fields."""
    raw = bytearray(value)
    for start in range(0, len(raw), VALUE_SIZE):
        for at, size in [(SEEN, 8), (OWNED, 8)] + ([(0, 4)] if lock else []):
            raw[start + at : start + at + size] = bytes(size)
    return bytes(raw)


Look = Callable[[Map], bytes | None]


def look_at_batch(map: Map) -> bytes:
    [(_, value)], _ = map.lookup_batch(16)
    return value


def take_batch(map: Map) -> bytes:
    [(_, value)], _ = map.lookup_batch(16, delete=True)
    return value


@dataclass(frozen=True)
class Kind:
    """A map type and the ways to look at its only value, the last of which may remove it."""

    map_type: int
    looks: tuple[Look, ...]
    flags: int = 0
    max_entries: int = 4
    locked: bool = False


def look(map: Map) -> bytes | None:
    return map.lookup(0)


def look_under_lock(map: Map) -> bytes | None:
    return map.lookup(0, flags=uapi.BPF_F_LOCK)


def take(map: Map) -> bytes | None:
    return map.lookup_and_delete(0)


def take_under_lock(map: Map) -> bytes | None:
    return map.lookup_and_delete(0, flags=uapi.BPF_F_LOCK)


BATCHES = (look, look_at_batch, take_batch)

KINDS = {
    "array": Kind(uapi.BPF_MAP_TYPE_ARRAY, (look, look_at_batch), max_entries=1),
    "array_with_lock": Kind(uapi.BPF_MAP_TYPE_ARRAY, (look, look_under_lock), max_entries=1, locked=True),
    "percpu_array": Kind(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, (look, look_at_batch), max_entries=1),
    "hash": Kind(uapi.BPF_MAP_TYPE_HASH, BATCHES),
    "hash_look_up_and_delete": Kind(uapi.BPF_MAP_TYPE_HASH, (look, take)),
    "hash_with_lock": Kind(uapi.BPF_MAP_TYPE_HASH, (look, look_under_lock, take_under_lock), locked=True),
    "hash_without_preallocation": Kind(uapi.BPF_MAP_TYPE_HASH, BATCHES, uapi.BPF_F_NO_PREALLOC),
    "lru_hash": Kind(uapi.BPF_MAP_TYPE_LRU_HASH, BATCHES),
    "percpu_hash": Kind(uapi.BPF_MAP_TYPE_PERCPU_HASH, BATCHES),
    "percpu_hash_look_up_and_delete": Kind(uapi.BPF_MAP_TYPE_PERCPU_HASH, (look, take)),
    "lru_percpu_hash": Kind(uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH, BATCHES),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pointer_is_zeros_for_every_look(kr_kptr: KrKptr, make_slots: MakeSlots, kind: Kind) -> None:
    """KPTR-USER-001 to -003, KPTR-LAW-004: before and after an object is there; the bytes around it are data."""
    slots = make_slots(kind.map_type, flags=kind.flags, max_entries=kind.max_entries, locked=kind.locked)
    slots.map.update(0, ONES)
    assert slots.peek() == 0
    empty = slots.map.lookup(0) or b""
    slots.put(7)

    shown = [each(slots.map) for each in kind.looks]

    assert shown == [empty] * len(kind.looks)
    assert empty == masked(ONES * (len(empty) // VALUE_SIZE), lock=kind.locked)
    if kind.looks[-1] in (look, look_at_batch):
        assert (slots.peek(), kr_kptr.count("live")) == (7, 1)


@pytest.mark.requires("storage_kptr")
@pytest.mark.parametrize("kind", EACH_TYPE)
def test_pointer_in_local_storage_is_zeros(kr_kptr: KrKptr, kind: str, tmp_path: Path) -> None:
    """KPTR-USER-001, -002, KPTR-LAW-004."""
    with Storage(STORAGES[kind]) as storage, some_owner(kind, tmp_path) as owner:
        storage.map.update(owner, ONES)
        storage.put(owner, 1)

        assert (storage.map.lookup(owner), kr_kptr.static_refs(1)) == (masked(ONES), 1)


@pytest.fixture
def notes() -> Map:
    return Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1)


@pytest.mark.parametrize(
    ("map_type", "shown"),
    [
        pytest.param(uapi.BPF_MAP_TYPE_ARRAY, True, id="array"),
        pytest.param(uapi.BPF_MAP_TYPE_HASH, True, id="hash"),
        pytest.param(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, False, id="percpu_array"),
        pytest.param(uapi.BPF_MAP_TYPE_PERCPU_HASH, False, id="percpu_hash"),
    ],
)
def test_only_iterators_over_plain_maps_see_the_pointer(
    make_slots: MakeSlots, notes: Map, map_type: int, shown: bool
) -> None:
    """KPTR-USER-004: of per-CPU values they get a copy, made as for user space. Text never tells the address,
    unless the kernel was told to show all addresses, as by slub_debug (mm/slub.c).
    """
    slots = make_slots(map_type, max_entries=1)
    slots.map.update(0, ONES)
    slots.put(7)
    code = asm(
        # struct bpf_iter__bpf_map_elem { meta; map; key; value; }
        ldxdw(r6, r1, 24),
        jeq(r6, 0, 4),
        ldxdw(r2, r6, OWNED),
        ld_map_value(r1, notes),
        stxdw(r1, 0, r2),
        mov(r0, 0),
        exit_(),
    )
    with load_iterator("bpf_map_elem", code) as iterator, Link.iterator(iterator, map=slots.map) as link:
        link.read_iterator()
    address = notes.number(0)
    pin = Path(f"/sys/fs/bpf/kr_view_{os.getpid()}")
    slots.map.pin(pin)
    try:
        text = pin.read_text()
    finally:
        pin.unlink()

    assert bool(address) == shown
    with Mark.oldest() as log:
        plain = b"This system shows unhashed kernel memory addresses" in log.raw()
    assert not address or (f"{address:x}" in text) == plain
    notes.close()
