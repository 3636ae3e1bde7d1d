# SPDX-License-Identifier: MIT
"""A device is named by its number in the caller's network namespace; a link needs no name for its device."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS
from harness.guest.net import Device
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import move_link, new_veth
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids


@pytest.fixture
def elsewhere(entry: Entry) -> Iterator[Device]:
    """In another namespace, a device with the number of the entry's."""
    with NetNamespace.create() as other:
        number = entry.dev.ifindex
        macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
        other.rtnl.request(new_veth("same", number, macs[0], "peer", number + 1, macs[1], other.fd))
        yield Device("same", number, other)


def test_the_same_number_elsewhere_is_another_device(
    entry: Entry, elsewhere: Device, sched_cls: LoadSchedCls
) -> None:
    """MPROG-ATTACH-005, MPROG-DETACH-005, MPROG-LINK-004, MPROG-QUERY-003, MPROG-LIFE-001."""
    before = tcx.query(entry.dev)
    with elsewhere.ns.entered():
        assert tcx.query(elsewhere).count == 0
        with refused(errno.ENOENT):
            tcx.detach(elsewhere, entry.a)
        tcx.attach(elsewhere, entry.a)
        with tcx.link(elsewhere, entry.c) as link:
            assert tcx.query(elsewhere).prog_ids == ids(entry.a, entry.c)
            assert link.info().ifindex == entry.link.info().ifindex
    assert tcx.query(entry.dev) == before


def test_no_such_number_is_no_device(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-005, MPROG-DETACH-005, MPROG-LINK-004, MPROG-QUERY-003: although there is one in another
    namespace."""
    prog = sched_cls()
    with NetNamespace.create() as empty, empty.entered():
        with refused(errno.ENODEV):
            tcx.query(entry.dev)
        with refused(errno.ENODEV):
            tcx.attach(entry.dev, prog)
        with refused(errno.ENODEV):
            tcx.link(entry.dev, prog)
        with refused(errno.ENODEV):
            tcx.detach(entry.dev, entry.a)
        # The link knows its device.
        entry.link.update(prog)
        assert entry.link.info().ifindex == entry.dev.ifindex
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, prog, entry.c)


def test_lists_and_links_follow_a_device_to_another_namespace(
    entry: Entry, elsewhere: Device, sched_cls: LoadSchedCls
) -> None:
    """MPROG-LIFE-005, MPROG-LINK-047: with their revision, but without clsact; the number is another one, as its own is
    taken there. The links work from anywhere as before."""
    old, other = entry.dev, elsewhere.ns
    qdisc.add_clsact(old)
    outward, d = sched_cls(), sched_cls()
    closed = tcx.link(old, outward, attach_type=BPF_TCX_EGRESS)
    before = tcx.query(old), tcx.query(old, attach_type=BPF_TCX_EGRESS)
    old.ns.rtnl.request(move_link(old.ifindex, other.fd))
    with refused(errno.ENODEV):
        tcx.query(old)
    moved = Device.find(other, old.name)
    assert moved.ifindex != old.ifindex
    assert "clsact" not in qdisc.kinds(moved)

    def lists() -> tuple[tcx.QueryResult, tcx.QueryResult]:
        return other.run(tcx.query, moved), other.run(tcx.query, moved, attach_type=BPF_TCX_EGRESS)

    assert lists() == before
    assert entry.link.info().ifindex == closed.info().ifindex == moved.ifindex
    with NetNamespace.create() as third, third.entered():
        entry.link.update(d, old=entry.b)
        assert lists()[0].prog_ids == ids(entry.a, d, entry.c)
        closed.close()
        entry.link.detach()
    assert (lists()[0].prog_ids, lists()[1].count) == (ids(entry.a, entry.c), 0)
    with other.entered():
        tcx.detach(moved, entry.a)
        tcx.detach(moved, entry.c)
    # Nothing holds the list any more: with clsact the revision would have survived.
    assert lists()[0].revision == lists()[1].revision == 1
