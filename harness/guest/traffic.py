# SPDX-License-Identifier: MIT
"""Packets for programs to see: raw frames and UDP pings across a veth pair, counted where they arrive."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError
from harness.guest.net import Device, VethPair
from harness.guest.waiting import slow_factor, wait_until

ETH_P_ALL = 0x0003
# IEEE 802 "local experimental ethertype 1": no protocol of the kernel takes such a frame.
EXPERIMENTAL_ETHERTYPE = 0x88B5
SHORTEST_FRAME = 60


@dataclass(frozen=True)
class Pings:
    """How many UDP datagrams left, arrived at the other end, and came back."""

    sent: int
    arrived: int
    answered: int


def frame(
    source: Device, target: Device, payload: bytes = b"", *, ethertype: int = EXPERIMENTAL_ETHERTYPE
) -> bytes:
    """An Ethernet frame between two devices with known MAC addresses, padded to the shortest legal length."""
    if source.mac is None or target.mac is None:
        raise KernrigError(f"frame from {source.name} to {target.name}: a device without a known MAC address")
    header = bytes.fromhex((target.mac + source.mac).replace(":", "")) + struct.pack("!H", ethertype)
    return (header + payload).ljust(SHORTEST_FRAME, b"\0")


def packet_socket(device: Device, ethertype: int = ETH_P_ALL) -> socket.socket:
    """An AF_PACKET socket on the device, for sending, and for receiving frames of `ethertype` (default: all).

    With ETH_P_ALL it sees frames before tcx and clsact on ingress; with a particular type after them, only
    those that were let through (net/core/dev.c:__netif_receive_skb_core).
    """
    sock = device.ns.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
    try:
        sock.bind((device.name, ethertype))
    except BaseException:
        sock.close()
        raise
    return sock


def send_frames(
    veth: VethPair,
    count: int,
    *,
    payload: bytes = b"",
    ethertype: int = EXPERIMENTAL_ETHERTYPE,
    timeout: float = 1.0,
) -> int:
    """Send `count` frames from `veth.a` to `veth.b` and return how many got past b's ingress hooks.

    A veth puts frames on a CPU's backlog; when that is empty, what did not arrive was dropped. Raises OSError
    (ENOBUFS when a's egress hook dropped a frame), and `WaitTimeout` when the backlog does not empty within
    `timeout` native seconds.
    """
    wire = frame(veth.a, veth.b, payload, ethertype=ethertype)
    with packet_socket(veth.b, ethertype) as receiver, packet_socket(veth.a) as sender:
        receiver.setblocking(False)
        for _ in range(count):
            sender.send(wire)
        wait_until(lambda: backlog() == 0, timeout=timeout, what="the CPUs' packet backlogs to empty")
        return _drain(receiver)


def udp_pings(
    veth: VethPair, count: int = 1, *, port: int = 9, payload: bytes = b"ping", timeout: float = 0.2
) -> Pings:
    """Send `count` datagrams one by one from `veth.a` to `veth.b`, answering each from there.

    Each waits up to `timeout` native seconds, in each direction; one that does not come is counted as lost,
    so that a program's drops can be counted. A datagram refused on a's egress (ENOBUFS, EPERM) counts as
    lost, too.
    """
    assert veth.a.address and veth.b.address
    server = veth.ns_b.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    client = veth.ns_a.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    arrived = answered = 0
    with server, client:
        server.bind((veth.b.address, port))
        client.bind((veth.a.address, 0))
        for sock in (server, client):
            sock.settimeout(timeout * slow_factor())
        for number in range(count):
            data = struct.pack("!I", number) + payload
            try:
                client.sendto(data, (veth.b.address, port))
                received, sender = server.recvfrom(65535)
            except (TimeoutError, PermissionError):
                continue
            except OSError as refused:
                if refused.errno == errno.ENOBUFS:
                    continue
                raise
            if received != data:
                raise KernrigError(f"UDP ping {number}: sent {data!r}, {received!r} arrived")
            arrived += 1
            try:
                server.sendto(received, sender)
                if client.recv(65535) == data:
                    answered += 1
            except (TimeoutError, PermissionError):
                continue
    return Pings(sent=count, arrived=arrived, answered=answered)


def backlog() -> int:
    """How many received packets wait on all CPUs (the 12th column of softnet_stat, net/core/net-procfs.c)."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[11], 16) for line in lines)


def _drain(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(65535)
        except BlockingIOError:
            return count
        count += 1
