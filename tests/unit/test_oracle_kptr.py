# SPDX-License-Identifier: MIT
"""The model of owned objects: what becomes of an object by each way to write, who keeps what, and laws."""

from __future__ import annotations

import ast
import errno
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.guest.bpf.uapi import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from harness.guest.kptr_kinds import COUNT, MOVE, PUT_NEW, PUT_STATIC, REMOVE, SHARE, SWAP, TAKE, WRITE
from harness.modelcheck.facility import from_json
from harness.modelcheck.kptr import Kptr
from harness.modelcheck.kptr_comparison import compare, request
from harness.modelcheck.kptr_sequences import ABOUT, sequences
from harness.oracle.calls import Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.kptr import Features, Outcome, World
from harness.oracle.kptr_calls import (
    Bind,
    Create,
    DeleteBatch,
    Load,
    Lookup,
    LookupBatch,
    Nest,
    Run,
    Take,
    Unload,
    Update,
    UpdateBatch,
)
from harness.oracle.refusal import ENOTSUPP, UNTRIED

NOW = Features()
STAYS = Features(updates_release=False, percpu_hash_updates_release=False)
LATER_KERNELS = {"now": NOW, "stays": STAYS}
SEQUENCES = settings(max_examples=10, suppress_health_check=list(HealthCheck))  # they are long


def play(*calls: Call, features: Features = NOW) -> World:
    """A world in which all these calls have succeeded."""
    world = World(features)
    for call in calls:
        assert world.do(call).errno == 0, call
    return world


def owning(kind: str, *, features: Features = NOW, object: int = 1) -> World:
    """A map of this kind, m, whose element 0 owns a static object, and a program p with its both pointers."""
    world = play(Create("m", kind), Load("p", "m", "m", 0, 1), features=features)
    if kind not in ("array", "locked_array", "percpu_array"):
        world.do(Update("m"))
    world.do(Run("p", PUT_STATIC, object=object))
    assert world.look().refs[object] == 1
    return world


def returned(world: World, verb: int, **how: Any) -> Any:
    return world.do(Run("p", verb, **how)).result[0]


@pytest.mark.parametrize(
    ("kind", "call", "now", "stays"),
    [
        ("array", Update("m"), 0, 1),  # KPTR-FREE-001
        ("locked_array", Update("m", flags=BPF_F_LOCK), 0, 1),
        ("array", Delete("m"), 1, 1),  # KPTR-FREE-002
        ("lazy_hash", Update("m"), 0, 1),  # KPTR-FREE-003
        ("lazy_hash", Delete("m"), 0, 1),  # KPTR-FREE-004
        ("hash", Update("m"), 0, 1),  # KPTR-FREE-005
        ("hash", Update("m", flags=BPF_NOEXIST), 1, 1),
        ("hash", Delete("m"), 0, 1),  # KPTR-FREE-006
        ("locked_hash", Update("m", flags=BPF_F_LOCK), 1, 1),  # KPTR-FREE-007
        ("lru_hash", Update("m"), 0, 1),  # KPTR-FREE-008
        ("percpu_array", Update("m"), 0, 1),  # KPTR-FREE-009
        ("percpu_hash", Update("m"), 0, 1),  # KPTR-FREE-010
        ("percpu_hash", Delete("m"), 0, 1),  # KPTR-FREE-011
        ("hash", Take("m"), 0, 1),  # KPTR-FREE-012
        ("hash", DeleteBatch("m", count=1), 0, 1),
        ("hash", LookupBatch("m", delete=True), 0, 1),
        ("hash", Run("p", WRITE), 0, 1),  # KPTR-FREE-013
        ("hash", Run("p", REMOVE), 0, 1),
        ("task_storage", Update("m"), 0, 0),  # KPTR-FREE-016
        ("task_storage", Delete("m"), 0, 0),
        ("task_storage", Run("p", WRITE), 1, 1),
    ],
    ids=str,
)
def test_what_becomes_of_an_object_when_its_element_is_written_or_removed(
    kind: str, call: Call, now: int, stays: int
) -> None:
    for features, left in ((NOW, now), (STAYS, stays)):
        world = owning(kind, features=features)
        world.do(call)
        look = world.look()
        assert (look.refs[1], look.destroyed) == (left, 1 - left)
        world.do(Close("p"))
        world.do(Close("m"))
        assert (world.look().refs[1], world.look().destroyed) == (0, 1)  # KPTR-FREE-014, -018


