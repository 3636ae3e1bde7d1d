# SPDX-License-Identifier: MIT
"""Where a program lands in the list, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID, BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device, VethPair
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, ids
from scenarios.mprog.requests import Bench
from scenarios.mprog.vectors import rows


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


@dataclass(frozen=True)
class Hook:
    """One direction of a device, and the pair whose frames pass it on their way from a to b."""

    dev: Device
    attach_type: int
    pair: VethPair
    journal: Journal

    def met_by_a_frame(self) -> list[int]:
        """The numbers of the programs that a frame meets, in order."""
        assert send_frames(self.pair, 1) == 1
        return self.journal.read()

    def query(self) -> tcx.QueryResult:
        return tcx.query(self.dev, attach_type=self.attach_type)

    @contextmanager
    def attached(self, prog: Prog, flags: int = 0, anchor: Prog | Link | None = None) -> Iterator[None]:
        tcx.attach(self.dev, prog, attach_type=self.attach_type, flags=flags, relative=anchor)
        yield
        tcx.detach(self.dev, prog, attach_type=self.attach_type)

    def linked(self, prog: Prog, flags: int = 0, anchor: Prog | Link | None = None) -> Link:
        return tcx.link(self.dev, prog, attach_type=self.attach_type, flags=flags, relative=anchor)

    def put(self, how: str) -> Callable[..., AbstractContextManager[object]]:
        return self.attached if how == "attached" else self.linked


def hook_of(veth: VethPair, attach_type: int, journal: Journal) -> Hook:
    return Hook(veth.b, attach_type, veth if attach_type == BPF_TCX_INGRESS else veth.flipped, journal)


@pytest.fixture(params=[BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
def hook(request: pytest.FixtureRequest, veth: VethPair, journal: Journal) -> Hook:
    return hook_of(veth, request.param, journal)


@pytest.mark.parametrize("how", ["attached", "linked"])
def test_a_frame_meets_newcomers_where_they_were_put(hook: Hook, how: str) -> None:
    """MPROG-ATTACH-019 to -023, MPROG-ANCHOR-002 to -006, -009, MPROG-LINK-005, MPROG-RUN-001, MPROG-LAW-008: beside an
    anchor named in each of the four ways, or at the ends."""
    first, second, third, fourth, fifth = (hook.journal.prog(number) for number in range(1, 6))
    put = hook.put(how)
    with hook.attached(first), hook.linked(second) as link, hook.attached(third):
        assert hook.met_by_a_frame() == [1, 2, 3]
        for by_id in (0, BPF_F_ID):
            for anchor in (second, link):
                with put(fourth, BPF_F_BEFORE | by_id, anchor), put(fifth, BPF_F_AFTER | by_id, anchor):
                    assert hook.query().prog_ids == ids(first, fourth, second, fifth, third)
                    assert hook.met_by_a_frame() == [1, 4, 2, 5, 3]
        for last in (0, BPF_F_AFTER):
            with put(fourth, BPF_F_BEFORE), put(fifth, last):
                assert hook.query().prog_ids == ids(fourth, first, second, third, fifth)
                assert hook.met_by_a_frame() == [4, 1, 2, 3, 5]
        assert hook.met_by_a_frame() == [1, 2, 3]


@pytest.mark.parametrize("how", ["attached", "linked"])
def test_each_direction_has_a_list_of_its_own(veth: VethPair, journal: Journal, how: str) -> None:
    """MPROG-LIFE-001, MPROG-QUERY-009, MPROG-LINK-045, MPROG-DETACH-027: with its own revision and frames."""
    inward, outward = (hook_of(veth, direction, journal) for direction in (BPF_TCX_INGRESS, BPF_TCX_EGRESS))
    one, two = journal.prog(1), journal.prog(2)
    with outward.put(how)(two) as far:
        with inward.put(how)(one) as near:
            for hook, prog, link in ((inward, one, near), (outward, two, far)):
                found = hook.query()
                assert (found.prog_ids, found.revision) == (ids(prog), 2)
                assert found.link_ids == [link.id if isinstance(link, Link) else 0]
            assert (inward.met_by_a_frame(), outward.met_by_a_frame()) == ([1], [2])
        assert (inward.query().count, outward.query().count) == (0, 1)
        assert (inward.met_by_a_frame(), outward.met_by_a_frame()) == ([], [2])
    assert (inward.met_by_a_frame(), outward.met_by_a_frame()) == ([], [])


def test_a_frame_meets_the_replacement_in_the_old_place(hook: Hook) -> None:
    """MPROG-ATTACH-030, -033, MPROG-LINK-029, MPROG-REV-002: of a program attached directly as of one of a link."""
    first, second, third, fourth = (hook.journal.prog(number) for number in range(1, 5))
    direction = hook.attach_type
    tcx.attach(hook.dev, first, attach_type=direction)
    with hook.linked(second) as link:
        tcx.attach(hook.dev, third, attach_type=direction, replace=first)
        assert hook.met_by_a_frame() == [3, 2]
        link.update(fourth, old=second)
        assert hook.met_by_a_frame() == [3, 4]
        tcx.attach(hook.dev, first, attach_type=direction, replace=third, flags=BPF_F_BEFORE, relative=fourth)
        link.update(second)
        assert hook.met_by_a_frame() == [1, 2]
        found = hook.query()
        assert (found.prog_ids, found.link_ids, found.revision) == (ids(first, second), [0, link.id], 7)


def test_replace_takes_over_the_reference(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-018, -030: the list lets go of the old program and holds the new one."""
    old, new = sched_cls(), sched_cls()
    numbers = ids(old, new)
    tcx.attach(dev, old)
    tcx.attach(dev, new, replace=old)
    new.close()
    old.close()
    assert tcx.query(dev).prog_ids == numbers[1:]
    assert set(Prog.ids()) & set(numbers) == set(numbers[1:])


