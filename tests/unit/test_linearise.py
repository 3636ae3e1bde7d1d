# SPDX-License-Identifier: MIT
"""Histories that a serial order explains and such that none does, made by hand and by the model itself."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import pytest

from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID, BPF_F_LINK, BPF_F_REPLACE
from harness.guest.mprog_racers import Memory
from harness.modelcheck.facility import from_json
from harness.modelcheck.history import Answer, Frame, Info, Operation, in_order, parts
from harness.modelcheck.history import answer as answer_of
from harness.modelcheck.linearise import Contradiction, explain
from harness.modelcheck.mprog_listing import KINDS
from harness.modelcheck.racing import STAGES, check, overlaps, races
from harness.modelcheck.timeline import shortened, told
from harness.oracle.calls import Call, Close
from harness.oracle.families import Features
from harness.oracle.mprog import View
from harness.oracle.mprog_calls import AddQdisc, Attach, Detach, LinkCreate, LinkDetach, LinkUpdate, Query
from harness.oracle.world import LinkInfo, World


def op(thread: str, call: Call, begin: float, end: float, error: int = 0, seen: Any = None) -> Operation:
    """`seen` is a revision and the programs for a query, what a frame met, or a link's info."""
    if isinstance(call, Query):
        revision, progs = seen
        owners = tuple(
            name if name and len(name) > 1 else None for _, _, name in (p.partition("=") for p in progs)
        )
        seen = View(revision, len(progs), 0, tuple(p.partition("=")[0] for p in progs), owners)
    return Operation(thread, call, begin, end, Answer(error, seen))


def query(thread: str, begin: float, end: float, revision: int, *progs: str) -> Operation:
    """A query of "in"; "b=l1" is b owned by link l1."""
    return op(thread, Query("in"), begin, end, seen=(revision, progs))


def contradiction(*history: Operation) -> Contradiction | None:
    found = explain(in_order(history), World())
    return found if isinstance(found, Contradiction) else None


A, B = Attach("in", "a"), Attach("in", "b")
SEES_TWO = {"ab": query("m", 90, 91, 3, "a", "b"), "ba": query("m", 90, 91, 3, "b", "a")}

EXPLAINED: dict[str, tuple[Operation, ...]] = {
    "nothing": (),
    "overlapping attaches, in one order": (op("s", A, 0, 10), op("t", B, 5, 15), SEES_TWO["ab"]),
    "overlapping attaches, in the other order": (op("s", A, 0, 10), op("t", B, 5, 15), SEES_TWO["ba"]),
    "a query that sees a call which has not returned": (op("s", A, 0, 10), query("t", 1, 2, 2, "a")),
    "a query that does not see it yet": (op("s", A, 0, 10), query("t", 1, 2, 1)),
    "one of two with the same revision": (
        op("s", replace(A, revision=1), 0, 10),
        op("t", replace(B, revision=1), 5, 15, errno.ESTALE),
    ),
    "a freed list starts anew": (
        op("s", A, 0, 10),
        op("s", Detach("in", "a"), 11, 20),
        op("t", replace(B, revision=2), 5, 30, errno.ESTALE),
        query("t", 31, 32, 1),
    ),
    "a frame that met the list between two calls": (
        op("s", A, 0, 10),
        op("t", B, 5, 15),
        op("f", Frame("in"), 4, 12, seen=("b",)),
        SEES_TWO["ba"],
    ),
    "an update by a descriptor that another thread closes meanwhile": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", LinkUpdate("l1", "b"), 10, 100),
        op("t", Close("l1"), 20, 30),
        op("t", LinkDetach("l1"), 35, 40, errno.EBADF),
        query("t", 50, 60, 2, "a=l1"),
        query("t", 70, 80, 3, "b=l1"),
        query("s", 110, 111, 1),
    ),
    "an id that is gone before the element is": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", Close("l1"), 10, 100),
        op("t", Attach("in", "b", BPF_F_BEFORE | BPF_F_LINK | BPF_F_ID, "l1"), 20, 30, errno.ENOENT),
        query("t", 40, 50, 2, "a=l1"),
        query("t", 110, 111, 1),
    ),
    "an anchor that outlives all, put by a work queue": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", Close("l1"), 10, 20),
        op("t", Attach("in", "b", BPF_F_AFTER | BPF_F_LINK | BPF_F_ID, "l1"), 8, 30),
        query("t", 40, 50, 3, "a=l1", "b"),
        query("t", 60, 70, 4, "b"),
    ),
    "a frame torn by two replacements": (
        op("s", A, 0, 10),
        op("s", B, 11, 20),
        op("s", Attach("in", "c", BPF_F_REPLACE, replace="a"), 30, 40),
        op("s", Attach("in", "d", BPF_F_REPLACE, replace="b"), 50, 60),
        op("f", Frame("in"), 25, 65, seen=("a", "d")),
    ),
}

