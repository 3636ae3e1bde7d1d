# SPDX-License-Identifier: MIT
"""Packets meet the programs of an entry in its order, and each verdict does what it says."""

from __future__ import annotations

import socket

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    exit_,
    jgt,
    label,
    ld_map_value,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    stxdw,
    stxw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
    TCX_DROP,
    TCX_NEXT,
    TCX_PASS,
    TCX_REDIRECT,
)
from harness.guest.net import Device, VethPair
from harness.guest.traffic import EXPERIMENTAL_ETHERTYPE, frame, packet_socket, send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, fate, ids

# Members of struct __sk_buff, include/uapi/linux/bpf.h
LEN, TC_INDEX, TC_CLASSID, DATA, DATA_END = 0, 44, 72, 76, 80
SO_ATTACH_BPF = 50  # include/uapi/asm-generic/socket.h
# Verdicts that tcx has no meaning for: RECLASSIFY, PIPE, STOLEN, QUEUED, REPEAT, TRAP of the older filters, others.
UNKNOWN = (1, 3, 4, 5, 6, 8, 99, -2, 1 << 16 | TCX_DROP)
BOTH_WAYS = pytest.mark.parametrize(
    "attach_type", [BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"]
)


def hooked(veth: VethPair, attach_type: int) -> Device:
    """The end of the pair at which a frame from a to b meets this hook."""
    return veth.b if attach_type == BPF_TCX_INGRESS else veth.a


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


@BOTH_WAYS
@pytest.mark.parametrize(
    ("verdict", "met", "inward", "outward"),
    [
        pytest.param(TCX_NEXT, [1, 2, 3], "arrives", "arrives", id="NEXT"),
        pytest.param(TCX_PASS, [1], "arrives", "arrives", id="PASS"),
        pytest.param(TCX_DROP, [1], "lost", "refused", id="DROP"),
        pytest.param(TCX_REDIRECT, [1], "lost", "lost", id="REDIRECT to nowhere"),
    ],
)
def test_a_verdict_decides_who_else_meets_the_packet(
    veth: VethPair,
    journal: Journal,
    attach_type: int,
    verdict: int,
    met: list[int],
    inward: str,
    outward: str,
) -> None:
    """MPROG-RUN-002 to -005, MPROG-LEGACY-001, MPROG-ABI-007: 1 and 2 are tcx programs, 3 is a filter of clsact.

    Who sends what is dropped on its way out is told so (ENOBUFS), but not when it was redirected to nowhere.
    """
    dev, outgoing = hooked(veth, attach_type), attach_type == BPF_TCX_EGRESS
    qdisc.add_clsact(dev)
    legacy = journal.prog(3)
    qdisc.add_bpf_filter(dev, legacy.fd, egress=outgoing)
    with dev.ns.entered():
        tcx.attach(dev, journal.prog(1, verdict), attach_type=attach_type)
        tcx.attach(dev, journal.prog(2), attach_type=attach_type)
    assert fate(veth) == (outward if outgoing else inward)
    assert journal.read() == met


@BOTH_WAYS
def test_an_unknown_verdict_ends_the_list_but_not_the_way(
    veth: VethPair, journal: Journal, attach_type: int
) -> None:
    """MPROG-RUN-006, MPROG-QUIRK-006: the rest of tcx (2) is skipped, the filter of clsact (3) is not."""
    dev = hooked(veth, attach_type)
    qdisc.add_clsact(dev)
    legacy = journal.prog(3)
    qdisc.add_bpf_filter(dev, legacy.fd, egress=attach_type == BPF_TCX_EGRESS)
    outcome = {}
    with dev.ns.entered():
        before = journal.prog(1)
        tcx.attach(dev, before, attach_type=attach_type)
        tcx.attach(dev, journal.prog(2), attach_type=attach_type)
        for verdict in UNKNOWN:
            replacement = journal.prog(1, verdict)
            tcx.attach(dev, replacement, attach_type=attach_type, replace=before)
            outcome[verdict] = (fate(veth), journal.read())
            before = replacement
    assert outcome == dict.fromkeys(UNKNOWN, ("arrives", [1, 3]))


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


@BOTH_WAYS
def test_pass_makes_the_class_the_index_and_next_does_not(
    veth: VethPair, sched_cls: LoadSchedCls, attach_type: int
) -> None:
    """MPROG-RUN-003: tc_classid, which the program set, is the tc_index that the receiving socket's filter sees."""
    dev = hooked(veth, attach_type)
    classid, unseen = 0x1234, 0xFFFFFFFF
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="tc_index") as seen, dev.ns.entered():
        look = asm(ldxw(r2, r1, TC_INDEX), ld_map_value(r1, seen), stxw(r1, 0, r2), mov(r0, 0), exit_())

        def index_after(prog: Prog) -> int:
            seen[0] = unseen
            tcx.attach(dev, prog, attach_type=attach_type)
            send_frames(veth, 1)
            tcx.detach(dev, prog, attach_type=attach_type)
            return seen.number(0)

        class_and = (mov(r2, classid), stxw(r1, TC_CLASSID, r2))
        with (
            Prog.load(look, uapi.BPF_PROG_TYPE_SOCKET_FILTER) as reader,
            packet_socket(veth.b, EXPERIMENTAL_ETHERTYPE) as receiver,
        ):
            receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, reader.fd)
            passed = index_after(sched_cls(*class_and, verdict=TCX_PASS))
            went_on = index_after(sched_cls(*class_and, verdict=TCX_NEXT))
    assert (passed, went_on) == (classid, 0)


@BOTH_WAYS
def test_programs_see_the_whole_frame(veth: VethPair, sched_cls: LoadSchedCls, attach_type: int) -> None:
    """MPROG-RUN-008: from the link-layer header on, on the way in as on the way out."""
    dev, sent = hooked(veth, attach_type), frame(veth.a, veth.b, b"payload")
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 32, 1, name="seen") as seen, dev.ns.entered():
        note: Item = (
            ld_map_value(r4, seen),
            ldxw(r2, r1, LEN),
            stxdw(r4, 24, r2),
            ldxw(r2, r1, DATA),
            ldxw(r3, r1, DATA_END),
            mov(r1, r2),
            add(r1, 24),
            jgt(r1, r3, "too short"),
            *((ldxdw(r1, r2, at), stxdw(r4, at, r1)) for at in (0, 8, 16)),
            label("too short"),
        )
        tcx.attach(dev, sched_cls(note), attach_type=attach_type)
        assert send_frames(veth, 1, payload=b"payload") == 1
        raw = seen.lookup(0)
    assert raw is not None
    assert (raw[:24], int.from_bytes(raw[24:], "little")) == (sent[:24], len(sent))


def test_what_the_root_qdisc_loses_has_met_the_programs(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-007: those of tcx, then a filter of clsact."""
    qdisc.add_clsact(veth.a)
    qdisc.add_bpf_filter(veth.a, journal.prog(2).fd, egress=True)
    with veth.a.ns.entered():
        tcx.attach(veth.a, journal.prog(1), attach_type=BPF_TCX_EGRESS)
    qdisc.add_netem(veth.a, loss_percent=100)
    assert send_frames(veth, 1) == 0
    assert journal.read() == [1, 2]