def test_an_attached_program_lands_at_the_named_place(bench: Bench) -> None:
    """MPROG-ATTACH-008, -009, -013, -015 to -017, -019 to -027, MPROG-VEC-001 to -022, -037, -038."""
    bench.check(rows("attach"))
    bench.check("""
        attach D | BEFORE ID         | C   | - | A B* D C
        attach D | AFTER LINK        | b   | - | A B* D C
        attach D | BEFORE ID LINK    | b   | - | A D B* C
        attach D | BEFORE            | D   | - | ENOENT
        attach D | BEFORE AFTER LINK | b   | - | ERANGE
        attach D | ID LINK           | b   | - | EINVAL
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
    bench.check(rows("replace"))
    bench.check("""
        attach D | REPLACE              | -    | D    | ENOENT
        attach D | REPLACE              | -    | F    | EINVAL
        attach D | REPLACE              | -    | map  | EINVAL
        attach D | REPLACE              | -    | b    | EINVAL
        attach D | REPLACE              | A    | -    | EINVAL
        attach D | REPLACE              | -    | shut | EBADF
        attach D | 0                    | -    | shut | A B* C D
        attach D | REPLACE              | C    | A    | D B* C
        attach D | REPLACE              | shut | A    | EBADF
        attach D | REPLACE ID           | C    | A    | D B* C
        attach D | REPLACE LINK         | x    | A    | D B* C
        attach D | REPLACE BEFORE       | -    | C    | ERANGE
        attach D | REPLACE AFTER        | -    | A    | ERANGE
        attach D | REPLACE BEFORE LINK  | b    | A    | D B* C
        attach D | REPLACE AFTER ID     | B    | C    | A B* D
        attach D | REPLACE AFTER        | A    | A    | ERANGE
        attach D | REPLACE AFTER        | X    | A    | ENOENT
        attach D | REPLACE LINK         | b    | B    | EBUSY
        attach D | REPLACE BEFORE LINK  | b    | B    | EBUSY
        attach B | REPLACE              | -    | A    | EEXIST
        attach A | REPLACE              | -    | B    | EEXIST
    """)