UNEXPLAINED: dict[str, tuple[Operation, ...]] = {
    "a lost update": (op("s", A, 0, 10), op("t", B, 5, 15), query("m", 90, 91, 2, "b")),
    "a change counted twice": (op("s", A, 0, 10), op("t", B, 5, 15), query("m", 90, 91, 4, "a", "b")),
    "a stale read after a completed write": (op("s", A, 0, 10), query("t", 11, 12, 1)),
    "a change that is seen, and then not any more": (
        op("s", A, 0, 50),
        query("t", 5, 6, 2, "a"),
        query("t", 7, 8, 1),
    ),
    "two successes with one revision": (
        op("s", replace(A, revision=1), 0, 10),
        op("t", replace(B, revision=1), 5, 15),
    ),
    "an order that two readers see differently": (
        op("s", A, 0, 50),
        op("t", B, 0, 50),
        op("u", Frame("in"), 10, 20, seen=("a", "b")),
        op("v", Frame("in"), 30, 40, seen=("b", "a")),
    ),
    "an order that real time forbids": (op("s", A, 0, 10), op("t", B, 11, 15), SEES_TWO["ba"]),
    "an error without a reason": (op("s", A, 0, 10, errno.EEXIST), op("t", B, 5, 15)),
    "a frame that met a program after its removal": (
        op("s", A, 0, 10),
        op("s", Detach("in", "a"), 11, 20),
        op("f", Frame("in"), 21, 22, seen=("a",)),
    ),
    "a frame torn by an attach": (
        op("s", A, 0, 10),
        op("t", Attach("in", "b", BPF_F_BEFORE), 20, 30),
        op("f", Frame("in"), 25, 28, seen=("b",)),
    ),
    "an element that outlives its link": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", Close("l1"), 10, 20),
        query("t", 30, 40, 2, "a=l1"),
    ),
    "a descriptor that works when it is closed": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", Close("l1"), 10, 20),
        op("t", LinkUpdate("l1", "b"), 30, 40),
    ),
    "a link's info that is behind": (
        op("s", LinkCreate("l1", "in", "a"), 0, 5),
        op("s", LinkUpdate("l1", "b"), 10, 20),
        op("t", Info("l1"), 30, 40, seen=LinkInfo("a", True)),
    ),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_it_is_explained(name: str) -> None:
    assert contradiction(*EXPLAINED[name]) is None


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_it_is_not_explained(name: str) -> None:
    assert contradiction(*UNEXPLAINED[name]) is not None


def test_the_earliest_call_without_a_place_is_named_and_what_was_expected_of_it() -> None:
    history = UNEXPLAINED["a lost update"]
    found = contradiction(
        *history, query("m", 92, 93, 7, "e"), op("t", Attach("in", "f"), 94, 95, errno.EBUSY)
    )
    assert found is not None
    assert found.operation == history[-1]
    expected = {state.pending[0][1].seen.progs for state in found.states}  # type: ignore[union-attr]
    assert expected == {("a", "b"), ("b", "a")}
    text = told(found)
    assert "m: query in: revision 2, [b]; the model says revision 3, [a b]" in text
    assert "attach in a" in text


def test_a_contradiction_is_shortened_to_what_it_takes() -> None:
    noise = [query(f"n{number}", 12 + number / 10, 80, 3, "a", "b") for number in range(20)]
    late = [op("l", Attach("in", "a"), 200, 201)]
    found = contradiction(*UNEXPLAINED["a change counted twice"], *noise, *late)
    assert found is not None
    assert len(shortened(found, World()).history) == 3


def test_lists_without_a_common_object_are_explained_apart() -> None:
    apart = [
        op("s", A, 0, 1),
        op("s", Attach("out", "a"), 2, 3),
        op("t", LinkCreate("l1", "other", "b"), 4, 5),
    ]
    assert [len(part) for part in parts(apart)] == [1, 1, 1]
    joined = [*apart, op("t", AddQdisc("d0", "clsact"), 6, 7), op("t", LinkDetach("l1"), 8, 9)]
    assert sorted(len(part) for part in parts(joined)) == [2, 3]


def test_two_calls_of_one_thread_keep_their_order_however_coarse_the_clock_is() -> None:
    assert contradiction(op("s", A, 0, 10), query("s", 10, 10, 1)) is not None


def test_a_pair_that_is_under_way_at_the_same_time_is_counted_once() -> None:
    assert overlaps([op("s", A, 0, 10), op("t", B, 5, 15), query("u", 20, 30, 1)]) == 1


# Histories made by the model


