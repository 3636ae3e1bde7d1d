# SPDX-License-Identifier: MIT
"""Programs come, go and change while frames flow: each frame meets one whole list, and arrives once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import (
    BPF_F_BEFORE,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
    TCX_DROP,
    TCX_NEXT,
)
from harness.guest.net import Device, VethPair
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.course import ARRIVED, FRAMES, Course

FRAMES_BETWEEN_CHANGES = 4
CHANGES = 10

pytestmark = pytest.mark.vm(cpus=2)


@pytest.fixture
def course(veth: VethPair, sched_cls: LoadSchedCls) -> Iterator[Course]:
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8 * FRAMES, 1, name="course") as notes:
        yield Course(veth, notes, sched_cls)


@dataclass(frozen=True)
class Stage:
    """The hook at which a change happens."""

    course: Course
    dev: Device
    attach_type: int

    def attach(
        self, prog: Prog, *, flags: int = 0, relative: Prog | None = None, replace: Prog | None = None
    ) -> None:
        tcx.attach(
            self.dev, prog, attach_type=self.attach_type, flags=flags, relative=relative, replace=replace
        )

    def detach(self, prog: Prog) -> None:
        tcx.detach(self.dev, prog, attach_type=self.attach_type)

    def link(self, prog: Prog, *, flags: int = 0) -> Link:
        return tcx.link(self.dev, prog, attach_type=self.attach_type, flags=flags)

    def progs(self, *numbers: int, verdict: int = TCX_NEXT) -> list[Prog]:
        return [self.course.prog(number, verdict) for number in numbers]


Changes = Generator[None]

# Each of these makes a list, and with each further step one change to it.


def inserting_and_removing(stage: Stage) -> Changes:
    first, last, middle = stage.progs(1, 2, 3)
    stage.attach(first)
    stage.attach(last)
    yield
    while True:
        stage.attach(middle, flags=BPF_F_BEFORE, relative=last)
        yield
        stage.detach(middle)
        yield


def linking_in_front_and_closing(stage: Stage) -> Changes:
    first, second, linked = stage.progs(1, 2, 3)
    stage.attach(first)
    stage.attach(second)
    yield
    while True:
        with stage.link(linked, flags=BPF_F_BEFORE):
            yield
        yield


def replacing(stage: Stage) -> Changes:
    first, last, other = stage.progs(1, 2, 3)
    stage.attach(first)
    stage.attach(last)
    yield
    while True:
        stage.attach(other, replace=first)
        yield
        stage.attach(first, replace=other)
        yield


def replacing_one_that_drops(stage: Stage) -> Changes:
    one, other = stage.progs(1, 3, verdict=TCX_DROP)
    stage.attach(one)
    yield
    while True:
        stage.attach(other, replace=one)
        yield
        stage.attach(one, replace=other)
        yield


def updating_a_link(stage: Stage) -> Changes:
    first, last, other = stage.progs(1, 2, 3)
    stage.attach(first)
    with stage.link(last) as link:
        yield
        while True:
            link.update(other)
            yield
            link.update(last)
            yield


def making_and_unmaking_the_list(stage: Stage) -> Changes:
    (only,) = stage.progs(1)
    yield
    while True:
        stage.attach(only)
        yield
        stage.detach(only)
        yield


def adding_and_deleting_clsact(stage: Stage) -> Changes:
    first, legacy = stage.progs(1, 3)
    stage.attach(first)
    yield
    while True:
        qdisc.add_clsact(stage.dev)
        qdisc.add_bpf_filter(stage.dev, legacy.fd, egress=stage.attach_type == BPF_TCX_EGRESS)
        yield
        qdisc.delete_clsact(stage.dev)
        yield


def ways_during(changing: Callable[[Stage], Changes], stage: Stage) -> Counter[tuple[int, ...]]:
    """The ways of the frames that flow while the list changes, some after each change."""
    with stage.dev.ns.entered(), closing(changing(stage)) as changes:
        next(changes)
        with stage.course.flowing():
            for _ in range(CHANGES):
                stage.course.await_frames(FRAMES_BETWEEN_CHANGES)
                next(changes)
            stage.course.await_frames(FRAMES_BETWEEN_CHANGES)
        return stage.course.ways()


@pytest.mark.parametrize("attach_type", [BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
@pytest.mark.parametrize(
    ("changing", "before", "after"),
    [
        (inserting_and_removing, (1, 2, ARRIVED), (1, 3, 2, ARRIVED)),
        (linking_in_front_and_closing, (1, 2, ARRIVED), (3, 1, 2, ARRIVED)),
        (replacing, (1, 2, ARRIVED), (3, 2, ARRIVED)),
        (replacing_one_that_drops, (1,), (3,)),
        (updating_a_link, (1, 2, ARRIVED), (1, 3, ARRIVED)),
        (making_and_unmaking_the_list, (ARRIVED,), (1, ARRIVED)),
    ],
)
def test_a_frame_meets_the_old_list_or_the_new_and_arrives_once(
    veth: VethPair,
    course: Course,
    attach_type: int,
    changing: Callable[[Stage], Changes],
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> None:
    """MPROG-RUN-010, MPROG-ATTACH-037, MPROG-LIFE-009: never a mixture, a gap, or a frame twice."""
    dev = veth.b if attach_type == BPF_TCX_INGRESS else veth.a
    ways = ways_during(changing, Stage(course, dev, attach_type))
    assert set(ways) == {before, after}
    assert min(ways.values()) >= CHANGES // 2 * FRAMES_BETWEEN_CHANGES


def test_frames_come_in_past_the_list_while_clsact_comes_and_goes(veth: VethPair, course: Course) -> None:
    """MPROG-LEGACY-001, -003, MPROG-RUN-010: each meets the list, and the filter behind it or no filter."""
    ways = ways_during(adding_and_deleting_clsact, Stage(course, veth.b, BPF_TCX_INGRESS))
    assert set(ways) == {(1, ARRIVED), (1, 3, ARRIVED)}


def test_frames_go_out_past_the_list_while_clsact_comes_and_goes(veth: VethPair, course: Course) -> None:
    """MPROG-LEGACY-001, -003, MPROG-RUN-010: on the way out, too, but some may then be lost.

    Adding or deleting any qdisc takes the device's transmit queues down for a moment
    (net/sched/sch_api.c:qdisc_graft, dev_deactivate); what is sent meanwhile goes to the qdisc that drops all.
    """
    ways = ways_during(adding_and_deleting_clsact, Stage(course, veth.a, BPF_TCX_EGRESS))
    assert {(1, ARRIVED), (1, 3, ARRIVED)} <= set(ways) <= {(1, ARRIVED), (1, 3, ARRIVED), (1,), (1, 3)}
