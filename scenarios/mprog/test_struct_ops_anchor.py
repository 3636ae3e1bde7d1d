# SPDX-License-Identifier: MIT
"""A struct_ops link as anchor: it has no program that could stand in a list, so no list can know it.

The kernel reads the type of the program that it has not: all of these may end the machine (STOPS-LINK-027).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest.bpf import cgroup, netkit, tcx, uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID
from harness.guest.net import VethPair
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, LoadCgroupSkb, ids
from scenarios.struct_ops.algorithms import TYPE, load_idle

pytestmark = [pytest.mark.requires("struct_ops_link"), pytest.mark.usefixtures("panic_on_oops")]

crashes = pytest.mark.known_issue(
    "MPROG-QUIRK-001",
    reason="the type of a program that is not there is read",
    splat="bpf_mprog_tuple_relative",
)
miscounts = pytest.mark.known_issue(
    "MPROG-QUIRK-001", reason="an anchor without a program counts as no anchor"
)


@pytest.fixture
def registration() -> Iterator[Link]:
    """The link of a registered congestion control."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as clock:
        algorithm = load_idle(clock)
        try:
            with StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as ops:
                ops.update(algorithm.members())
                with ops.link() as link:
                    yield link
        finally:
            algorithm.close()


@crashes
@pytest.mark.parametrize("flags", [BPF_F_BEFORE, BPF_F_BEFORE | BPF_F_ID], ids=["descriptor", "id"])
def test_attaching_next_to_it_is_refused(
    flags: int, entry: Entry, sched_cls: LoadSchedCls, registration: Link
) -> None:
    """MPROG-QUIRK-001, MPROG-ANCHOR-012, -007: named by id it may be anybody's."""
    with refused(errno.EINVAL):
        tcx.attach(entry.dev, sched_cls(), flags=flags, relative=registration)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)


@crashes
def test_a_link_next_to_it_is_refused(entry: Entry, sched_cls: LoadSchedCls, registration: Link) -> None:
    """MPROG-QUIRK-001, MPROG-ANCHOR-012, -007."""
    with refused(errno.EINVAL):
        tcx.link(entry.dev, sched_cls(), flags=BPF_F_AFTER, relative=registration)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)


@crashes
def test_detaching_a_program_next_to_it_is_refused(entry: Entry, registration: Link) -> None:
    """MPROG-QUIRK-001, MPROG-ANCHOR-012, -007."""
    with refused(errno.EINVAL):
        tcx.detach(entry.dev, entry.a, flags=BPF_F_BEFORE, relative=registration)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)


@crashes
def test_attaching_next_to_it_at_a_netkit_device_is_refused(
    netkit_pair: Callable[..., VethPair], sched_cls: LoadSchedCls, registration: Link
) -> None:
    """MPROG-QUIRK-001, MPROG-ANCHOR-012, -007."""
    pair = netkit_pair()
    with refused(errno.EINVAL):
        netkit.attach(pair.a, sched_cls(), flags=BPF_F_BEFORE, relative=registration)
    assert netkit.query(pair.a).prog_ids == []


@miscounts
@pytest.mark.parametrize("flags", [BPF_F_BEFORE, BPF_F_AFTER], ids=["before", "after"])
def test_what_stands_next_to_it_is_nothing(flags: int, entry: Entry, registration: Link) -> None:
    """MPROG-QUIRK-001, MPROG-ANCHOR-008: a detach without a program finds neither the anchor nor a neighbour."""
    before = tcx.query(entry.dev)
    with refused(errno.ENOENT):
        tcx.detach(entry.dev, flags=flags, relative=registration)
    assert tcx.query(entry.dev) == before


@pytest.mark.requires("cgroup_mprog")
@pytest.mark.parametrize("flags", [BPF_F_BEFORE, BPF_F_AFTER | BPF_F_ID], ids=["descriptor", "id"])
def test_a_cgroup_does_not_find_it(
    flags: int, groups: tuple[Path, Path], cgroup_skb: LoadCgroupSkb, registration: Link
) -> None:
    """MPROG-QUIRK-001, MPROG-CGROUP-017, -019: links are compared, their programs not looked at."""
    group, _ = groups
    prog: Prog = cgroup_skb()
    with cgroup.link(group, prog):
        with refused(errno.ENOENT):
            cgroup.link(group, prog, flags=flags, relative=registration)
        assert cgroup.query(group).prog_ids == [prog.id]
