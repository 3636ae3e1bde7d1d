# SPDX-License-Identifier: MIT
"""Packets meet the programs of an entry in its order, and each verdict does what it says."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import atomic_add, ld_map_value, mov, r1, r2
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_TCX_EGRESS,
    TCX_DROP,
    TCX_NEXT,
    TCX_PASS,
    TCX_REDIRECT,
)
from harness.guest.net import VethPair
from harness.guest.traffic import send_frames
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, ids


def test_a_packet_meets_the_programs_in_the_order_of_the_query(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-001, MPROG-LAW-008: attached as 1 2 3 4, placed as 4 1 3 2."""
    first, second, third, fourth = (journal.prog(number) for number in (1, 2, 3, 4))
    tcx.attach(veth.b, first)
    with tcx.link(veth.b, second):
        tcx.attach(veth.b, third, flags=BPF_F_AFTER, relative=first)
        with tcx.link(veth.b, fourth, flags=BPF_F_BEFORE):
            assert send_frames(veth, 1) == 1
            assert journal.read() == [4, 1, 3, 2]
            assert tcx.query(veth.b).prog_ids == ids(fourth, first, third, second)
    send_frames(veth, 1)
    assert journal.read() == [1, 3]


UNKNOWN = 99


@pytest.mark.parametrize(
    ("verdict", "met", "arrives"),
    [
        pytest.param(TCX_NEXT, [1, 2, 3], True, id="NEXT"),
        pytest.param(TCX_PASS, [1], True, id="PASS"),
        pytest.param(TCX_DROP, [1], False, id="DROP"),
        pytest.param(TCX_REDIRECT, [1], False, id="REDIRECT to nowhere"),
        pytest.param(UNKNOWN, [1, 3], True, id="unknown"),
    ],
)
def test_a_verdict_decides_who_else_meets_the_packet(
    veth: VethPair, journal: Journal, verdict: int, met: list[int], arrives: bool
) -> None:
    """MPROG-RUN-002 to -006, MPROG-LEGACY-001, MPROG-QUIRK-006: 1 and 2 are tcx programs, 3 is a filter of clsact."""
    qdisc.add_clsact(veth.b)
    legacy = journal.prog(3)
    qdisc.add_bpf_filter(veth.b, legacy.fd)
    tcx.attach(veth.b, journal.prog(1, verdict))
    tcx.attach(veth.b, journal.prog(2))
    assert send_frames(veth, 1) == arrives
    assert journal.read() == met


def test_ingress_and_egress_know_nothing_of_each_other(veth: VethPair, journal: Journal) -> None:
    """MPROG-LIFE-001, MPROG-LAW-005: the same program may be in both, list and revision are each their own."""
    both, inward = journal.prog(1), journal.prog(2)
    tcx.attach(veth.b, both)
    tcx.attach(veth.b, both, attach_type=BPF_TCX_EGRESS)
    tcx.attach(veth.b, inward)
    ingress, egress = tcx.query(veth.b), tcx.query(veth.b, attach_type=BPF_TCX_EGRESS)
    assert (ingress.prog_ids, ingress.revision) == (ids(both, inward), 3)
    assert (egress.prog_ids, egress.revision) == (ids(both), 2)
    send_frames(veth, 1)
    assert journal.read() == [1, 2]
    send_frames(veth.flipped, 1)
    assert journal.read() == [1]


@pytest.mark.vm(cpus=2)
def test_no_packet_slips_through_while_a_program_is_replaced(veth: VethPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-ATTACH-037, MPROG-RUN-010: each frame is dropped and counted by the old program or the new one."""
    stop = Event()
    sent = passed = 0

    def send() -> None:
        nonlocal sent, passed
        while not stop.is_set():
            passed += send_frames(veth, 50)
            sent += 50

    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1, name="met", value_format="=QQ") as counters:

        def dropper(slot: int) -> Prog:
            count = (ld_map_value(r1, counters, 8 * slot), mov(r2, 1), atomic_add(r1, 0, r2))
            return sched_cls(*count, verdict=TCX_DROP)

        one, other = dropper(0), dropper(1)

        def both_met_frames() -> bool:
            nonlocal one, other
            for _ in range(50):
                tcx.attach(veth.b, other, replace=one)
                tcx.attach(veth.b, one, replace=other)
            # An odd one, so that the other stands while this thread rests.
            tcx.attach(veth.b, other, replace=one)
            one, other = other, one
            return min(met()) >= 200

        def met() -> tuple[int, int]:
            numbers = counters[0]
            assert isinstance(numbers, tuple)
            return numbers

        tcx.attach(veth.b, one)
        sender = Thread(target=send)
        sender.start()
        try:
            wait_until(both_met_frames, timeout=5, what="both programs to meet 200 frames")
        finally:
            stop.set()
            sender.join()
        assert passed == 0
        wait_until(lambda: sum(met()) == sent, timeout=1, what=f"{sent} frames to be counted, each once")
