# SPDX-License-Identifier: MIT
"""Where a program or link lands in a cgroup's list, and what a replacement takes over."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf.cgroup import Cgroup, attach, detach, link, query
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import CAPACITY
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER as AFTER
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_BEFORE as BEFORE
from harness.guest.bpf.uapi import BPF_F_ID as ID
from harness.guest.bpf.uapi import BPF_F_LINK as LINK
from harness.guest.bpf.uapi import BPF_F_PREORDER as PREORDER
from harness.guest.bpf.uapi import BPF_F_QUERY_EFFECTIVE as EFFECTIVE
from harness.guest.waiting import wait_until
from scenarios.mprog.conftest import LoadCgroupSkb, ids

CLOSED = 1000

positions = pytest.mark.requires("cgroup_mprog")
early = pytest.mark.requires("cgroup_mprog", "cgroup_preorder")


@dataclass(frozen=True)
class Listed:
    """`A B* C` in `group`; the link owns B."""

    group: Cgroup
    a: Prog
    b: Prog
    c: Prog
    link: Link


@pytest.fixture
def listed(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> Iterator[Listed]:
    a, b, c = (cgroup_skb() for _ in range(3))
    attach(group, a, flags=MULTI)
    with link(group, b) as owner:
        attach(group, c, flags=MULTI)
        yield Listed(group, a, b, c, owner)


@positions
def test_programs_land_where_they_are_told_to_and_each_change_counts(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-016, -020, -041: both sides at once are no mistake in an empty list."""
    a, b, c, d = (cgroup_skb() for _ in range(4))
    attach(group, a, flags=MULTI | BEFORE | AFTER, expected_revision=1)
    attach(group, b, flags=MULTI | BEFORE, expected_revision=2)
    attach(group, c, flags=MULTI | AFTER, relative=b, expected_revision=3)
    attach(group, d, flags=MULTI, expected_revision=4)
    found = query(group)
    assert (found.prog_ids, found.revision, found.attach_flags) == (ids(b, c, a, d), 5, MULTI)
    detach(group, a, expected_revision=5)
    detach(group, b)
    assert (query(group).prog_ids, query(group).revision) == (ids(c, d), 7)


