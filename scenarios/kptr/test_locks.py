# SPDX-License-Identifier: MIT
"""A root is touched only under the lock that stands beside it, wherever the two are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, Reg, add, ldxdw, mov, r0, r2, r6, r7, r8, r10, stxdw
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from scenarios.kptr.lock_places import PLACES, Maps, Place, both, home, inner_value
from scenarios.kptr.workshop import Home, Program, Refusal, Workshop, assert_accepted, assert_refused

pytestmark = [pytest.mark.requires("local_kptr")]


@pytest.fixture
def maps(workshop: Workshop) -> Iterator[Maps]:
    types = workshop.t
    with (
        types.map(max_entries=1) as a,
        types.map(max_entries=1) as b,
        types.map() as values,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2, inner_map=a) as outer,
    ):
        outer.update(0, a.fd)
        outer.update(1, b.fd)
        yield Maps((a, b), values, outer)


Call = Callable[[Workshop, Home], Item]

# r8 is an object for them
CALLS: dict[str, Call] = {
    "push_front": lambda w, at: w.push(r8, "elems", w.t.elem.at["node"], home=at),
    "push_back": lambda w, at: w.push(r8, "elems", w.t.elem.at["node"], back=True, home=at),
    "pop_front": lambda w, at: w.pop("elems", home=at),
    "pop_back": lambda w, at: w.pop("elems", back=True, home=at),
    "add": lambda w, at: w.add(r8, "leaves", w.t.leaf.at["tree"], home=at),
    "first": lambda w, at: w.on_tree("first", "leaves", home=at),
    "remove": lambda w, at: w.on_tree("remove", "leaves", mov(r2, r8), home=at),
}
PEEKING: dict[str, Call] = {
    "front": lambda w, at: w.peek("elems", home=at),
    "back": lambda w, at: w.peek("elems", back=True, home=at),
    "root": lambda w, at: w.on_tree("root", "leaves", home=at),
    "left": lambda w, at: w.on_tree("left", "leaves", mov(r2, r8), home=at),
    "right": lambda w, at: w.on_tree("right", "leaves", mov(r2, r8), home=at),
}


def calls() -> dict[str, Call]:
    """Those that this kernel has."""
    return CALLS | (PEEKING if has("graph_peek") else {})


def object_for(w: Workshop, call: str, owned: list[Reg]) -> Item:
    """r8 = an object for the call."""
    return w.new(w.t.elem if call.startswith("push") else w.t.leaf, r8, owned=owned)


@pytest.mark.parametrize("root", PLACES)
def test_root_under_lock_of_another_allocation_is_refused(workshop: Workshop, maps: Maps, root: str) -> None:
    """KPTR-GRAPH-002: another map's lock, another element's of the same map, another inner map's, another object's."""
    at = PLACES[root]

    def program(lock: Place, name: str, call: Call) -> Program:
        owned = [reg for reg, place in ((r6, at), (r7, lock)) if place.allocated]
        return lambda w, m: [
            both(w, maps, at, lock),
            object_for(w, name, owned),
            w.lock(home(w, lock, r7)),
            call(w, home(w, at, r6)),
        ]

    refusals = {
        f"{name} in {root} under lock of {lock}": Refusal(
            EINVAL, "not in the same allocation", program(place, name, call)
        )
        for lock, place in PLACES.items()
        for name, call in calls().items()
    }
    assert_refused(workshop, maps.values, refusals)


@pytest.mark.parametrize("root", PLACES)
def test_root_without_lock_is_refused(workshop: Workshop, maps: Maps, root: str) -> None:
    """KPTR-GRAPH-001: nor when the lock was given back before."""
    at = PLACES[root]

    def program(name: str, call: Call, before: bool) -> Program:
        return lambda w, m: [
            at.address(w, maps, r6, 0),
            object_for(w, name, [r6] if at.allocated else []),
            [w.lock(home(w, at, r6)), w.unlock(home(w, at, r6))] if before else [],
            call(w, home(w, at, r6)),
        ]

    refusals = {
        f"{name} in {root} {'after' if before else 'without'} lock": Refusal(
            EINVAL,
            "bpf_spin_lock at off=.* must be held for bpf_(list_head|rb_root)",
            program(name, call, before),
        )
        for name, call in calls().items()
        for before in (False, True)
    }
    assert_refused(workshop, maps.values, refusals)


@pytest.mark.parametrize("root", PLACES)
def test_root_under_its_own_lock_is_accepted(workshop: Workshop, maps: Maps, root: str) -> None:
    """KPTR-GRAPH-001, -002: what the two above would be with the right lock."""
    at = PLACES[root]

    def program(name: str, call: Call) -> Program:
        takes = name.startswith("push") or name == "add"
        gives = name.startswith("pop")

        def whole(w: Workshop, m: Map) -> Item:
            place = home(w, at, r6)
            free: Item = w.drop(r6) if at.allocated else []
            return [
                at.address(w, maps, r6, 0),
                object_for(w, name, [r6] if at.allocated else []) if takes else [],
                w.lock(place),
                call(w, place),
                mov(r8, r0),
                w.unlock(place),
                w.if_null(free, r8) if gives else [],
                [add(r8, -w.t.elem.at["node"]), w.drop(r8)] if gives else [],
                free,
            ]

        return whole

    accepted = {
        name: program(name, call) for name, call in calls().items() if name not in ("remove", "left", "right")
    }
    assert_accepted(workshop, maps.values, accepted)


def test_lock_is_given_back_by_its_own_pointer_only(workshop: Workshop, maps: Maps) -> None:
    """KPTR-GRAPH-002: 16 pairs of places, and one inner map looked up twice; a pointer's copies are the same lock."""

    def program(first: Place, second: Place) -> Program:
        return lambda w, m: [
            both(w, maps, first, second),
            w.lock(home(w, first, r6)),
            w.unlock(home(w, second, r7)),
        ]

    refusals = {
        f"lock {first}, unlock {second}": Refusal(EINVAL, "bpf_spin_unlock of different lock", program(a, b))
        for first, a in PLACES.items()
        for second, b in PLACES.items()
    }
    refusals["same inner value twice"] = Refusal(
        EINVAL,
        "bpf_spin_unlock of different lock",
        lambda w, m: [
            inner_value(w, maps, r6, 0),
            inner_value(w, maps, r7, 0),
            w.lock(),
            w.unlock(Home(r7, w.t.store)),
        ],
    )
    refusals["same value twice"] = Refusal(
        EINVAL,
        "bpf_spin_unlock of different lock",
        lambda w, m: [w.value(m, 0, r6), w.value(m, 0, r7), w.lock(), w.unlock(Home(r7, w.t.store))],
    )
    assert_refused(workshop, maps.values, refusals)

    def copies(place: Place) -> Program:
        return lambda w, m: [
            place.address(w, maps, r6, 0),
            mov(r7, r6),
            stxdw(r10, -16, r6),
            add(r7, 16),
            add(r7, -16),
            w.lock(home(w, place, r6)),
            w.unlock(home(w, place, r7)),
            ldxdw(r8, r10, -16),
            w.lock(home(w, place, r7)),
            w.unlock(home(w, place, r8)),
            w.drop(r8) if place.allocated else [],
        ]

    assert_accepted(workshop, maps.values, {name: copies(place) for name, place in PLACES.items()})
