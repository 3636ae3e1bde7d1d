# SPDX-License-Identifier: MIT
"""netkit: what is sent into an end meets the programs of that end, and their verdict decides what becomes of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.guest import qdisc
from harness.guest.bpf import netkit, tcx, uapi
from harness.guest.bpf.asm import call, mov, r1, r2
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
    BPF_TCX_EGRESS,
    NETKIT_DROP,
    NETKIT_NEXT,
    NETKIT_PASS,
    NETKIT_REDIRECT,
    TCX_REDIRECT,
)
from harness.guest.net import VethPair, veth_pair
from harness.guest.rtnl import NETKIT_L2, NETKIT_L3
from harness.guest.traffic import EXPERIMENTAL_ETHERTYPE, packet_socket, send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NETKIT_LISTS, Journal, NetkitPair, crosses, ids

MODES = pytest.mark.parametrize("mode", [NETKIT_L2, NETKIT_L3], ids=["L2", "L3"])
BPF_F_INGRESS = 1  # include/uapi/linux/bpf.h, a flag of bpf_redirect
UNKNOWN = 99
STOLEN = 4


def into(pair: VethPair, which: int) -> VethPair:
    """The pair, turned so that its end a is the one that the list belongs to."""
    return pair if which == BPF_NETKIT_PRIMARY else pair.flipped


@MODES
@NETKIT_LISTS
def test_a_packet_meets_the_programs_in_the_order_of_the_query(
    netkit_pair: NetkitPair, journal: Journal, mode: int, which: int
) -> None:
    """MPROG-NETKIT-002, -006, MPROG-LAW-008: attached as 1 2 3 4, placed as 4 1 3 2, links and direct ones."""
    pair = netkit_pair(mode=mode)
    first, second, third, fourth = (journal.prog(number) for number in (1, 2, 3, 4))
    netkit.attach(pair.a, first, attach_type=which)
    with (
        netkit.link(pair.a, second, attach_type=which),
        netkit.link(pair.a, third, attach_type=which, flags=BPF_F_AFTER, relative=first),
    ):
        netkit.attach(pair.a, fourth, attach_type=which, flags=BPF_F_BEFORE)
        assert netkit.query(pair.a, attach_type=which).prog_ids == ids(fourth, first, third, second)
        assert crosses(into(pair, which))
        assert journal.read() == [4, 1, 3, 2]
        assert crosses(into(pair, which).flipped)
        assert journal.read() == []
    assert crosses(into(pair, which))
    assert journal.read() == [4, 1]


@NETKIT_LISTS
@pytest.mark.parametrize(
    ("verdict", "met", "arrives", "sender_hears"),
    [
        pytest.param(NETKIT_NEXT, [1, 2], True, 0, id="NEXT"),
        pytest.param(NETKIT_PASS, [1], True, 0, id="PASS"),
        pytest.param(NETKIT_DROP, [1], False, errno.ENOBUFS, id="DROP"),
        pytest.param(NETKIT_REDIRECT, [1], False, 0, id="REDIRECT to nowhere"),
        pytest.param(UNKNOWN, [1], False, errno.ENOBUFS, id="unknown"),
        pytest.param(STOLEN, [1], False, errno.ENOBUFS, id="STOLEN"),
    ],
)
def test_a_verdict_decides_who_else_meets_the_packet(
    netkit_pair: NetkitPair,
    journal: Journal,
    which: int,
    verdict: int,
    met: list[int],
    arrives: bool,
    sender_hears: int,
) -> None:
    """MPROG-NETKIT-008, MPROG-QUIRK-006, MPROG-ABI-007: what tcx takes for NEXT is a drop here."""
    pair = netkit_pair()
    netkit.attach(pair.a, journal.prog(1, verdict), attach_type=which)
    netkit.attach(pair.a, journal.prog(2), attach_type=which)
    heard = 0
    try:
        assert send_frames(into(pair, which), 1) == arrives
    except OSError as error:
        heard = error.errno or 0
    assert (journal.read(), heard) == (met, sender_hears)
    assert into(pair, which).a.counters().tx_dropped == (1 if sender_hears else 0)


def test_tcx_and_filters_on_both_ends_stand_around_the_list(
    netkit_pair: NetkitPair, journal: Journal
) -> None:
    """MPROG-NETKIT-011: egress of the end that sends, then netkit, then ingress of the other end."""
    pair = netkit_pair()
    for which, way in ((BPF_NETKIT_PRIMARY, pair), (BPF_NETKIT_PEER, pair.flipped)):
        with ExitStack() as links:
            qdisc.add_clsact(way.a)
            qdisc.add_clsact(way.b)
            qdisc.add_bpf_filter(way.b, journal.prog(5).fd)
            with way.b.ns.entered():
                links.enter_context(tcx.link(way.b, journal.prog(4)))
            links.enter_context(netkit.link(pair.a, journal.prog(3), attach_type=which))
            qdisc.add_bpf_filter(way.a, journal.prog(2).fd, egress=True)
            with way.a.ns.entered():
                links.enter_context(tcx.link(way.a, journal.prog(1), attach_type=BPF_TCX_EGRESS))
            assert crosses(way)
            assert journal.read() == [1, 2, 3, 4, 5]
        qdisc.delete_clsact(way.a)
        qdisc.delete_clsact(way.b)
        assert crosses(way)
        assert journal.read() == []


@pytest.fixture
def beside_the_peer(netkit_pair: NetkitPair) -> Iterator[tuple[VethPair, VethPair]]:
    """A netkit pair, and a veth pair whose end b is in the namespace of the netkit peer."""
    pair = netkit_pair()
    with veth_pair(ns_a=pair.ns_a, ns_b=pair.ns_b) as veth:
        yield pair, veth


@pytest.mark.parametrize("inward", [False, True], ids=["out of it", "into it"])
def test_redirect_leads_to_a_device_of_the_other_ends_namespace(
    beside_the_peer: tuple[VethPair, VethPair], sched_cls: LoadSchedCls, inward: bool
) -> None:
    """MPROG-NETKIT-006, MPROG-RUN-005: the packet belongs to the peer already when the programs run."""
    pair, veth = beside_the_peer
    flags = BPF_F_INGRESS if inward else 0
    redirect = (mov(r1, veth.b.ifindex), mov(r2, flags), call(uapi.BPF_FUNC_redirect))
    netkit.attach(pair.a, sched_cls(*redirect, verdict=NETKIT_REDIRECT))
    with packet_socket(veth.b if inward else veth.a, EXPERIMENTAL_ETHERTYPE) as watched:
        watched.settimeout(2)
        assert not crosses(pair)
        assert len(watched.recv(2048)) >= 60


def test_a_redirect_to_the_peer_passes_over_the_list(
    beside_the_peer: tuple[VethPair, VethPair], journal: Journal, sched_cls: LoadSchedCls
) -> None:
    """MPROG-RUN-009 with netkit: from a device's ingress right into the namespace of the netkit peer."""
    pair, veth = beside_the_peer
    redirect = (mov(r1, pair.a.ifindex), mov(r2, 0), call(uapi.BPF_FUNC_redirect_peer))
    netkit.attach(pair.a, journal.prog(1))
    tcx.attach(veth.a, sched_cls(*redirect, verdict=TCX_REDIRECT))
    with pair.ns_b.entered():
        tcx.attach(pair.b, journal.prog(2))
    with packet_socket(pair.b, EXPERIMENTAL_ETHERTYPE) as watched:
        watched.settimeout(2)
        assert send_frames(veth.flipped, 1) == 0
        assert len(watched.recv(2048)) >= 60
    assert journal.read() == [2]