@pytest.mark.parametrize("kind", ["hash", "lazy_hash", "lru_hash", "percpu_hash"])
def test_by_the_newer_rule_an_object_shows_under_the_next_key(kind: str) -> None:
    """KPTR-HAZ-006: the memory that was freed last is the first to be used again."""
    world = owning(kind, features=STAYS)
    for call in (Delete("m"), Update("m", key=3)):
        assert world.do(call).errno == 0
    assert world.do(Run("p", key=3)).result[1:] == [[1, None], None]


def test_preallocated_hash_swaps_with_its_spare_element() -> None:
    """KPTR-FREE-005."""
    world = owning("hash", features=STAYS)
    for call, there in ((Update("m"), [None, None]), (Update("m"), [1, None])):
        world.do(call)
        assert world.do(Run("p")).result[1] == there


def test_two_ways_to_look_up_and_delete_all_are_only_told_apart_where_order_matters() -> None:
    for features, expected in ((NOW, errno.ENOENT), (STAYS, UNTRIED)):
        world = owning("hash", features=features)
        world.do(Update("m", key=1, mark=7))
        assert world.do(LookupBatch("m", delete=True)).errno == expected


@pytest.mark.parametrize(
    ("verb", "result", "after", "counts"),
    [
        (TAKE, 2, [None, 2], (0, 1)),
        (COUNT, 2, [1, 2], (1, 1)),
        (MOVE, 3, [None, 1], (1, 0)),
        (SWAP, 0, [2, 1], (1, 1)),
        (SHARE, 3, [1, 1], (2, 0)),
    ],
)
def test_programs_move_what_they_own(
    verb: int, result: int, after: list[int], counts: tuple[int, int]
) -> None:
    """KPTR-LAW-003: of two pointers of one element; numbers are told plus one."""
    world = owning("array")
    world.do(Load("q", "m", "m", 1, 0))
    world.do(Run("q", PUT_STATIC, object=2))
    assert world.do(Run("p", verb)).result == [result, after, after]
    assert world.look().refs[1:3] == counts


def test_a_swap_of_a_pointer_with_itself_releases() -> None:
    world = play(Create("m", "array"), Load("p", "m", "m"))
    world.do(Run("p", PUT_NEW, object=100))
    assert (returned(world, SWAP), world.look().live) == (101, 0)


def test_programs_are_told_what_is_missing() -> None:
    world = play(Create("m", "hash"), Load("p", "m", "m"))
    assert returned(world, TAKE) == -errno.ENOENT
    world.do(Update("m"))
    assert (returned(world, TAKE), returned(world, PUT_STATIC, object=4)) == (0, -errno.ESRCH)


@pytest.mark.parametrize(
    ("kind", "call", "expected"),
    [
        ("array", Update("m", key=3), "E2BIG"),
        ("array", Update("m", key=3, flags=BPF_F_LOCK), "EINVAL"),
        ("array", Run("p", WRITE, key=3, flags=BPF_F_LOCK), "E2BIG"),
        ("array", Update("m", flags=BPF_NOEXIST), "EEXIST"),
        ("array", Take("m"), "ENOTSUPP"),
        ("array", DeleteBatch("m"), "ENOTSUPP"),
        ("array", Freeze("m"), "ENOTSUPP"),
        ("array", Lookup("m", 3), "ENOENT"),
        ("hash", Update("m", 5, flags=BPF_EXIST), "ENOENT"),
        ("hash", Update("closed"), "EBADF"),
        ("hash", Update("p"), "EINVAL"),
        ("hash", Nest("m", "m"), "-2"),
        ("task_storage", Update("m", 1), "EBADF"),
        ("task_storage", LookupBatch("m"), "ENOTSUPP"),
        ("task_storage", Create("n", "array_of_maps", "m"), "-2"),
    ],
    ids=str,
)
def test_refused(kind: str, call: Call, expected: str) -> None:
    world = owning(kind)
    before = world.look()
    outcome = world.do(call)
    error = outcome.errno or -(outcome.result[0] if isinstance(call, Run) else 0)
    assert {ENOTSUPP: "ENOTSUPP", UNTRIED: "-2"}.get(error, errno.errorcode.get(error)) == expected
    assert world.look() == before


def test_a_full_hash_takes_updates_only_and_a_batch_stops_there() -> None:
    world = play(Create("m", "hash"))
    assert world.do(UpdateBatch("m", key=1, count=3)) == Outcome(0, 3)
    outcome = world.do(UpdateBatch("m", key=3, count=3, mark=5))
    assert (outcome.errno, outcome.result) == (errno.E2BIG, 2)
    assert world.do(LookupBatch("m")).result == [[1, 0], [2, 0], [3, 5], [4, 5]]
    assert world.do(Update("m", 1)).errno == 0


