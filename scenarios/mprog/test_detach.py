# SPDX-License-Identifier: MIT
"""Which program a detach takes, and what is refused."""

from __future__ import annotations

import errno

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids
from scenarios.mprog.requests import Bench
from scenarios.mprog.vectors import rows


def test_detach_takes_what_stands_at_the_named_place(bench: Bench) -> None:
    """MPROG-DETACH-010 to -015, -017, -020 to -025, -027 to -031, MPROG-VEC-041 to -070, MPROG-QUIRK-005: without a
    program the place decides, with one both must agree; a neighbour that is not there is the anchor itself."""
    bench.check(rows("detach"))
    bench.check("""
        detach - | BEFORE ID         | B   | - | B* C
        detach - | AFTER LINK        | b   | - | A B*
        detach - | BEFORE ID LINK    | b   | - | B* C
        detach - | BEFORE AFTER      | X   | - | ENOENT
        detach - | AFTER             | X   | - | ENOENT
        detach - | LINK              | b   | - | EINVAL
        detach - | ID LINK           | b   | - | EINVAL
        detach A | AFTER             | -   | - | ERANGE
        detach C | BEFORE            | -   | - | ERANGE
        detach A | AFTER             | B   | - | ERANGE
        detach C | BEFORE            | B   | - | ERANGE
        detach A | BEFORE            | A   | - | ERANGE
        detach A | BEFORE AFTER      | B   | - | ERANGE
        detach A | BEFORE            | X   | - | ENOENT
        detach C | AFTER             | X   | - | ENOENT
        detach X | BEFORE            | A   | - | ENOENT
        detach A | LINK              | b   | - | B* C
        detach C | ID LINK           | b   | - | A B*
        detach B | AFTER LINK        | x   | - | EBUSY
    """)


@pytest.mark.parametrize("direction", [BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
def test_anonymous_detaches_empty_a_list_from_both_ends(
    dev: Device, sched_cls: LoadSchedCls, direction: int
) -> None:
    """MPROG-DETACH-006, -018, -020 to -022, -027, MPROG-REV-002, -006: each adds one to the revision, and when nothing
    is left there is no list."""
    a, b, c, d, _ = progs = [sched_cls() for _ in range(5)]
    for prog in progs:
        tcx.attach(dev, prog, attach_type=direction)

    def left() -> tuple[list[int], int]:
        found = tcx.query(dev, attach_type=direction)
        return found.prog_ids, found.revision

    tcx.detach(dev, attach_type=direction)
    assert left() == (ids(a, b, c, d), 7)
    tcx.detach(dev, attach_type=direction, flags=BPF_F_BEFORE)
    assert left() == (ids(b, c, d), 8)
    tcx.detach(dev, c, attach_type=direction)
    assert left() == (ids(b, d), 9)
    tcx.detach(dev, attach_type=direction, flags=BPF_F_AFTER)
    assert left() == (ids(b), 10)
    tcx.detach(dev, attach_type=direction)
    assert left() == ([], 1)
    with refused(errno.ENOENT):
        tcx.detach(dev, attach_type=direction)


def test_an_anonymous_detach_does_not_step_over_a_link(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-DETACH-017, MPROG-LINK-044: what stands at the place is refused, not its neighbour taken."""
    a, b = sched_cls(), sched_cls()
    tcx.attach(dev, a)
    with tcx.link(dev, b):
        for flags in (0, BPF_F_AFTER):
            with refused(errno.EBUSY):
                tcx.detach(dev, flags=flags)
        assert tcx.query(dev).prog_ids == ids(a, b)
        tcx.detach(dev, flags=BPF_F_BEFORE)
        for flags in (0, BPF_F_AFTER, BPF_F_BEFORE):
            with refused(errno.EBUSY):
                tcx.detach(dev, flags=flags)
        assert tcx.query(dev).prog_ids == ids(b)


@pytest.mark.parametrize("direction", [BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
def test_nothing_can_be_detached_from_nothing(dev: Device, sched_cls: LoadSchedCls, direction: int) -> None:
    """MPROG-DETACH-006, -009, MPROG-FIX-002: neither where there is no list nor from the empty list of clsact."""
    stranger = sched_cls()

    def refuses_all() -> None:
        for flags in (0, BPF_F_BEFORE, BPF_F_AFTER):
            with refused(errno.ENOENT):
                tcx.detach(dev, attach_type=direction, flags=flags)
        with refused(errno.ENOENT):
            tcx.detach(dev, stranger, attach_type=direction)

    refuses_all()
    qdisc.add_clsact(dev)
    refuses_all()
    tcx.attach(dev, stranger, attach_type=direction)
    tcx.detach(dev, attach_type=direction)
    refuses_all()
    qdisc.delete_clsact(dev)


def test_a_detached_program_is_gone_when_the_call_returns(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-DETACH-018, MPROG-ATTACH-018, MPROG-LIFE-008: if only the list held it."""
    prog = sched_cls()
    tcx.attach(dev, prog)
    number = prog.id
    prog.close()
    assert (tcx.query(dev).prog_ids, number in Prog.ids()) == ([number], True)
    tcx.detach(dev)
    assert number not in Prog.ids()