@positions
def test_links_land_where_they_are_told_to_and_each_change_counts(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-020, -036, -041."""
    a, b, c, d = (cgroup_skb() for _ in range(4))
    with (
        link(group, a, expected_revision=1) as first,
        link(group, b, flags=BEFORE | ID, relative=first, expected_revision=2) as second,
        link(group, c, flags=AFTER, relative=second, expected_revision=3),
        link(group, d, expected_revision=4),
    ):
        found = query(group)
        assert (found.prog_ids, found.revision, found.attach_flags) == (ids(b, c, a, d), 5, MULTI)
    assert (query(group).count, query(group).revision, query(group).attach_flags) == (0, 9, 0)


@positions
@pytest.mark.parametrize("by_id", [0, ID], ids=["fd", "id"])
def test_each_lands_right_beside_its_anchor(listed: Listed, cgroup_skb: LoadCgroupSkb, by_id: int) -> None:
    """MPROG-CGROUP-017, -019, -020: programs are placed by direct programs, links by links."""
    before, after, left, right = (cgroup_skb() for _ in range(4))
    attach(listed.group, before, flags=MULTI | BEFORE | by_id, relative=listed.c)
    attach(listed.group, after, flags=MULTI | AFTER | by_id, relative=listed.a)
    with (
        link(listed.group, left, flags=BEFORE | by_id, relative=listed.link),
        link(listed.group, right, flags=AFTER | by_id, relative=listed.link),
    ):
        order = (listed.a, after, left, listed.b, right, before, listed.c)
        assert query(listed.group).prog_ids == ids(*order)


@positions
def test_without_an_anchor_before_is_first_and_all_else_last(
    listed: Listed, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-020."""
    first, last, end, top, bottom = (cgroup_skb() for _ in range(5))
    attach(listed.group, first, flags=MULTI | BEFORE)
    attach(listed.group, last, flags=MULTI | AFTER)
    attach(listed.group, end, flags=MULTI)
    with link(listed.group, top, flags=BEFORE), link(listed.group, bottom, flags=AFTER):
        order = (top, first, listed.a, listed.b, listed.c, last, end, bottom)
        assert query(listed.group).prog_ids == ids(*order)


@early
def test_early_programs_are_placed_by_early_ones(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-018, -020, -047: one list, of which the early ones run first."""
    a, b, c, d, e = (cgroup_skb() for _ in range(5))
    attach(group, a, flags=MULTI)
    attach(group, b, flags=MULTI | PREORDER)
    with refused(errno.EINVAL):
        attach(group, c, flags=MULTI | AFTER, relative=b)
    attach(group, c, flags=MULTI | PREORDER | AFTER, relative=b, expected_revision=3)
    attach(group, d, flags=MULTI)
    attach(group, e, flags=MULTI | PREORDER | BEFORE, relative=c)
    assert query(group).prog_ids == ids(a, b, e, c, d)
    assert query(group, flags=EFFECTIVE).prog_ids == ids(b, e, c, a, d)


@early
def test_early_links_are_placed_by_early_ones_and_stay_so_when_updated(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-018, -020, -039, -047."""
    a, b, c, d, e = (cgroup_skb() for _ in range(5))
    with link(group, a), link(group, b, flags=PREORDER) as anchor:
        with refused(errno.EINVAL):
            link(group, c, flags=AFTER, relative=anchor)
        with (
            link(group, c, flags=PREORDER | AFTER, relative=anchor, expected_revision=3),
            link(group, d),
        ):
            assert query(group).prog_ids == ids(a, b, c, d)
            assert query(group, flags=EFFECTIVE).prog_ids == ids(b, c, a, d)
            anchor.update(e)
            assert query(group).prog_ids == ids(a, e, c, d)
            assert query(group, flags=EFFECTIVE).prog_ids == ids(e, c, a, d)


def test_a_replacement_takes_over_the_slot_and_the_reference(
    listed: Listed, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-011, -012: a program may replace itself, but not stand in the list twice."""
    d = cgroup_skb()
    old = listed.a.id
    attach(listed.group, d, flags=MULTI, replace=listed.a)
    attach(listed.group, d, flags=MULTI, replace=d)
    with refused(errno.EINVAL):
        attach(listed.group, listed.c, flags=MULTI, replace=d)
    assert query(listed.group).prog_ids == ids(d, listed.b, listed.c)
    listed.a.close()
    wait_until(lambda: old not in Prog.ids(), timeout=2, what="the replaced program to go")
    new = d.id
    d.close()
    assert new in Prog.ids()


@early
def test_a_replacement_counts_ignores_anchors_and_may_be_early(
    listed: Listed, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-011, -012, -041: itself in its own place counts as well."""
    revision = query(listed.group).revision
    attach(listed.group, listed.c, flags=MULTI, replace=listed.c)
    assert query(listed.group).revision == revision + 1
    d = cgroup_skb()
    attach(listed.group, d, flags=MULTI | PREORDER | LINK, replace=listed.c, relative_fd=CLOSED)
    assert query(listed.group).prog_ids == ids(listed.a, listed.b, d)
    assert query(listed.group, flags=EFFECTIVE).prog_ids == ids(d, listed.a, listed.b)


@pytest.mark.parametrize("mode", [0, OVERRIDE], ids=["NONE", "OVERRIDE"])
def test_without_multi_the_one_program_is_overwritten(
    group: Cgroup, cgroup_skb: LoadCgroupSkb, mode: int
) -> None:
    """MPROG-CGROUP-009, -013: also by itself; the one before is let go."""
    a, b = cgroup_skb(), cgroup_skb()
    old = a.id
    attach(group, a, flags=mode)
    attach(group, a, flags=mode)
    attach(group, b, flags=mode)
    found = query(group)
    assert (found.prog_ids, found.attach_flags) == (ids(b), mode)
    a.close()
    wait_until(lambda: old not in Prog.ids(), timeout=2, what="the overwritten program to go")


@early
@pytest.mark.parametrize("mode", [0, OVERRIDE], ids=["NONE", "OVERRIDE"])
def test_an_overwriting_request_is_not_asked_for_its_position(
    group: Cgroup, cgroup_skb: LoadCgroupSkb, mode: int
) -> None:
    """MPROG-CGROUP-013, -014 to -017: these checks come later, and so only in an empty list."""
    a, b, c = (cgroup_skb() for _ in range(3))
    with refused(errno.EINVAL):
        attach(group, a, flags=mode, relative_fd=CLOSED)
    with refused(errno.EBADF):
        attach(group, a, flags=mode | AFTER, relative_fd=CLOSED)
    attach(group, a, flags=mode | BEFORE | AFTER)
    attach(group, b, flags=mode | BEFORE | AFTER | LINK, relative_fd=CLOSED)
    attach(group, c, flags=mode | PREORDER, relative_fd=CLOSED)
    assert (query(group).prog_ids, query(group).revision) == (ids(c), 4)


def test_links_and_a_direct_attachment_share_a_program(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-021, -046: each element is gone with its own owner."""
    a = cgroup_skb()
    with link(group, a) as one, link(group, a):
        attach(group, a, flags=MULTI)
        assert query(group).prog_ids == ids(a, a, a)
        with refused(errno.EINVAL):
            attach(group, a, flags=MULTI)
        one.close()
        detach(group, a)
        with refused(errno.ENOENT):
            detach(group, a)
        assert query(group).prog_ids == ids(a)
    assert query(group).count == 0


def test_a_full_list_refuses_all_that_attaches(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-ABI-005, MPROG-CGROUP-009 to -012, MPROG-QUIRK-008: even a replacement, before it is looked up."""
    progs = [cgroup_skb() for _ in range(CAPACITY - 1)]
    extra, spare = cgroup_skb(), cgroup_skb()
    for prog in progs:
        attach(group, prog, flags=MULTI)
    with link(group, extra):
        before = query(group)
        assert before.prog_ids == ids(*progs, extra)
        with refused(errno.E2BIG):
            attach(group, spare, flags=MULTI)
        with refused(errno.E2BIG):
            link(group, spare)
        with refused(errno.E2BIG):
            attach(group, spare, flags=MULTI, replace=progs[0])
        with refused(errno.E2BIG):
            attach(group, progs[0], flags=MULTI, replace=spare)
        with refused(errno.EPERM):
            attach(group, spare, flags=OVERRIDE)
        assert query(group) == before
        detach(group, progs[0])
        attach(group, spare, flags=MULTI, replace=progs[1])
        assert query(group).prog_ids == ids(spare, *progs[2:], extra)


@positions
def test_a_full_list_is_noticed_before_a_bad_position_and_after_a_stale_revision(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-007, -010, -014."""
    spare = cgroup_skb()
    for _ in range(CAPACITY):
        attach(group, cgroup_skb(), flags=MULTI)
    with refused(errno.E2BIG):
        attach(group, spare, flags=MULTI, relative_fd=CLOSED)
    with refused(errno.ESTALE):
        attach(group, spare, flags=MULTI, expected_revision=1)
