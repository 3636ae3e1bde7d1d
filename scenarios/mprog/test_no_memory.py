# SPDX-License-Identifier: MIT
"""Calls about ordered lists, each with every one of its allocations failing in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from harness.guest.bpf import cgroup, netkit, tcx, uapi
from harness.guest.bpf.attrs import LinkCreateMprog, LinkDetach, LinkUpdate, ProgAttach
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.mprog import QueryResult
from harness.guest.bpf.prog import Prog
from harness.guest.failslab import Scene, Trial, closing, prepared, starve
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import LoadCgroupSkb, ids

pytestmark = pytest.mark.requires("failslab")


@dataclass(frozen=True)
class List:
    """An ordered list with two programs, `first` attached directly and `second` too, and one more to play with."""

    family: Any
    target: int
    attach_type: int
    first: Prog
    second: Prog
    newcomer: Prog
    flags: int = 0
    further: Callable[[], object] = lambda: None

    def look(self) -> tuple[QueryResult, object]:
        return self.query(), self.further()

    def query(self) -> QueryResult:
        result: QueryResult = self.family.query(self.target, attach_type=self.attach_type)
        return result

    def attach(self, prog: Prog) -> None:
        self.family.attach(self.target, prog, attach_type=self.attach_type, flags=self.flags)

    def detach(self, prog: Prog) -> None:
        self.family.detach(self.target, prog, attach_type=self.attach_type)

    def attach_attributes(self) -> ProgAttach:
        return ProgAttach(
            target_fd=self.target,
            attach_bpf_fd=self.newcomer.fd,
            attach_type=self.attach_type,
            attach_flags=self.flags,
        )

    def link_attributes(self) -> LinkCreateMprog:
        return LinkCreateMprog(prog_fd=self.newcomer.fd, target_fd=self.target, attach_type=self.attach_type)


@pytest.fixture(params=["tcx", "netkit", "cgroup"])
def row(request: pytest.FixtureRequest) -> List:
    """A list of each kind with nothing in it; the cgroup has one below it."""
    if request.param == "cgroup":
        group: Cgroup = request.getfixturevalue("group")
        below = group.child("below")
        load: LoadCgroupSkb = request.getfixturevalue("cgroup_skb")
        return List(
            cgroup,
            group.fd,
            uapi.BPF_CGROUP_INET_EGRESS,
            load(),
            load(),
            load(),
            uapi.BPF_F_ALLOW_MULTI,
            lambda: cgroup.query(below, flags=uapi.BPF_F_QUERY_EFFECTIVE),
        )
    family, attach_type, ends = {
        "tcx": (tcx, uapi.BPF_TCX_EGRESS, "ends"),
        "netkit": (netkit, uapi.BPF_NETKIT_PEER, "netkit_ends"),
    }[request.param]
    device: Device = request.getfixturevalue(ends)[0]
    sched_cls: LoadSchedCls = request.getfixturevalue("sched_cls")
    return List(family, device.ifindex, attach_type, sched_cls(), sched_cls(), sched_cls())


def attaching(row: List, *others: Prog) -> Scene:
    """The newcomer is attached directly, behind others."""

    @contextmanager
    def scene() -> Iterator[Trial]:
        for prog in others:
            row.attach(prog)

        def undo(_: int) -> None:
            assert row.query().prog_ids == ids(*others, row.newcomer)
            row.detach(row.newcomer)

        yield Trial(prepared(uapi.BPF_PROG_ATTACH, row.attach_attributes()), row.look, undo)
        for prog in others:
            row.detach(prog)

    return scene


def linking(row: List, *others: Prog) -> Scene:
    """The newcomer is attached by a link, behind others."""

    @contextmanager
    def scene() -> Iterator[Trial]:
        for prog in others:
            row.attach(prog)

        def undo(fd: int) -> None:
            assert row.query().prog_ids == ids(*others, row.newcomer)
            os.close(fd)

        yield Trial(prepared(uapi.BPF_LINK_CREATE, row.link_attributes()), row.look, undo)
        for prog in others:
            row.detach(prog)

    return scene


def test_attaching_without_memory_changes_nothing(row: List) -> None:
    """MPROG-NOMEM-001: the first program of a list, and one behind others."""
    assert starve(attaching(row)).refused or row.family is netkit
    starve(attaching(row, row.first, row.second))


def test_linking_without_memory_changes_nothing(row: List) -> None:
    """MPROG-NOMEM-002: the first program of a list, and one behind others."""
    for others in ((), (row.first, row.second)):
        assert starve(linking(row, *others)).refused


def test_programs_go_without_memory(row: List) -> None:
    """MPROG-NOMEM-003: detach never fails for lack of it, and the others stay."""

    @contextmanager
    def scene() -> Iterator[Trial]:
        for prog in (row.first, row.newcomer, row.second):
            row.attach(prog)

        def check(_: int) -> None:
            assert row.query().prog_ids == ids(row.first, row.second)
            effective = row.further()
            if isinstance(effective, QueryResult):
                assert effective.prog_ids == ids(row.first, row.second)

        attributes = ProgAttach(
            target_fd=row.target, attach_bpf_fd=row.newcomer.fd, attach_type=row.attach_type
        )
        yield Trial(prepared(uapi.BPF_PROG_DETACH, attributes), row.look, check)
        row.detach(row.first)
        row.detach(row.second)

    assert starve(scene, refusals=()).refused == 0


def test_links_change_hands_and_go_without_memory(row: List) -> None:
    """MPROG-NOMEM-003, -004: another program for a link, its detach, and the close of its last descriptor."""

    @contextmanager
    def scene(way: str) -> Iterator[Trial]:
        row.attach(row.first)
        with row.family.link(row.target, row.newcomer, attach_type=row.attach_type) as link:
            attributes = {
                "update": (uapi.BPF_LINK_UPDATE, LinkUpdate(link_fd=link.fd, new_prog_fd=row.second.fd)),
                "detach": (uapi.BPF_LINK_DETACH, LinkDetach(link_fd=link.fd)),
            }
            call = closing(link.release()) if way == "close" else prepared(*attributes[way])

            def check(_: int) -> None:
                left = ids(row.first, row.second) if way == "update" else ids(row.first)
                assert row.query().prog_ids == left

            yield Trial(call, row.look, check)
        row.detach(row.first)

    for way in ("update", "detach", "close"):
        assert starve(partial(scene, way), refusals=()).refused == 0
