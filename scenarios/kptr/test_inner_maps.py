# SPDX-License-Identifier: MIT
"""Objects in maps that lie in maps: reached through the outer map, released when the inner one goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    exit_,
    jne,
    mov,
    r0,
    r1,
    r2,
    r6,
    r10,
    stw,
)
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import VALUE_SIZE, owning_map
from scenarios.kptr.slots import KEY, Slots

ZEROS = bytes(VALUE_SIZE)


class SlotsInside(Slots):
    """Slots of whichever map lies in the outer map; its `map` is the outer one."""

    def value_of_key(self) -> Item:
        """r6 = the value of key 0 in the inner map that has the run's key; without one, the program returns -1."""
        return [
            super().value_of_key(),
            mov(r1, r6),
            stw(r10, KEY, 0),
            mov(r2, r10),
            add(r2, KEY),
            call(uapi.BPF_FUNC_map_lookup_elem),
            jne(r0, 0, 2),
            mov(r0, -1),
            exit_(),
            mov(r6, r0),
        ]


@dataclass(frozen=True)
class Kind:
    """A type of inner maps."""

    map_type: int
    flags: int = 0

    def make(self) -> Map:
        """One of them, with a value for key 0. Raises BpfError."""
        map = owning_map("kr_obj", self.map_type, flags=self.flags)
        map.update(0, ZEROS)
        return map


OUTER = {"array_of_maps": uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, "hash_of_maps": uapi.BPF_MAP_TYPE_HASH_OF_MAPS}
INNER = {
    "array": Kind(uapi.BPF_MAP_TYPE_ARRAY),
    "hash": Kind(uapi.BPF_MAP_TYPE_HASH),
    "hash_without_preallocation": Kind(uapi.BPF_MAP_TYPE_HASH, uapi.BPF_F_NO_PREALLOC),
    "lru_hash": Kind(uapi.BPF_MAP_TYPE_LRU_HASH),
}


@pytest.fixture(params=list(INNER.values()), ids=list(INNER))
def inner(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture(params=list(OUTER.values()), ids=list(OUTER))
def outer(request: pytest.FixtureRequest, kr_kptr: KrKptr, inner: Kind) -> Iterator[SlotsInside]:
    with inner.make() as template:
        map = Map.create(request.param, 4, 4, 2, inner_map=template)
    with SlotsInside(map) as slots:
        yield slots


def test_object_goes_with_the_inner_map(kr_kptr: KrKptr, outer: SlotsInside, inner: Kind) -> None:
    """KPTR-FREE-014, KPTR-MAP-026, KPTR-LAW-001, -003: when neither a descriptor nor an outer map has it any more.

    One inner map is deleted from the outer one, one is replaced there, and one goes with it.
    """
    calls = kr_kptr.count("dtor_calls")

    def released(count: int, what: str) -> None:
        wait_until(lambda: kr_kptr.count("dtor_calls") == calls + count, timeout=2, what=what)
        assert kr_kptr.count("live") == kr_kptr.count("created") - count

    with inner.make() as first, inner.make() as second:
        outer.map.update(0, first.fd)
        assert (outer.put(11), outer.peek()) == (0, 11)
        outer.map.update(0, second.fd)
        assert (outer.put(21), outer.peek()) == (0, 21)
        outer.map.update(1, first.fd)
    assert (outer.peek(0), outer.peek(1), kr_kptr.count("live")) == (21, 11, 2)

    outer.map.delete(1)
    released(1, "the deleted inner map to go")
    assert (outer.peek(0), outer.peek(1)) == (21, -1)
    with inner.make() as third:
        outer.map.update(0, third.fd)
        released(2, "the replaced inner map to go")
        assert (outer.put(31), outer.peek()) == (0, 31)
    assert outer.peek() == 31
    outer.close()
    released(3, "the inner map to go with the outer one")


def test_values_of_inner_maps_release_like_others(
    kr_kptr: KrKptr, outer: SlotsInside, inner: Kind, updates_release: bool
) -> None:
    """KPTR-FREE-001, -003, -005, -008: written over by user space, which has a descriptor of the inner map."""
    with inner.make() as map:
        outer.map.update(0, map.fd)
        outer.put(5)
        calls = kr_kptr.count("dtor_calls")

        map.update(0, ZEROS)

        assert kr_kptr.count("dtor_calls") == calls + (1 if updates_release else 0)
        keeps = inner.map_type == uapi.BPF_MAP_TYPE_ARRAY and not updates_release
        assert outer.peek() == (5 if keeps else 0)
