# SPDX-License-Identifier: MIT
"""A root is touched only under the lock that stands beside it, wherever the two are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    and_,
    call,
    call_label,
    exit_,
    jeq,
    jne,
    ld_func,
    ld_map_fd,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r10,
    stdw,
    stw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import refused
from scenarios.kptr.local_types import Local
from scenarios.kptr.workshop import Home, Program, Refusal, Workshop, assert_accepted, assert_refused

pytestmark = [pytest.mark.requires("local_kptr")]


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


def inner_value(w: Workshop, maps: Maps, into: Reg, nth: int) -> Item:
    """The value of the inner map of this number."""
    return [
        w.value(maps.outer, nth, into),
        stw(r10, -4, 0),
        mov(r1, into),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jne(r0, 0, 2),
        mov(r0, 0),
        exit_(),
        mov(into, r0),
    ]


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


# KPTR-GRAPH-014, -015
MISUSED = {
    "two_locks": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.value(m, 1, r7), w.lock(), w.lock(Home(r7, w.t.store))],
    ),
    "unlock_without_lock": Refusal(
        EINVAL, "bpf_spin_unlock without taking a lock", lambda w, m: [w.value(m), w.unlock()]
    ),
    "unlock_twice": Refusal(
        EINVAL,
        "bpf_spin_unlock without taking a lock",
        lambda w, m: [w.value(m), w.lock(), w.unlock(), w.unlock()],
    ),
    "leave_with_lock": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [w.value(m), w.lock()],
    ),
    "leave_with_lock_on_one_path": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [
            w.value(m),
            ldxdw(r7, r6, w.t.store.at["data"]),
            w.lock(),
            jeq(r7, 0, "out"),
            w.unlock(),
        ],
    ),
    "lock_beside_lock": Refusal(
        EINVAL,
        "off 8 doesn't point to 'struct bpf_spin_lock' that is at 0",
        lambda w, m: [w.value(m), add(r6, 8), w.lock()],
    ),
    "lock_at_variable_offset": Refusal(
        EINVAL,
        "bpf_spin_lock has to be at the constant offset",
        lambda w, m: [w.value(m), ldxdw(r7, r6, w.t.store.at["data"]), and_(r7, 8), add(r6, r7), w.lock()],
    ),
    "lock_in_object_without_one": Refusal(
        EINVAL,
        "has no valid bpf_spin_lock",
        lambda w, m: [w.new(w.t.elem), w.lock(Home(r7, Local("", 0, 0, {"lock": 0})))],
    ),
    "helper_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call(uapi.BPF_FUNC_ktime_get_ns), w.unlock()],
    ),
    "kfunc_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), mov(r1, 1), w.ours("kr_obj_new"), w.unlock()],
    ),
    "global_function_under_lock": Refusal(
        EINVAL,
        "global function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call_label("global"), w.unlock()],
        {"global": [mov(r0, 0), exit_()]},
    ),
    "global_function_under_lock_by_static_one": Refusal(
        EINVAL,
        "global function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call_label("part"), w.unlock()],
        {"part": [call_label("global"), mov(r0, 0), exit_()], "global": [mov(r0, 0), exit_()]},
    ),
    "lock_in_static_function": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [w.value(m), mov(r1, r6), call_label("part")],
        {"part": [call(uapi.BPF_FUNC_spin_lock), mov(r0, 0), exit_()]},
    ),
}


def test_misused_lock_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-014, -015: what the verifier says stands beside each program of MISUSED."""
    assert_refused(workshop, store, MISUSED)


def test_static_function_may_be_called_under_lock(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-014: and may lock and unlock for its caller."""
    w = workshop
    nothing: Item = [mov(r0, 0), exit_()]
    unlocking: Item = [call(uapi.BPF_FUNC_spin_unlock), mov(r0, 0), exit_()]
    w.load(w.value(store), w.lock(), call_label("part"), w.unlock(), parts={"part": nothing}).close()
    w.load(w.value(store), w.lock(), mov(r1, r6), call_label("part"), parts={"part": unlocking}).close()


@pytest.mark.known_issue(
    "KPTR-CALLBACK-VALUES", reason="two values of one map pass for the same", spared=("7.3-rc7",)
)
def test_values_in_callbacks_are_told_apart(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-002: a callback that locks its value may not unlock that of the callback around it."""
    each: Item = [
        ld_map_fd(r1, store),
        mov(r3, r10),
        add(r3, -8),
        mov(r4, 0),
        call(uapi.BPF_FUNC_for_each_map_elem),
    ]
    parts: dict[str, Item] = {
        "outer": [stxdw(r10, -8, r3), ld_func(r2, "inner"), each, mov(r0, 0), exit_()],
        "inner": [
            mov(r6, r3),
            ldxdw(r7, r4),
            mov(r1, r6),
            call(uapi.BPF_FUNC_spin_lock),
            mov(r1, r7),
            call(uapi.BPF_FUNC_spin_unlock),
            mov(r0, 0),
            exit_(),
        ],
    }

    with refused(EINVAL, log="bpf_spin_unlock of different lock"):
        workshop.load(stdw(r10, -8, 0), ld_func(r2, "outer"), each, parts=parts).close()