KEEPERS = {
    "a program": ((), (Close("p"),)),
    "a program that was given it": (
        (Create("n", "array"), Load("q", "n", "n"), Bind("q", "m"), Close("p")),
        (Close("q"), Close("n")),
    ),
    "a pin": ((Pin("m"), Close("p")), (Unpin("m"),)),
    "a pinned program": ((Pin("p"), Close("p")), (Unpin("p"),)),
    "a map of maps": (
        (Create("o", "hash_of_maps", "m"), Nest("o", "m"), Close("p")),
        (Delete("o"), Close("o")),
    ),
    "a map of maps in a program": (
        (Create("o", "array_of_maps", "m"), Nest("o", "m"), Load("q", "o", "o"), Close("p"), Close("o")),
        (Close("q"),),
    ),
}


@pytest.mark.parametrize(("keep", "let_go"), KEEPERS.values(), ids=KEEPERS)
def test_who_keeps_a_map_keeps_what_it_owns_and_the_module(
    keep: tuple[Call, ...], let_go: tuple[Call, ...]
) -> None:
    """KPTR-FREE-014, KPTR-MAP-027."""
    world = owning("array")
    for call in (*keep, Close("m")):
        assert world.do(call).errno == 0, call
    assert world.look().refs[1] == 1
    assert world.do(Unload()).errno == errno.EAGAIN
    for call in let_go:
        assert world.do(call).errno == 0, call
    assert (world.look().refs[1], world.users(), world.do(Unload()).errno) == (0, 0, 0)


def test_what_is_kept_can_be_opened_again() -> None:
    world = owning("array")
    world.do(Close("m"))
    assert world.do(Reopen("m")).errno == errno.ENOENT
    assert world.do(Reopen("m", by_id=True)).errno == 0


def test_a_map_of_maps_holds_what_is_like_its_template() -> None:
    """KPTR-MAP-026."""
    world = play(Create("m", "hash"), Create("n", "lazy_hash"), Create("o", "hash_of_maps", "m"))
    assert world.do(Nest("o", "n")).errno == errno.EINVAL
    assert world.do(Nest("o", "m")).errno == 0
    assert world.do(Lookup("o")).result == "m"


CALLS = st.sampled_from(list(LATER_KERNELS)).flatmap(
    lambda rule: st.sampled_from(ABOUT).flatmap(
        lambda ops: st.tuples(st.just(rule), sequences(LATER_KERNELS[rule], ops))
    )
)


@SEQUENCES
@given(CALLS)
def test_laws(drawn: tuple[str, tuple[Call, ...]]) -> None:
    """KPTR-LAW-001, -002: each reference was made and is either released, destroyed or stored; none is left when
    everything is closed."""
    rule, calls = drawn
    world = World(LATER_KERNELS[rule])
    for call in calls:
        world.do(call)
        look = world.look()
        objects = {object for table in world.maps.values() for e in table.memory() for object in e.objects}
        stored = sum(world.refs(object) for object in objects - {None} if object is not None)
        stored -= len([object for object in objects if object in range(4)])  # the module's own
        assert look.created + look.acquired == look.released + look.destroyed + stored
    for name in [*world.maps, *world.progs]:
        world.do(Unpin(name))
        world.do(Close(name))
    end = world.look()
    assert (sum(end.refs), end.live, end.users) == (0, 0, 0)


@SEQUENCES
@given(CALLS)
def test_what_is_played_as_the_model_says_does_not_differ(drawn: tuple[str, tuple[Call, ...]]) -> None:
    rule, calls = drawn
    features = LATER_KERNELS[rule]
    asked = json.loads(json.dumps(request(calls, features)))
    assert from_json(asked["calls"], Kptr.calls) == calls
    world = World(features)
    answers = [[(outcome := world.do(call)).errno, outcome.result, None] for call in calls]
    played: dict[str, Any] = json.loads(json.dumps({"answers": answers, "left": [[]]}))
    assert compare(calls, features, played) is None
    for change, words in (([99, None, None], "returns"), ([answers[5][0], "?", None], "brings")):
        found = compare(calls, features, {**played, "answers": [*answers[:5], change, *answers[6:]]})
        assert found is not None
        assert words in found.what
    found = compare(calls, features, {**played, "left": [["m1"]]})
    assert found is not None
    ast.parse(Kptr(features).scenario(calls))
