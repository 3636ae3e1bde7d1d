# SPDX-License-Identifier: MIT
"""Where locks and the roots beside them may stand: in values of several kinds of maps, and in objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.guest.bpf.asm import (
    Item,
    Reg,
    ld_map_value,
    mov,
    r1,
    r6,
    r7,
)
from harness.guest.bpf.map import Map
from scenarios.kptr.kfuncs import value_in
from scenarios.kptr.workshop import Home, Workshop


@dataclass(frozen=True)
class Place:
    """Where a lock and roots may stand: how the address of the first or second one comes into a register."""

    address: Callable[[Workshop, Maps, Reg, int], Item]
    allocated: bool = False


@dataclass(frozen=True)
class Maps:
    """Two maps whose only value programs address directly, one whose values they look up, and one of maps."""

    only: tuple[Map, Map]
    values: Map
    outer: Map


def inner_value(w: Workshop, maps: Maps, into: Reg, nth: int) -> Item:
    """The value of the inner map of this number."""
    return [w.value(maps.outer, nth, into), value_in(mov(r1, into), 0, into)]


PLACES = {
    "only_value": Place(lambda w, maps, into, nth: ld_map_value(into, maps.only[nth])),
    "value": Place(lambda w, maps, into, nth: w.value(maps.values, nth, into)),
    "inner_value": Place(inner_value),
    "object": Place(
        lambda w, maps, into, nth: w.new(w.t.basket, into, owned=[Reg(r6 + i) for i in range(nth)]),
        allocated=True,
    ),
}


def home(w: Workshop, place: Place, base: Reg) -> Home:
    """The structure that is at this place, when its address is in the register."""
    return Home(base, w.t.basket if place.allocated else w.t.store)


def both(w: Workshop, maps: Maps, root: Place, lock: Place) -> Item:
    """r6 = the place of a root, r7 = the other place of a lock."""
    if root.allocated and lock.allocated:
        return [root.address(w, maps, r6, 0), lock.address(w, maps, r7, 1)]
    # a look-up that fails leaves at once, when nothing is owned yet
    first = [root.address(w, maps, r6, 0), lock.address(w, maps, r7, 0 if lock.allocated else 1)]
    return first[::-1] if root.allocated else first
