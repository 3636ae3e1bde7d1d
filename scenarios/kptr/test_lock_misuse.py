# SPDX-License-Identifier: MIT
"""What a program may do while it holds a lock, and which lock it may give back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    call,
    call_label,
    exit_,
    ja,
    jeq,
    label,
    ld_func,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r9,
    r10,
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.leaves import first
from scenarios.kptr.local_types import Local
from scenarios.kptr.workshop import Home, Refusal, Workshop, assert_refused

pytestmark = [pytest.mark.requires("local_kptr")]

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


def test_global_function_that_may_sleep_is_not_called_under_lock(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-014: for a helper, a kfunc or another function of its own; without the lock each is whole."""
    w = workshop
    to, done = [mov(r1, r10), add(r1, -8), mov(r2, 8), mov(r3, 0)], [mov(r0, 0), exit_()]
    functions: dict[str, dict[str, Item]] = {
        "helper": {"global": [to, call(uapi.BPF_FUNC_copy_from_user), done]},
        "function that sleeps": {
            "global": [call_label("global_too"), done],
            "global_too": [to, call(uapi.BPF_FUNC_copy_from_user), done],
        },
    }
    if has("kfunc:bpf_copy_from_user_str"):
        functions["kfunc"] = {"global": [to, mov(r4, 0), w.kfunc("bpf_copy_from_user_str"), done]}
    for parts in functions.values():
        w.load(
            call_label("global"), w.value(store), w.lock(), w.unlock(), sleepable=True, parts=parts
        ).close()
        with refused(EINVAL, log="global function calls are not allowed while holding a lock"):
            w.load(w.value(store), w.lock(), call_label("global"), w.unlock(), sleepable=True, parts=parts)


def each_value(map: Item, callback: str) -> Item:
    """Run a callback on each value of the map that `map` sets r1 to, with the address of the slot at -16."""
    return [
        map,
        ld_func(r2, callback),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, 0),
        call(uapi.BPF_FUNC_for_each_map_elem),
    ]


def inside(w: Workshop, outer: Map, nth: int) -> Item:
    """r1 = the map of this number in a map of maps."""
    return [w.value(outer, nth, r1)]


@pytest.fixture
def outer(workshop: Workshop) -> Iterator[Map]:
    """Two maps of one value each, in a map of maps."""
    with (
        workshop.t.map(max_entries=1) as a,
        workshop.t.map(max_entries=1) as b,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2, inner_map=a) as outer,
    ):
        outer.update(0, a.fd)
        outer.update(1, b.fd)
        yield outer


LOCK_ITS_OWN: Item = [mov(r6, r3), ldxdw(r7, r4), mov(r1, r6), call(uapi.BPF_FUNC_spin_lock)]
UNLOCK_ITS_OWN: Item = [mov(r1, r6), call(uapi.BPF_FUNC_spin_unlock), mov(r0, 0), exit_()]
UNLOCK_THE_OTHER: Item = [mov(r1, r7), call(uapi.BPF_FUNC_spin_unlock), mov(r0, 0), exit_()]


def in_two_callbacks(w: Workshop, maps: tuple[Item, Item], inner: Item) -> Prog:
    """A program that runs through one map, and for each value through another; `inner` finds its own value in r3 and
    that of the callback around it where r4 points to.
    """
    first, second = maps
    parts: dict[str, Item] = {
        "outer": [stxdw(r10, -16, r3), each_value(second, "inner"), mov(r0, 0), exit_()],
        "inner": inner,
    }
    return w.load(stdw(r10, -16, 0), each_value(first, "outer"), parts=parts)


TwoMaps = Callable[[Workshop, Map, Map], tuple[Item, Item]]
TWO_MAPS: dict[str, TwoMaps] = {
    "one map": lambda w, store, outer: (ld_map_fd(r1, store), ld_map_fd(r1, store)),
    # the verifier knows of both what it knows of the outer map's first one
    "inner maps": lambda w, store, outer: (inside(w, outer, 0), inside(w, outer, 1)),
}


@pytest.mark.known_issue("KPTR-CALLBACK-VALUES", reason="two values pass for the same", spared=("7.3-rc7",))
@pytest.mark.parametrize("maps", TWO_MAPS.values(), ids=TWO_MAPS)
def test_values_in_callbacks_are_told_apart(
    workshop: Workshop, store: Map, outer: Map, maps: TwoMaps
) -> None:
    """KPTR-GRAPH-002: a callback that locks its value may not unlock that of the callback around it."""
    with refused(EINVAL, log="bpf_spin_unlock of different lock"):
        in_two_callbacks(workshop, maps(workshop, store, outer), [LOCK_ITS_OWN, UNLOCK_THE_OTHER]).close()


@pytest.mark.parametrize("maps", TWO_MAPS.values(), ids=TWO_MAPS)
def test_callback_in_a_callback_locks_its_own_value(
    workshop: Workshop, store: Map, outer: Map, maps: TwoMaps
) -> None:
    """KPTR-GRAPH-002: what the one above would be with the right lock."""
    in_two_callbacks(workshop, maps(workshop, store, outer), [LOCK_ITS_OWN, UNLOCK_ITS_OWN]).close()


@pytest.mark.parametrize("refcounted", [False, True], ids=["plain", "refcounted"])
def test_pointer_of_a_leaf_is_exchanged_under_the_lock(
    workshop: Workshop, store: Map, kr_kptr: KrKptr, refcounted: bool
) -> None:
    """KPTR-XCHG-001: of one that stays in its tree (7.1); without the lock the leaf is out of reach."""
    w = workshop
    type, root = (w.t.shared, "tree") if refcounted else (w.t.leaf, "leaves")
    node, leaf = type.at["tree"], Home(r7, type)

    def exchange(incoming: Item) -> Item:
        """r8 = what was in the leaf."""
        return [w.exchange(incoming, "held", leaf), mov(r8, r0)]

    take: Item = [add(r7, -node), exchange(mov(r2, 0))]
    release: Item = [mov(r1, r8), w.ours("kr_obj_release")]
    w.run(
        w.value(store),
        w.counted(type, 5),
        [w.acquire(r7), mov(r8, r0)] if refcounted else [],
        [w.lock(), w.add(r7, root, node), w.unlock()],
        w.drop(r8) if refcounted else [],
    )
    with refused(EACCES, log="R1 type=scalar expected=map_value"):
        w.load(w.value(store), first(w, w.unlock(), root), take, jeq(r8, 0, "out"), release).close()
    try:
        taker = w.load(
            w.value(store),
            first(w, [take, w.unlock()], root),
            jeq(r8, 0, "out"),
            release,
            mov(r0, 1),
            ja("exit"),
        )
    except BpfError as error:
        assert (error.errno, "not allowed while holding a lock" in error.log) == (EINVAL, True)
        pytest.skip("this kernel lacks bpf_kptr_xchg under a lock")
    reader = w.load(
        w.value(store),
        mov(r9, 0),
        first(w, [take, jeq(r8, 0, "empty")], root),
        ldxw(r9, r8, btf.module("kr_kptr").offset("kr_obj", "id")),
        exchange(mov(r2, r8)),
        jeq(r8, 0, "empty"),
        [w.unlock(), release, ja("out")],
        label("empty"),
        [w.unlock(), mov(r0, r9), ja("exit")],
    )

    with taker, reader:
        assert [reader.test_run(bytes(64)).retval for _ in range(2)] == [5, 5]
        assert [taker.test_run(bytes(64)).retval for _ in range(2)] == [1, 0]
        assert reader.test_run(bytes(64)).retval == 0

    assert kr_kptr.counters()["live"] == 0
