# SPDX-License-Identifier: MIT
"""Where a program lands in the list, and what is refused."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_F_ID,
)
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids
from scenarios.mprog.requests import Bench


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


def test_an_attached_program_lands_at_the_named_place(bench: Bench) -> None:
    """MPROG-ATTACH-008 to -011, -013 to -027, MPROG-VEC-001 to -022, -037, -038."""
    bench.check("""
        attach D | 0                 | -   | - | A B* C D
        attach D | BEFORE            | -   | - | D A B* C
        attach D | AFTER             | -   | - | A B* C D
        attach D | BEFORE            | A   | - | D A B* C
        attach D | BEFORE            | B   | - | A D B* C
        attach D | BEFORE            | C   | - | A B* D C
        attach D | AFTER             | A   | - | A D B* C
        attach D | AFTER             | B   | - | A B* D C
        attach D | AFTER             | C   | - | A B* C D
        attach D | BEFORE ID         | C   | - | A B* D C
        attach D | BEFORE LINK       | b   | - | A D B* C
        attach D | AFTER LINK        | b   | - | A B* D C
        attach D | BEFORE ID LINK    | b   | - | A D B* C
        attach D | AFTER ID LINK     | b   | - | A B* D C
        attach D | BEFORE            | X   | - | ENOENT
        attach D | AFTER             | X   | - | ENOENT
        attach D | BEFORE            | D   | - | ENOENT
        attach D | BEFORE AFTER      | -   | - | ERANGE
        attach D | BEFORE AFTER      | A   | - | ERANGE
        attach D | BEFORE AFTER LINK | b   | - | ERANGE
        attach D | BEFORE AFTER      | X   | - | ENOENT
        attach D | 0                 | A   | - | EINVAL
        attach D | ID                | A   | - | EINVAL
        attach D | LINK              | b   | - | EINVAL
        attach D | ID LINK           | b   | - | EINVAL
        attach A | 0                 | -   | - | EEXIST
        attach B | 0                 | -   | - | EEXIST
        attach C | BEFORE            | A   | - | EEXIST
    """)


def test_an_empty_list_knows_first_and_last_but_not_both(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-019 to -021, -024, -025: and no neighbour; what was refused leaves no list behind."""
    prog, stranger = sched_cls(), sched_cls()
    for number, flags, anchor in (
        (errno.ERANGE, BPF_F_BEFORE | BPF_F_AFTER, None),
        (errno.ENOENT, BPF_F_BEFORE | BPF_F_AFTER, stranger),
        (errno.ENOENT, BPF_F_BEFORE, stranger),
        (errno.EINVAL, 0, stranger),
    ):
        with refused(number):
            tcx.attach(dev, prog, flags=flags, relative=anchor)
    # A list that was there and empty would say ESTALE.
    with refused(errno.ENOENT):
        tcx.detach(dev, prog, expected_revision=77)
    for flags in (0, BPF_F_BEFORE, BPF_F_AFTER):
        tcx.attach(dev, prog, flags=flags)
        assert tcx.query(dev).prog_ids == ids(prog)
        tcx.detach(dev)


def test_replace_takes_the_slot_if_the_named_place_agrees(bench: Bench) -> None:
    """MPROG-ATTACH-006, -008, -010, -011, -014, -016, -030, -032 to -036, -038, MPROG-VEC-023 to -036, -039, -040."""
    bench.check("""
        attach D | REPLACE              | -    | A    | D B* C
        attach D | REPLACE              | -    | C    | A B* D
        attach D | REPLACE              | -    | B    | EBUSY
        attach D | REPLACE              | -    | X    | ENOENT
        attach D | REPLACE              | -    | D    | ENOENT
        attach D | REPLACE              | -    | F    | EINVAL
        attach D | REPLACE              | -    | map  | EINVAL
        attach D | REPLACE              | -    | b    | EINVAL
        attach D | REPLACE              | -    | shut | EBADF
        attach D | 0                    | -    | shut | A B* C D
        attach D | REPLACE              | C    | A    | D B* C
        attach D | REPLACE              | X    | A    | D B* C
        attach D | REPLACE              | shut | A    | EBADF
        attach D | REPLACE ID           | C    | A    | D B* C
        attach D | REPLACE LINK         | x    | A    | D B* C
        attach D | REPLACE BEFORE       | -    | A    | ERANGE
        attach D | REPLACE BEFORE       | -    | C    | ERANGE
        attach D | REPLACE AFTER        | -    | A    | ERANGE
        attach D | REPLACE AFTER        | -    | C    | ERANGE
        attach D | REPLACE BEFORE       | B    | A    | D B* C
        attach D | REPLACE BEFORE LINK  | b    | A    | D B* C
        attach D | REPLACE BEFORE       | C    | A    | ERANGE
        attach D | REPLACE AFTER        | B    | C    | A B* D
        attach D | REPLACE AFTER ID     | B    | C    | A B* D
        attach D | REPLACE AFTER        | A    | C    | ERANGE
        attach D | REPLACE BEFORE       | A    | A    | ERANGE
        attach D | REPLACE AFTER        | A    | A    | ERANGE
        attach D | REPLACE BEFORE AFTER | B    | A    | ERANGE
        attach D | REPLACE BEFORE       | X    | A    | ENOENT
        attach D | REPLACE AFTER        | X    | A    | ENOENT
        attach D | REPLACE LINK         | b    | B    | EBUSY
        attach D | REPLACE BEFORE LINK  | b    | B    | EBUSY
        attach A | REPLACE              | -    | A    | EEXIST
        attach A | REPLACE              | -    | C    | EEXIST
        attach B | REPLACE              | -    | A    | EEXIST
        attach A | REPLACE              | -    | B    | EEXIST
    """)
