# SPDX-License-Identifier: MIT
"""Where a program lands in the list, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_REPLACE,
)
from harness.guest.net import Device, VethPair
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids

CAPACITY = 63


def test_without_an_anchor_before_means_first_and_after_means_last(
    dev: Device, sched_cls: LoadSchedCls
) -> None:
    """MPROG-ATTACH-019 to -021."""
    a, b, first, last = (sched_cls() for _ in range(4))
    tcx.attach(dev, a)
    tcx.attach(dev, b)
    tcx.attach(dev, first, flags=BPF_F_BEFORE)
    tcx.attach(dev, last, flags=BPF_F_AFTER)
    assert tcx.query(dev).prog_ids == ids(first, a, b, last)


@pytest.mark.parametrize("by_id", [0, BPF_F_ID], ids=["fd", "id"])
@pytest.mark.parametrize("kind", ["prog", "link"])
def test_a_program_lands_right_beside_its_anchor(
    entry: Entry, sched_cls: LoadSchedCls, kind: str, by_id: int
) -> None:
    """MPROG-ATTACH-022, -023, MPROG-ANCHOR-002 to -009: the anchor is B, named in each of the four ways."""
    anchor = entry.link if kind == "link" else entry.b
    before, after = sched_cls(), sched_cls()
    tcx.attach(entry.dev, before, flags=BPF_F_BEFORE | by_id, relative=anchor)
    tcx.attach(entry.dev, after, flags=BPF_F_AFTER | by_id, relative=anchor)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, before, entry.b, after, entry.c)


def test_a_link_is_placed_by_the_same_rules(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-005."""
    before, after = sched_cls(), sched_cls()
    with (
        tcx.link(entry.dev, before, flags=BPF_F_BEFORE, relative=entry.c) as one,
        tcx.link(entry.dev, after, flags=BPF_F_AFTER | BPF_F_ID, relative=entry.link) as two,
    ):
        found = tcx.query(entry.dev)
        assert found.prog_ids == ids(entry.a, entry.b, after, before, entry.c)
        assert found.link_ids == [0, entry.link.id, two.id, one.id, 0]


def test_replace_takes_over_the_slot_and_the_reference(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-030, -033: also together with BEFORE, if the place is the same."""
    d, e = sched_cls(), sched_cls()
    tcx.attach(entry.dev, d, replace=entry.a)
    tcx.attach(entry.dev, e, replace=d, flags=BPF_F_BEFORE, relative=entry.b)
    assert tcx.query(entry.dev).prog_ids == ids(e, entry.b, entry.c)


def test_a_full_list_refuses_one_more_but_not_a_replacement(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-ABI-005, MPROG-ATTACH-012, -031, MPROG-QUIRK-003: its last program must be named to go."""
    progs = [sched_cls() for _ in range(CAPACITY)]
    extra = sched_cls()
    for prog in progs:
        tcx.attach(dev, prog)
    with refused(errno.ERANGE):
        tcx.attach(dev, extra, flags=BPF_F_BEFORE)
    tcx.attach(dev, extra, replace=progs[31])
    progs[31] = extra
    assert tcx.query(dev).prog_ids == ids(*progs)
    with refused(errno.ERANGE):
        tcx.detach(dev)
    tcx.detach(dev, progs.pop())
    tcx.detach(dev)
    assert tcx.query(dev).prog_ids == ids(*progs[:-1])


def test_detach_takes_the_neighbour_of_the_anchor(entry: Entry) -> None:
    """MPROG-DETACH-020, -023, -024, MPROG-QUIRK-005: and the anchor itself where it has no neighbour."""
    tcx.detach(entry.dev, flags=BPF_F_AFTER, relative=entry.b)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b)
    tcx.detach(entry.dev, flags=BPF_F_BEFORE, relative=entry.a)
    assert tcx.query(entry.dev).prog_ids == ids(entry.b)


Request = Callable[[Entry, LoadSchedCls], None]

# MPROG-ATTACH-003 to -027, -033 to -038, MPROG-ANCHOR-003, -004, MPROG-DETACH-006 to -017
REFUSALS: dict[str, tuple[int, Request]] = {
    "a program that is there": (errno.EEXIST, lambda e, _: tcx.attach(e.dev, e.a)),
    "a program that a link owns": (errno.EEXIST, lambda e, _: tcx.attach(e.dev, e.b)),
    "A in place of A": (errno.EEXIST, lambda e, _: tcx.attach(e.dev, e.a, replace=e.a)),
    "before and after": (errno.ERANGE, lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_BEFORE | BPF_F_AFTER)),
    "before a stranger": (
        errno.ENOENT,
        lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_BEFORE, relative=n()),
    ),
    "an unknown id": (errno.ENOENT, lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_AFTER | BPF_F_ID)),
    "link number 0": (errno.EINVAL, lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_AFTER | BPF_F_LINK)),
    "an anchor without a side": (errno.EINVAL, lambda e, n: tcx.attach(e.dev, n(), relative=e.a)),
    "a closed anchor": (
        errno.EBADF,
        lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_AFTER, relative_fd=1000),
    ),
    "replacing a stranger": (errno.ENOENT, lambda e, n: tcx.attach(e.dev, n(), replace=n())),
    "replacing what a link owns": (errno.EBUSY, lambda e, n: tcx.attach(e.dev, n(), replace=e.b)),
    "replacing elsewhere": (
        errno.ERANGE,
        lambda e, n: tcx.attach(e.dev, n(), replace=e.a, flags=BPF_F_BEFORE, relative=e.c),
    ),
    "a flag of cgroups": (errno.EINVAL, lambda e, n: tcx.attach(e.dev, n(), flags=BPF_F_ALLOW_MULTI)),
    "a stale revision": (errno.ESTALE, lambda e, n: tcx.attach(e.dev, n(), expected_revision=3)),
    "detaching a stranger": (errno.ENOENT, lambda e, n: tcx.detach(e.dev, n())),
    "detaching what a link owns": (errno.EBUSY, lambda e, _: tcx.detach(e.dev, e.b)),
    "detaching what follows A": (
        errno.EBUSY,
        lambda e, _: tcx.detach(e.dev, flags=BPF_F_AFTER, relative=e.a),
    ),
    "detaching with replace": (errno.EINVAL, lambda e, _: tcx.detach(e.dev, e.a, flags=BPF_F_REPLACE)),
    "detaching with a stale revision": (
        errno.ESTALE,
        lambda e, _: tcx.detach(e.dev, e.a, expected_revision=5),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_request_changes_nothing(entry: Entry, sched_cls: LoadSchedCls, case: str) -> None:
    """MPROG-LAW-007: neither list nor revision nor the link."""
    number, request = REFUSALS[case]
    before = tcx.query(entry.dev), entry.link.info()
    with refused(number):
        request(entry, sched_cls)
    assert (tcx.query(entry.dev), entry.link.info()) == before


def test_a_link_of_another_device_is_no_anchor(entry: Entry, veth: VethPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-ANCHOR-010: although the same program is in this entry too."""
    with veth.ns_a.entered():
        elsewhere = tcx.link(veth.a, entry.a)
    with elsewhere, refused(errno.ENOENT):
        tcx.attach(entry.dev, sched_cls(), flags=BPF_F_BEFORE, relative=elsewhere)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)
