# SPDX-License-Identifier: MIT
"""netkit: what a packet takes along from one end to the other, and how the ends find each other."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from harness.guest.bpf import netkit, tcx, uapi
from harness.guest.bpf.asm import call, mov, r1, r2, r6
from harness.guest.bpf.uapi import BPF_NETKIT_PEER
from harness.guest.errnos import fails_with
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import (
    IFLA_NETKIT_PEER_SCRUB,
    IFLA_NETKIT_SCRUB,
    NETKIT_L2,
    NETKIT_L3,
    NETKIT_SCRUB_NONE,
    new_address,
    set_mac,
)
from harness.guest.traffic import backlog, frame, packet_socket, send_frames, udp_pings
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NetkitPair, connect_netkit
from scenarios.mprog.witness import Sight, Witness, witnesses

MODES = pytest.mark.parametrize("mode", [NETKIT_L2, NETKIT_L3], ids=["L2", "L3"])
MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")
NO_MAC = "00:00:00:00:00:00"
# include/uapi/linux/if_packet.h
PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_OTHERHOST = 0, 1, 2, 3
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
SOLICITATION, ADVERTISEMENT = 135, 136
MARK, PRIORITY = 0x1234, 5


@pytest.fixture
def witness(sched_cls: LoadSchedCls) -> Iterator[Witness]:
    with witnesses(sched_cls) as made:
        yield made


def towards(pair: VethPair, mac: str) -> VethPair:
    """The pair, for frames that are addressed to `mac`."""
    return replace(pair, b=replace(pair.b, mac=mac))


@pytest.mark.parametrize(
    ("mode", "address", "packet_type"),
    [
        pytest.param(NETKIT_L2, MACS[1], PACKET_HOST, id="the peer"),
        pytest.param(NETKIT_L2, MACS[0], PACKET_OTHERHOST, id="somebody else"),
        pytest.param(NETKIT_L2, "ff:ff:ff:ff:ff:ff", PACKET_BROADCAST, id="everybody"),
        pytest.param(NETKIT_L2, "01:00:5e:00:00:01", PACKET_MULTICAST, id="a group"),
        pytest.param(NETKIT_L3, NO_MAC, PACKET_HOST, id="nobody in L3"),
        pytest.param(NETKIT_L3, MACS[1], PACKET_OTHERHOST, id="somebody in L3"),
    ],
)
def test_the_packet_type_says_what_the_frame_is_to_the_other_end(
    netkit_pair: NetkitPair, witness: Witness, mode: int, address: str, packet_type: int
) -> None:
    """MPROG-NETKIT-006: to the programs of the sending end as to tcx where it arrives."""
    pair = netkit_pair(mode=mode, macs=MACS if mode == NETKIT_L2 else (None, None))
    netkit.attach(pair.a, witness.prog(1))
    pair.ns_b.run(tcx.attach, pair.b, witness.prog(2))
    send_frames(towards(pair, address), 1)
    assert [(sight.number, sight.packet_type) for sight in witness.sights()] == [
        (1, packet_type),
        (2, packet_type),
    ]


@MODES
def test_a_packet_type_that_a_program_sets_stays(
    netkit_pair: NetkitPair, witness: Witness, mode: int
) -> None:
    """MPROG-NETKIT-006: the driver's own idea of it comes before the programs, not after."""
    pair = netkit_pair(mode=mode, macs=MACS if mode == NETKIT_L2 else (None, None))
    change = (mov(r1, r6), mov(r2, PACKET_MULTICAST), call(uapi.BPF_FUNC_skb_change_type))
    netkit.attach(pair.a, witness.prog(1, *change))
    pair.ns_b.run(tcx.attach, pair.b, witness.prog(2))
    send_frames(towards(pair, MACS[1] if mode == NETKIT_L2 else NO_MAC), 1)
    assert [sight.packet_type for sight in witness.sights()] == [PACKET_HOST, PACKET_MULTICAST]


def send_marked(pair: VethPair) -> None:
    """Send one frame with MARK and PRIORITY from a to b."""
    with packet_socket(pair.a) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
        sender.send(frame(pair.a, pair.b))
    wait_until(lambda: backlog() == 0, timeout=1, what="the frame to be received")


