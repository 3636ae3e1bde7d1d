# SPDX-License-Identifier: MIT
"""Two hosts talk through a namespace that does not route, because programs at its devices redirect the packets."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import pytest

from harness.errors import KernrigError
from harness.guest import modules
from harness.guest.bpf import tcx
from harness.guest.bpf.object import Object
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device, VethPair, veth_pair
from harness.guest.rtnl import delete_neighbour, link_up, mac_bytes, new_route
from harness.guest.waiting import slow_factor

PROGRAMS = Path(__file__).with_name("redirect.bpf.o")
PORT = 9
TTL = 64
IP_RECVTTL = 12  # include/uapi/linux/in.h
# include/uapi/asm-generic/socket.h, include/uapi/linux/net_tstamp.h
SO_TXTIME = SCM_TXTIME = 61
# include/uapi/linux/bpf.h: BPF_SKB_TSTAMP_DELIVERY_MONO, since 6.11 BPF_SKB_CLOCK_MONOTONIC
DELIVERY_MONO = 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class Middle:
    """A host at a, one at d, and between them the scenario's namespace with b and c, linked to a and d."""

    near: VethPair
    far: VethPair

    def ask(self, *, delivery_time: int | None = None, timeout: float = 0.5) -> int | None:
        """The time to live that a datagram from a had left at d, once its answer was back; None when it was lost."""
        a, d = self.near.a, self.far.b
        assert a.address and d.address
        server = d.ns.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        client = a.ns.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            for each in (server, client):
                each.settimeout(timeout * slow_factor())
            server.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            server.bind((d.address, PORT))
            client.bind((a.address, 0))
            ancillary = []
            if delivery_time is not None:
                client.setsockopt(socket.SOL_SOCKET, SO_TXTIME, struct.pack("=iI", time.CLOCK_MONOTONIC, 0))
                ancillary = [(socket.SOL_SOCKET, SCM_TXTIME, struct.pack("=Q", delivery_time))]
            client.sendmsg([b"question"], ancillary, 0, (d.address, PORT))
            try:
                data, found, _, asker = server.recvmsg(100, 100)
                server.sendto(data, asker)
                client.recv(100)
            except TimeoutError:
                return None
            (ttl,) = (struct.unpack("=i", raw)[0] for _, kind, raw in found if kind == socket.IP_TTL)
            return int(ttl)


