# SPDX-License-Identifier: MIT
"""Comparing, shrinking and printing sequences, with a second, deliberately wrong model in the kernel's place."""

from __future__ import annotations

import ast
import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from harness.modelcheck.facility import Divergence, from_json
from harness.modelcheck.mprog import Mprog
from harness.modelcheck.mprog_comparison import compare, hook_of, request
from harness.modelcheck.mprog_listing import KINDS, scenario
from harness.modelcheck.mprog_sequences import sequences
from harness.modelcheck.search import replay, search
from harness.modelcheck.shrinking import shortest
from harness.oracle import world as world_module
from harness.oracle.calls import Call, Close
from harness.oracle.families import Features
from harness.oracle.mprog import View
from harness.oracle.mprog_calls import Attach, Detach, Fill, LinkCreate, LinkUpdate, Query
from harness.oracle.world import World

FEATURES = Features()
MPROG = Mprog(FEATURES)
ALL = sequences(FEATURES)


class SloppyWorld(World):
    """A kernel that forgets to check whether the program is there already."""

    def _attach(self, call: Attach) -> None:
        if call.hook == "in" and call.prog in self.view("in").progs:
            return
        super()._attach(call)


def played(calls: Sequence[Call], kernel: World) -> dict[str, Any]:
    """What harness.guest.mprog_player would answer if that were the kernel. The end is left out."""
    ids: dict[str, int] = {}

    def number(name: str | None) -> int:
        return 0 if name is None else ids.setdefault(name, len(ids) + 1)

    def raw(view: View | None, error: int) -> list[Any]:
        if view is None:
            return [error, 0, 0, 0, [], []]
        links = None if view.links is None else [number(link) for link in view.links]
        return [
            error,
            view.revision,
            view.count,
            view.attach_flags,
            [number(prog) for prog in view.progs],
            links,
        ]

    answers = []
    for call in calls:
        hook = hook_of(call, kernel)
        outcome = kernel.do(call)
        seen = outcome if isinstance(call, Query) else kernel.do(Query(hook)) if hook else None
        answers.append([outcome.errno, raw(seen.view, seen.errno) if seen else None])
    links = {name: [number(info.prog), info.attached] for name, info in kernel.link_infos().items()}
    loaded = set(ids)
    views = {name: raw((seen := kernel.do(Query(name))).view, seen.errno) for name in ("in", "group")}
    for name in [name for name, prog in kernel.objects.progs.items() if prog.open]:
        kernel.objects.close_prog(name)
    defunct = {name: [prog, False] for name, (prog, _) in links.items()}
    alive = sorted(kernel.alive_progs() & loaded)
    return {
        "answers": answers,
        "ids": ids,
        "views": views,
        "links": links,
        "alive": alive,
        "defunct": defunct,
        "left": [],
    }


def against(kernel: type[World]) -> Any:
    def play(calls: Sequence[Call]) -> Divergence | None:
        return compare(calls, FEATURES, played(calls, kernel()))

    return play


TWICE = (Attach("in", "a"), Attach("in", "a"))


def test_a_sequence_that_goes_as_the_model_says_does_not_differ() -> None:
    @settings(max_examples=25)
    @given(ALL)
    def check(calls: tuple[Call, ...]) -> None:
        assert compare(calls, FEATURES, played(calls, World())) is None

    check()


def test_a_divergence_says_where_and_both_sides() -> None:
    found = against(SloppyWorld)(TWICE)
    assert found is not None
    assert (found.place, found.model, found.kernel) == (1, "EEXIST by MPROG-ATTACH-008", "success")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": ["a"]}, "everything closed"),
        ({"alive": []}, "all programs closed"),
        ({"links": {"l": [99, True]}}, "at the end the links are"),
        ({"defunct": {"l": [1, True]}}, "all devices and cgroups removed"),
    ],
)
def test_the_end_is_compared_too(change: dict[str, Any], words: str) -> None:
    calls = (LinkCreate("l", "in", "a"),)
    found = compare(calls, FEATURES, played(calls, World()) | change)
    assert found is not None
    assert words in str(found)


def test_the_shortest_sequence_has_only_what_it_takes() -> None:
    noise: list[Call] = [
        Attach("out", "b", revision=7),
        Fill("other", 9),
        LinkCreate("l", "in", "c"),
        Query("in", 2),
    ]
    calls = [
        *noise,
        Attach("in", "a", revision=2),
        *noise,
        LinkUpdate("l", "d"),
        Attach("in", "a", 8),
        Close("l"),
    ]
    play = against(SloppyWorld)
    found = play(calls)
    assert found is not None
    short, divergence = shortest(calls, found, play, MPROG.plainer)
    assert short == TWICE
    assert divergence.place == 1


def test_the_search_finds_shrinks_and_keeps_what_differs_and_plays_it_first(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a sequence of 2 calls") as caught:
        search(against(SloppyWorld), MPROG, examples=300, seed=0, folder=tmp_path)
    assert "with refused(errno.EEXIST):  # MPROG-ATTACH-008" in str(caught.value)
    (kept,) = tmp_path.iterdir()
    assert kept.name in str(caught.value)
    with pytest.raises(AssertionError, match=r"a sequence of 2 calls"):
        replay(tmp_path, against(SloppyWorld), MPROG)
    replay(tmp_path, against(World), MPROG)


@settings(max_examples=25)
@given(ALL)
def test_a_sequence_survives_json_and_its_scenario_is_python(calls: tuple[Call, ...]) -> None:
    assert from_json(json.loads(json.dumps([call.to_json() for call in calls])), KINDS) == calls
    ast.parse(scenario(calls, FEATURES))
    json.dumps(request(calls, FEATURES))


def test_a_scenario_reads_like_one_written_by_hand() -> None:
    calls = (Attach("in", "a"), LinkCreate("l1", "in", "b", 8 | 32, "a"), Detach("in", "b"))
    assert (
        scenario(calls, FEATURES).partition("def ")[2]
        == """\
test_as_the_model_says(ends: tuple[Device, Device], sched_cls: LoadSchedCls) -> None:
    d0, d1 = ends
    a, b = sched_cls(), sched_cls()
    tcx.attach(d0, a)
    seen = tcx.query(d0)
    assert (seen.revision, seen.prog_ids) == (2, ids(a))
    l1 = tcx.link(d0, b, flags=BPF_F_BEFORE | BPF_F_ID, relative_id=a.id)
    seen = tcx.query(d0)
    assert (seen.revision, seen.prog_ids) == (3, ids(b, a))
    with refused(errno.EBUSY):  # MPROG-DETACH-012
        tcx.detach(d0, b)
"""
    )


def test_the_model_in_the_kernels_place_is_another_one() -> None:
    """Otherwise the tests above would compare a thing with itself."""
    assert world_module.World is World
    kernel = SloppyWorld()
    assert [kernel.do(call).errno for call in TWICE] == [0, 0]
    assert World().do(Detach("in")).errno == errno.ENOENT