def marks_seen(pair: VethPair, witness: Witness) -> dict[str, list[tuple[int, int]]]:
    """Mark and priority of a marked frame in the sending end's list and on its arrival, for each direction."""
    found = {}
    with ExitStack() as links:
        links.enter_context(netkit.link(pair.a, witness.prog(1)))
        links.enter_context(netkit.link(pair.a, witness.prog(1), attach_type=BPF_NETKIT_PEER))
        for end in (pair.a, pair.b):
            links.enter_context(end.ns.run(tcx.link, end, witness.prog(2)))
        for name, way in (("from the primary", pair), ("from the peer", pair.flipped)):
            send_marked(way)
            found[name] = [(sight.mark, sight.priority) for sight in witness.sights()]
    return found


KEPT = [(MARK, PRIORITY), (MARK, PRIORITY)]
CLEARED = [(0, 0), (0, 0)]


def test_mark_and_priority_do_not_leave_the_namespace(netkit_pair: NetkitPair, witness: Witness) -> None:
    """MPROG-NETKIT-013: unless told otherwise, they are cleared before the programs run."""
    assert marks_seen(netkit_pair(), witness) == {"from the primary": CLEARED, "from the peer": CLEARED}


@pytest.mark.requires("netkit_scrub")
@MODES
@pytest.mark.parametrize("keeper", ["primary", "peer"])
def test_each_end_may_let_mark_and_priority_through(
    netkit_pair: NetkitPair, witness: Witness, keeper: str, mode: int
) -> None:
    """MPROG-NETKIT-013."""
    setting = IFLA_NETKIT_SCRUB if keeper == "primary" else IFLA_NETKIT_PEER_SCRUB
    pair = netkit_pair(mode=mode, settings={setting: NETKIT_SCRUB_NONE})
    expected = {"from the primary": CLEARED, "from the peer": CLEARED, f"from the {keeper}": KEPT}
    assert marks_seen(pair, witness) == expected


@pytest.mark.requires("netkit", "netkit_scrub")
def test_mark_and_priority_stay_within_a_namespace(netns: NetNamespace, witness: Witness) -> None:
    """MPROG-NETKIT-013: scrubbing is for leaving it."""
    pair = connect_netkit(netns, netns)
    assert marks_seen(pair, witness) == {"from the primary": KEPT, "from the peer": KEPT}


def with_addresses(pair: VethPair, first: str, second: str, prefix_length: int) -> VethPair:
    """The pair with an IP address on each end."""
    for end, address in ((pair.a, first), (pair.b, second)):
        end.ns.rtnl.request(new_address(end.ifindex, address, prefix_length))
    return replace(pair, a=replace(pair.a, address=first), b=replace(pair.b, address=second))


def watch_both_lists(pair: VethPair, witness: Witness) -> None:
    """Number 1 watches what the primary sends, number 2 what the peer sends."""
    netkit.attach(pair.a, witness.prog(1))
    netkit.attach(pair.a, witness.prog(2), attach_type=BPF_NETKIT_PEER)


@MODES
def test_in_l2_mode_the_ends_ask_for_each_others_address_in_l3_mode_they_need_none(
    netkit_pair: NetkitPair, witness: Witness, mode: int
) -> None:
    """MPROG-NETKIT-006: the programs see the questions, too, all packets with a link-layer header."""
    pair = with_addresses(netkit_pair(mode=mode), "10.77.0.1", "10.77.0.2", 24)
    watch_both_lists(pair, witness)
    assert udp_pings(pair, timeout=1).answered == 1
    question_and_answer = [(1, ETH_P_ARP), (2, ETH_P_ARP)] if mode == NETKIT_L2 else []
    assert [(sight.number, sight.ethertype) for sight in witness.sights()] == [
        *question_and_answer,
        (1, ETH_P_IP),
        (2, ETH_P_IP),
    ]


@MODES
def test_a_packet_to_an_address_that_nobody_has_is_sent_in_l3_mode_only(
    netkit_pair: NetkitPair, witness: Witness, mode: int
) -> None:
    """MPROG-NETKIT-006: in L2 mode there is just the question."""
    pair = with_addresses(netkit_pair(mode=mode), "10.77.0.1", "10.77.0.2", 24)
    watch_both_lists(pair, witness)
    with pair.ns_a.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", ("10.77.0.3", 9))
    seen = {(sight.number, sight.ethertype) for sight in witness.sights()}
    assert seen == {(1, ETH_P_ARP if mode == NETKIT_L2 else ETH_P_IP)}


