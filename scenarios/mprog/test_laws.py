# SPDX-License-Identifier: MIT
"""Laws that hold whatever is asked of a list: for both lists of tcx and of netkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import errno_name
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID
from harness.guest.traffic import backlog, frame, packet_socket
from harness.guest.waiting import wait_until
from scenarios.mprog.conftest import Journal
from scenarios.mprog.story import LETTERS, PLACES, Stage, Step, told

CAPACITY = 63


@pytest.fixture(params=PLACES)
def stage(request: pytest.FixtureRequest, journal: Journal) -> Iterator[Stage]:
    """A list on which nothing has happened, beside one that holds program o."""
    netkit_wanted = request.param.startswith("netkit")
    pair = request.getfixturevalue("netkit_pair")() if netkit_wanted else request.getfixturevalue("veth")
    with ExitStack() as holder:
        yield Stage(request.param, pair, journal, holder)


def no_program_is_in_it_twice(step: Step) -> None:
    """MPROG-LAW-001."""
    view = step.after.view
    assert len(set(view.prog_ids)) == view.count <= CAPACITY


def each_change_counts_and_nothing_else_does(step: Step) -> None:
    """MPROG-LAW-002."""
    before, after = step.before.view, step.after.view
    changed = (before.prog_ids, before.link_ids) != (after.prog_ids, after.link_ids)
    assert after.revision == before.revision + changed


def what_is_not_touched_keeps_its_order(step: Step) -> None:
    """MPROG-LAW-003, -006: the same stand in front of a link as before, but for the one that came or went."""
    before, after = step.before.elements, step.after.elements
    stayed = [element for element in before if element in after]
    assert [element for element in after if element in stayed] == stayed
    assert len(stayed) >= max(len(before), len(after)) - 1


def the_list_beside_it_notices_nothing(step: Step) -> None:
    """MPROG-LAW-005."""
    assert step.after.beside == step.before.beside


def a_refusal_leaves_all_that_can_be_seen_alone(step: Step) -> None:
    """MPROG-LAW-007: list, revision, and what all links tell."""
    assert not step.refusal or step.after == step.before


LAWS = (
    no_program_is_in_it_twice,
    each_change_counts_and_nothing_else_does,
    what_is_not_touched_keeps_its_order,
    the_list_beside_it_notices_nothing,
    a_refusal_leaves_all_that_can_be_seen_alone,
)


def test_the_story_goes_as_told_and_breaks_no_law(stage: Stage) -> None:
    """MPROG-LAW-001 to -003, -005 to -007."""
    shown = ""
    for result, step in told(stage):
        if result.startswith("E"):
            assert errno_name(step.refusal) == result
        else:
            assert step.refusal == 0
            shown = result
        assert stage.shown() == shown
        for law in LAWS:
            law(step)


def test_packets_meet_the_programs_in_the_order_of_the_query(stage: Stage, journal: Journal) -> None:
    """MPROG-LAW-008: after each request."""
    wire = frame(stage.way.a, stage.way.b)
    with packet_socket(stage.way.a) as sender:
        for result, step in told(stage):
            number_of = {prog.id: LETTERS.index(letter) + 1 for letter, prog in stage.progs.items()}
            sender.send(wire)
            wait_until(lambda: backlog() == 0, timeout=1, what="the frame to be received")
            met = journal.read()
            assert met == [number_of[prog_id] for prog_id in step.after.view.prog_ids], result


PLACEMENTS: list[tuple[int, str | None]] = [
    (0, None),
    (BPF_F_BEFORE, None),
    (BPF_F_AFTER, None),
    *(
        (side | by_id, anchor)
        for side in (BPF_F_BEFORE, BPF_F_AFTER)
        for by_id in (0, BPF_F_ID)
        for anchor in ("a", "b", "b*", "c")
    ),
]


def test_detaching_what_was_attached_restores_the_list(stage: Stage) -> None:
    """MPROG-LAW-004: wherever it was put, directly or by a link; the revision goes on by two."""
    stage.attach("a")
    stage.link("b")
    stage.attach("c")
    for flags, anchor in PLACEMENTS:
        before = stage.look()
        stage.attach("d", flags, by=anchor)
        assert stage.look().view.count == 4
        stage.detach("d")
        between = stage.look()
        stage.link("e", flags, by=anchor)
        assert stage.look().view.count == 4
        stage.close("e*")
        for step, after in ((2, between), (4, stage.look())):
            assert after.elements == before.elements, (flags, anchor)
            assert after.view.revision == before.view.revision + step, (flags, anchor)


def test_nothing_is_left_of_what_was_closed_and_detached(stage: Stage) -> None:
    """MPROG-LAW-009: no program and no link of the story."""
    links = {info.id for _, step in told(stage) for info in step.after.links.values()}
    for link in stage.links.values():
        link.close()
    progs = {prog.id for prog in stage.progs.values()}
    held = {stage.prog(letter).id for letter in "eo"}
    for prog in stage.progs.values():
        prog.close()
    wait_until(lambda: progs & set(Prog.ids()) == held, timeout=2, what="all but e and o to go")
    for side in (stage.side, stage.other):
        stage.calls.detach(stage.dev, attach_type=side)
    wait_until(lambda: not progs & set(Prog.ids()), timeout=2, what="e and o to go")
    assert not links & set(Link.ids())