def simulated(seed: int, *, calls: int = 150) -> list[Operation]:
    """What threads of a random race would see if the model were the kernel, each call having its effect at a random
    moment while it is under way."""
    race = next(islice(races(Features(), seed, calls=calls), seed % len(STAGES), None))
    random = Random(seed)
    world = World()
    links: list[tuple[str, str]] = []
    memories = [Memory(links) for _ in race.threads]
    clock = [random.random() for _ in race.threads]
    left = [list(each) for each in race.threads]
    operations = [
        Operation("main", call, -1, -1, answer_of(world, call) or Answer()) for call in race.prelude
    ]
    waiting: list[tuple[float, int, float, Call]] = []

    def invoke(thread: int) -> None:
        if not left[thread]:
            return
        begin = clock[thread] + random.random() / 4
        asked = memories[thread].resolve(left[thread].pop(0).to_json())
        waiting.append((begin + random.random(), thread, begin, from_json([asked], KINDS)[0]))

    for thread in range(len(left)):
        invoke(thread)
    while waiting:
        waiting.sort(key=lambda each: each[0])
        effect, thread, begin, call = waiting.pop(0)
        answered = answer_of(world, call)
        assert answered is not None
        clock[thread] = effect + random.random()
        operations.append(Operation(f"t{thread}", call, begin, clock[thread], answered))
        if isinstance(call, Query) and answered.seen:
            memories[thread].saw(call.hook, answered.seen.revision, list(answered.seen.progs))  # type: ignore[union-attr]
        if isinstance(call, LinkCreate) and not answered.errno:
            links.append((call.link, call.hook))
        invoke(thread)
        if random.random() < 0.3:
            hook = random.choice(race.hooks)
            operations.append(
                Operation("f", Frame(hook), effect, effect, Answer(seen=world.view(hook).progs))
            )
    operations += [
        Operation("main", Query(hook), 10**6 + place, 10**6 + place + 0.5, Answer(seen=world.view(hook)))
        for place, hook in enumerate(race.hooks)
    ]
    return in_order(operations)


@pytest.mark.parametrize("seed", range(18))
def test_what_the_model_itself_answers_is_explained(seed: int) -> None:
    history = simulated(seed)
    assert overlaps(history) > len(history) / 2
    check(history, World())


def _other_revision(answered: Answer) -> Answer:
    assert isinstance(answered.seen, View)
    return replace(answered, seen=replace(answered.seen, revision=answered.seen.revision + 1000))


def _other_program(answered: Answer) -> Answer:
    assert isinstance(answered.seen, View)
    return replace(answered, seen=replace(answered.seen, progs=("f", "f", *answered.seen.progs)))


def _other_error(answered: Answer) -> Answer:
    return replace(answered, errno=errno.EXDEV)


CORRUPTIONS: tuple[tuple[Callable[[Answer], Answer], type[Call]], ...] = (
    (_other_revision, Query),
    (_other_program, Query),
    (_other_error, Attach),
)


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_an_answer_that_no_state_gives_is_refused_and_named(
    corrupt: tuple[Callable[[Answer], Answer], type[Call]],
) -> None:
    for seed in range(5):
        history = simulated(seed, calls=60)
        places = [
            place for place, each in enumerate(history) if each.harmless and isinstance(each.call, corrupt[1])
        ]
        place = Random(seed).choice(places)
        history[place] = replace(history[place], answer=corrupt[0](history[place].answer))
        found = explain(history, World())
        assert isinstance(found, Contradiction)
        assert found.operation == history[place]


def test_a_success_that_was_none_is_nearly_always_refused() -> None:
    """A change that did not take place, told as one: the last look at the lists contradicts it, or an earlier one."""
    refused = 0
    for seed in range(20):
        history = simulated(seed, calls=60)
        places = [place for place, each in enumerate(history) if _failed_change(each)]
        place = Random(seed).choice(places)
        history[place] = replace(history[place], answer=Answer())
        refused += isinstance(explain(history, World()), Contradiction)
    assert refused >= 18


def _failed_change(operation: Operation) -> bool:
    return operation.answer.errno != 0 and isinstance(operation.call, (Attach, Detach))


def test_a_wrong_rule_is_found() -> None:
    """A kernel that counts a replacement twice."""

    class Twice(World):
        def _attach(self, call: Attach) -> None:
            super()._attach(call)
            if call.flags & BPF_F_REPLACE and call.hook in self.entries:
                entry = self.entries[call.hook]
                self.entries[call.hook] = replace(entry, revision=entry.revision + 1)

    found = [explain(simulated(seed, calls=500), Twice()) for seed in (0, 3, 6, 9)]
    assert all(isinstance(each, Contradiction) for each in found)


def test_thousands_of_calls_are_explained_in_a_second_or_two() -> None:
    history = simulated(0, calls=1000)
    assert len(history) > 3000
    begin = time.process_time()
    check(history, World())
    assert time.process_time() - begin < 10, "far more than 1000 calls a second are expected"