def kind6(sight: Sight) -> int | None:
    """The type of a neighbour discovery message, 0 for UDP; None for the chatter of IPv6 itself."""
    if sight.ethertype == ETH_P_IPV6 and sight.next_header == socket.IPPROTO_UDP:
        return 0
    return sight.icmp6_type if sight.icmp6_type in (SOLICITATION, ADVERTISEMENT) else None


@pytest.mark.requires("netkit")
@MODES
def test_neighbour_discovery_crosses_in_l2_mode_and_is_not_needed_in_l3_mode(
    witness: Witness, mode: int
) -> None:
    """MPROG-NETKIT-006."""
    with NetNamespace.create(ipv6=True) as ns_a, NetNamespace.create(ipv6=True) as ns_b, ns_a.entered():
        for namespace in (ns_a, ns_b):
            # No link-local addresses, for whose sake nobody asks whether they are free.
            namespace.set_sysctl("net.ipv6.conf.default.addr_gen_mode", 1)
        pair = with_addresses(connect_netkit(ns_a, ns_b, mode=mode), "fd77::1", "fd77::2", 64)
        watch_both_lists(pair, witness)
        with (
            ns_b.run(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("fd77::2", 9))
            for sock in (server, client):
                sock.settimeout(2)
            client.sendto(b"hello", ("fd77::2", 9))
            server.sendto(*server.recvfrom(100))
            client.recv(100)
        question_and_answer = [(1, SOLICITATION), (2, ADVERTISEMENT)] if mode == NETKIT_L2 else []
        kinds = [(sight.number, kind6(sight)) for sight in witness.sights()]
        assert [each for each in kinds if each[1] is not None] == [*question_and_answer, (1, 0), (2, 0)]


def mac_of(pair: VethPair) -> tuple[str, str]:
    """The addresses that the kernel reports for the two ends."""
    a, b = (end.ns.ipr.get_links(end.ifindex)[0].get_attr("IFLA_ADDRESS") for end in (pair.a, pair.b))
    return a, b


def test_in_l2_mode_addresses_are_taken_at_creation_and_later(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-012, MPROG-FIX-008: later also while the device is up."""
    pair = with_addresses(netkit_pair(macs=MACS), "10.77.0.1", "10.77.0.2", 24)
    assert mac_of(pair) == MACS
    assert udp_pings(pair, timeout=1).answered == 1
    others = ("02:00:00:00:88:01", "02:00:00:00:88:02")
    for end, mac in zip((pair.a, pair.b), others, strict=True):
        end.ns.rtnl.request(set_mac(end.ifindex, mac))
    assert mac_of(pair) == others
    assert udp_pings(pair, timeout=1).answered == 1


@pytest.mark.parametrize("macs", [(MACS[0], None), (None, MACS[1])], ids=["primary", "peer"])
def test_in_l3_mode_there_are_no_addresses(
    netkit_pair: NetkitPair, macs: tuple[str | None, str | None]
) -> None:
    """MPROG-NETKIT-012, MPROG-FIX-008: not at creation, not later."""
    with fails_with(errno.EOPNOTSUPP):
        netkit_pair(mode=NETKIT_L3, macs=macs)
    pair = netkit_pair(mode=NETKIT_L3)
    for end in (pair.a, pair.b):
        with fails_with(errno.EOPNOTSUPP):
            end.ns.rtnl.request(set_mac(end.ifindex, MACS[0]))
    assert mac_of(pair) == (NO_MAC, NO_MAC)


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", NO_MAC], ids=["a group", "zero"])
@pytest.mark.parametrize("end", [0, 1], ids=["primary", "peer"])
def test_an_address_that_no_device_may_have_is_refused(netkit_pair: NetkitPair, mac: str, end: int) -> None:
    """MPROG-NETKIT-012: drivers/net/netkit.c:netkit_validate."""
    with fails_with(errno.EADDRNOTAVAIL):
        netkit_pair(macs=(mac, None) if end == 0 else (None, mac))
