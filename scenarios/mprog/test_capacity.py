# SPDX-License-Identifier: MIT
"""A list takes 63 programs: what a full one refuses, and how it gets room again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids

CAPACITY = 63


@dataclass(frozen=True)
class FullList:
    """A list of 63 programs; links own the first and the last, the others are attached directly."""

    dev: Device
    attach_type: int
    progs: list[Prog]
    first: Link
    last: Link

    def prog_ids(self) -> list[int]:
        return tcx.query(self.dev, attach_type=self.attach_type).prog_ids


@pytest.fixture(params=[BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
def full(request: pytest.FixtureRequest, dev: Device, sched_cls: LoadSchedCls) -> Iterator[FullList]:
    direction = request.param
    progs = [sched_cls() for _ in range(CAPACITY)]
    with tcx.link(dev, progs[0], attach_type=direction) as first:
        for prog in progs[1:-1]:
            tcx.attach(dev, prog, attach_type=direction)
        with tcx.link(dev, progs[-1], attach_type=direction) as last:
            yield FullList(dev, direction, progs, first, last)


def test_a_full_list_refuses_one_more_at_any_place(full: FullList, sched_cls: LoadSchedCls) -> None:
    """MPROG-ABI-005, MPROG-ATTACH-012, MPROG-LINK-005, MPROG-FIX-001: before it looks for the place, but after it has
    looked up the anchor; the other direction has room of its own."""
    extra, stranger = sched_cls(), sched_cls()
    places: list[tuple[int, Prog | Link | None]] = [
        (0, None),
        (BPF_F_BEFORE, None),
        (BPF_F_AFTER, None),
        (BPF_F_BEFORE, full.progs[0]),
        (BPF_F_AFTER, full.progs[31]),
        (BPF_F_AFTER, full.progs[-1]),
        (BPF_F_BEFORE | BPF_F_ID, full.last),
        (BPF_F_AFTER, full.last),
        (BPF_F_AFTER, stranger),
        (0, stranger),
    ]
    before = tcx.query(full.dev, attach_type=full.attach_type)
    for flags, anchor in places:
        with refused(errno.ERANGE):
            tcx.attach(full.dev, extra, attach_type=full.attach_type, flags=flags, relative=anchor)
        with refused(errno.ERANGE):
            tcx.link(full.dev, extra, attach_type=full.attach_type, flags=flags, relative=anchor)
    with refused(errno.EEXIST):
        tcx.attach(full.dev, full.progs[5], attach_type=full.attach_type)
    with refused(errno.EBADF):
        tcx.attach(full.dev, extra, attach_type=full.attach_type, flags=BPF_F_AFTER, relative_fd=1 << 30)
    assert tcx.query(full.dev, attach_type=full.attach_type) == before
    assert before.prog_ids == ids(*full.progs)
    other = BPF_TCX_EGRESS if full.attach_type == BPF_TCX_INGRESS else BPF_TCX_INGRESS
    tcx.attach(full.dev, extra, attach_type=other)


def test_a_full_list_lets_its_programs_be_replaced(full: FullList, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-031, MPROG-LINK-029: of those attached directly and of those of links, at either end."""
    middle, front, back = (sched_cls() for _ in range(3))
    tcx.attach(full.dev, middle, attach_type=full.attach_type, replace=full.progs[61])
    full.first.update(front)
    full.last.update(back, old=full.progs[-1])
    assert full.prog_ids() == ids(front, *full.progs[1:61], middle, back)


def test_the_end_of_a_full_list_must_be_named(full: FullList, sched_cls: LoadSchedCls) -> None:
    """MPROG-DETACH-016, -026, MPROG-QUIRK-003: the place behind the last one does not exist; once there is room it
    does again."""
    full.last.close()
    last = sched_cls()
    tcx.attach(full.dev, last, attach_type=full.attach_type)
    progs = [*full.progs[:-1], last]
    for flags, anchor in ((0, None), (BPF_F_AFTER, None), (BPF_F_AFTER, last)):
        with refused(errno.ERANGE):
            tcx.detach(full.dev, attach_type=full.attach_type, flags=flags, relative=anchor)
    with refused(errno.ERANGE):
        tcx.detach(full.dev, last, attach_type=full.attach_type, flags=BPF_F_AFTER)
    assert full.prog_ids() == ids(*progs)
    tcx.detach(full.dev, last, attach_type=full.attach_type, flags=BPF_F_AFTER, relative=progs[-2])
    tcx.detach(full.dev, attach_type=full.attach_type)
    assert full.prog_ids() == ids(*progs[:-2])


def test_a_full_list_can_be_shortened_in_front_of_its_end(full: FullList) -> None:
    """MPROG-DETACH-021, -023, -024: anonymously, too; what stands behind the last but one is the last."""
    with refused(errno.EBUSY):
        tcx.detach(full.dev, attach_type=full.attach_type, flags=BPF_F_BEFORE)
    with refused(errno.EBUSY):
        tcx.detach(full.dev, attach_type=full.attach_type, flags=BPF_F_AFTER, relative=full.progs[-2])
    tcx.detach(full.dev, attach_type=full.attach_type, flags=BPF_F_BEFORE, relative=full.last)
    assert full.prog_ids() == ids(*full.progs[:-2], full.progs[-1])


def test_links_leave_a_full_list(full: FullList) -> None:
    """MPROG-LINK-048: from its last place, too, where an anonymous detach would be refused; then one more fits."""
    rest = list(full.progs)
    for link, gone in ((full.first, full.progs[0]), (full.last, full.progs[-1])):
        link.detach()
        rest.remove(gone)
        assert full.prog_ids() == ids(*rest)
        with tcx.link(full.dev, gone, attach_type=full.attach_type):
            if gone is full.progs[0]:
                with refused(errno.ERANGE):
                    tcx.detach(full.dev, attach_type=full.attach_type)
            assert full.prog_ids() == ids(*rest, gone)
        assert full.prog_ids() == ids(*rest)