class Redirection:
    """The programs of redirect.bpf.c, which take packets from one device to the other and back."""

    def __init__(self, near: Device, far: Device, memory: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self._stack = ExitStack()
        self._object = self._stack.enter_context(Object.open(PROGRAMS))
        self._object.set_number("near", near.ifindex)
        self._object.set_number("far", far.ifindex)
        for variable, value in memory.items():
            self._object.variable(variable).raw = value
        self._object.load()

    def link(self, dev: Device, name: str, *, attach_type: int = BPF_TCX_INGRESS) -> None:
        """Put a program at the end of the device's list."""
        with self._object.prog(name) as prog:
            self._stack.enter_context(dev.ns.run(tcx.link, dev, prog, attach_type=attach_type))

    @property
    def redirected(self) -> int:
        """How many packets were redirected."""
        return self._object.number("redirected")

    @property
    def untyped(self) -> int:
        """The time that a program was told which did not ask for its type."""
        return self._object.number("untyped")

    def sight(self, name: str) -> tuple[int, ...]:
        """A packet's time and its type, as one of the see_ programs found them."""
        return struct.unpack("=QQ", self._object.variable(name).raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


@pytest.fixture
def middle(veth: VethPair) -> Iterator[Middle]:
    with veth_pair(ns_a=veth.ns_b, names=("veth-c", "veth-d")) as far:
        for host, gateway, beyond in ((veth.a, veth.b, far.b), (far.b, far.a, veth.a)):
            assert gateway.address and beyond.address
            host.ns.rtnl.request(new_route(beyond.address, gateway.address))
        yield Middle(veth, far)


def forget_neighbours(middle: Middle) -> None:
    """Let the namespace in the middle ask for the hosts' link-layer addresses."""
    for gateway, host in ((middle.near.b, middle.near.a), (middle.far.a, middle.far.b)):
        assert host.address
        gateway.ns.rtnl.request(delete_neighbour(gateway.ifindex, host.address))


@pytest.mark.parametrize("name", ["to_peer", "to_neighbour", "by_fib"])
def test_hosts_talk_past_the_routing(middle: Middle, name: str) -> None:
    """MPROG-RUN-005, -009: the packet's time to live shows that nobody routed it.

    Neighbours are found by asking, as programs let ARP pass; the look-up in the routing table needs forwarding on.
    """
    b, c = middle.near.b, middle.far.a
    forget_neighbours(middle)
    b.ns.set_sysctl("net.ipv4.ip_forward", 0)
    assert middle.ask(timeout=0.01) is None
    if name == "by_fib":
        b.ns.set_sysctl("net.ipv4.ip_forward", 1)
    with Redirection(b, c) as redirection:
        for dev in (b, c):
            redirection.link(dev, name)
        assert middle.ask() == TTL
        assert redirection.redirected == 2


@pytest.mark.parametrize("name", ["to_peer", "to_neighbour"])
def test_a_delivery_time_survives_a_redirect(middle: Middle, name: str) -> None:
    """MPROG-RUN-005, -009: seen at b's ingress, c's egress (not on the way to the peer) and d's ingress."""
    b, c, d = middle.near.b, middle.far.a, middle.far.b
    wanted = time.monotonic_ns() + 1_000_000
    with Redirection(b, c) as redirection:
        for dev, names in ((b, ("see_untyped", "see_first", name)), (c, (name,)), (d, ("see_third",))):
            for each in names:
                redirection.link(dev, each)
        redirection.link(c, "see_second", attach_type=BPF_TCX_EGRESS)
        assert middle.ask(delivery_time=wanted) == TTL
        kept = (wanted, DELIVERY_MONO)
        assert redirection.sight("at_first") == kept
        assert redirection.sight("at_second") == ((0, 0) if name == "to_peer" else kept)
        assert redirection.sight("at_third") == kept
        assert redirection.untyped == 0


@pytest.fixture
def tun(veth: VethPair) -> Iterator[tuple[int, Device]]:
    """A device without link layer in the scenario's namespace, up, and the descriptor of its user."""
    try:
        modules.modprobe("tun")
    except KernrigError:
        pytest.skip("this kernel or its image lacks the module tun")
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", b"tun", IFF_TUN | IFF_NO_PI))
        dev = Device.find(veth.ns_b, "tun")
        veth.ns_b.rtnl.request(link_up(dev.ifindex))
        yield fd, dev
    finally:
        os.close(fd)


def datagram(source: tuple[str, int], target: tuple[str, int], payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram that has no checksum."""
    ends = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, TTL, socket.IPPROTO_UDP, 0) + ends
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    return header + struct.pack("!HHHH", source[1], target[1], 8 + len(payload), 0) + payload


def test_a_device_without_link_layer_talks_to_a_peer(middle: Middle, tun: tuple[int, Device]) -> None:
    """MPROG-RUN-005, -009: on the way in the program makes the header, on the way out the kernel takes it off."""
    (fd, dev), c, d = tun, middle.far.a, middle.far.b
    asker, answerer = ("10.250.0.2", 1000), (d.address or "", PORT)
    d.ns.rtnl.request(new_route(asker[0], c.address or ""))
    macs = {"to_mac": mac_bytes(d.mac or ""), "from_mac": mac_bytes(c.mac or "")}
    with (
        Redirection(dev, c, macs) as redirection,
        d.ns.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        redirection.link(dev, "with_header_to_peer")
        redirection.link(c, "out_of")
        server.bind(answerer)
        server.settimeout(slow_factor())
        os.write(fd, datagram(asker, answerer, b"question"))
        assert server.recvfrom(100) == (b"question", asker)
        server.sendto(b"answer", asker)
        readable, _, _ = select.select([fd], [], [], slow_factor())
        assert readable
        answer = os.read(fd, 2048)
        assert (answer[:1], answer[12:20]) == (
            b"\x45",
            socket.inet_aton(answerer[0]) + socket.inet_aton(asker[0]),
        )
        assert answer.endswith(b"answer")
        assert redirection.redirected == 2
