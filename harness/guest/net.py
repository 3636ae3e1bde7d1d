# SPDX-License-Identifier: MIT
"""Devices and veth pairs across two network namespaces, ready for traffic when they are handed out.

Namespaces come from `harness.guest.netns`, queueing disciplines and filters from `harness.guest.qdisc`,
packets from `harness.guest.traffic`, live TCP connections from `harness.guest.tcp`.
"""

from __future__ import annotations

import fcntl
import itertools
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import Request, delete_link, link_up, new_address, new_neighbour, new_veth
from harness.guest.waiting import wait_until

__all__ = ["Device", "LinkCounters", "NetNamespace", "VethPair", "parse_counters", "veth_pair"]

SIOCGIFFLAGS = 0x8913
SIOCGIFINDEX = 0x8933
IFF_RUNNING = 0x40
IFREQ_SIZE = 40
IFNAMSIZ = 16

PREFIX_LENGTH = 24
PREFIX_LENGTH6 = 64


@dataclass(frozen=True)
class LinkCounters:
    """A device's counters since it was made, from /proc/net/dev (net/core/net-procfs.c)."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int

    def __sub__(self, earlier: LinkCounters) -> LinkCounters:
        """What was counted since `earlier`."""
        return LinkCounters(*(getattr(self, f) - getattr(earlier, f) for f in self.__dataclass_fields__))


@dataclass(frozen=True)
class Device:
    """A network device and the namespace it is in; the addresses are those that it was made with, if any."""

    name: str
    ifindex: int
    ns: NetNamespace
    mac: str | None = None
    address: str | None = None
    address6: str | None = None

    @classmethod
    def find(cls, ns: NetNamespace, name: str) -> Device:
        """The device called `name` in `ns`. Raises OSError (ENODEV) when there is none."""
        answer = fcntl.ioctl(ns.rtnl.socket, SIOCGIFINDEX, _ifreq(name))
        (ifindex,) = struct.unpack_from("=i", answer, IFNAMSIZ)
        return cls(name=name, ifindex=ifindex, ns=ns)

    def flags(self) -> int:
        """The IFF_* flags. Raises OSError (ENODEV) when the device is gone."""
        answer = fcntl.ioctl(self.ns.rtnl.socket, SIOCGIFFLAGS, _ifreq(self.name))
        (flags,) = struct.unpack_from("=H", answer, IFNAMSIZ)
        return int(flags)

    def is_running(self) -> bool:
        """Whether it is up and has a carrier that the kernel has noted (operational state up or unknown)."""
        return bool(self.flags() & IFF_RUNNING)

    def counters(self) -> LinkCounters:
        """The device's packet and byte counters. Raises `KernrigError` when the device is gone."""
        with self.ns.entered():
            found = parse_counters(Path("/proc/thread-self/net/dev").read_text())
        if self.name not in found:
            raise KernrigError(f"counters of device {self.name}: {self.ns} has only {', '.join(found)}")
        return found[self.name]


@dataclass(frozen=True)
class VethPair:
    """Two connected devices: what leaves `a` arrives at `b`, and the other way round."""

    a: Device
    b: Device
    ns_a: NetNamespace
    ns_b: NetNamespace

    @property
    def flipped(self) -> VethPair:
        """The same pair seen from its other end, for traffic from `b` to `a`."""
        return VethPair(a=self.b, b=self.a, ns_a=self.ns_b, ns_b=self.ns_a)


# Indices that no device of a fresh namespace has, different in both ends: a program that confuses the two is
# noticed.
_pairs = itertools.count()


@contextmanager
def veth_pair(
    *,
    ns_a: NetNamespace | None = None,
    ns_b: NetNamespace | None = None,
    names: tuple[str, str] = ("veth-a", "veth-b"),
    ipv6: bool = False,
    timeout: float = 2.0,
) -> Iterator[VethPair]:
    """A veth pair across two namespaces, both ends up, running and able to reach each other.

    Without `ns_a`, `ns_b` new namespaces are made, which go with the block; from given ones just the devices
    are removed. Addresses are 10.N.0.1/24 and 10.N.0.2/24 (and with `ipv6` fd00:N::1/64, fd00:N::2/64), N
    counting the process's pairs. Each end knows the other as permanent neighbour and has no IPv6 unless asked
    for: no packet crosses the pair that the scenario did not send. Raises OSError when the kernel refuses
    (EEXIST for a taken name), and `WaitTimeout` when an end isn't running within `timeout` native seconds.
    """
    number = next(_pairs) % 250
    with ExitStack() as stack:
        given = ns_a is not None or ns_b is not None
        ns_a = ns_a or stack.enter_context(NetNamespace.create(ipv6=ipv6))
        ns_b = ns_b or stack.enter_context(NetNamespace.create(ipv6=ipv6))
        a, b = (
            Device(
                name=name,
                ifindex=100 + 2 * number + (side - 1),
                ns=ns,
                mac=f"02:00:00:00:{number:02x}:{side:02x}",
                address=f"10.{number}.0.{side}",
                address6=f"fd00:{number:x}::{side}" if ipv6 else None,
            )
            for side, name, ns in zip((1, 2), names, (ns_a, ns_b), strict=True)
        )
        assert a.mac and b.mac
        create = new_veth(a.name, a.ifindex, a.mac, b.name, b.ifindex, b.mac, ns_b.fd)
        ns_a.rtnl.request(create)
        if given:
            stack.callback(_delete_if_there, a)
        ns_a.rtnl.request(*_configuration(a, b))
        ns_b.rtnl.request(*_configuration(b, a))
        for device in (a, b):
            wait_until(device.is_running, timeout=timeout, what=f"{device.name} in {device.ns} to be running")
        yield VethPair(a=a, b=b, ns_a=ns_a, ns_b=ns_b)


def parse_counters(text: str) -> dict[str, LinkCounters]:
    """The counters by device name in a /proc/net/dev text."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        n = [int(field) for field in numbers.split()]
        found[name.strip()] = LinkCounters(n[0], n[1], n[2], n[3], n[8], n[9], n[10], n[11])
    return found


def _configuration(device: Device, peer: Device) -> list[Request]:
    assert device.address and peer.address and peer.mac
    index = device.ifindex
    wanted = [new_address(index, device.address, PREFIX_LENGTH), link_up(index)]
    if device.address6 and peer.address6:
        wanted += [
            new_address(index, device.address6, PREFIX_LENGTH6),
            new_neighbour(index, peer.address6, peer.mac),
        ]
    # A neighbour is refused while the device is down.
    return [*wanted, new_neighbour(index, peer.address, peer.mac)]


def _delete_if_there(device: Device) -> None:
    try:
        current = Device.find(device.ns, device.name)
    except OSError:
        return
    if current.ifindex == device.ifindex:
        device.ns.rtnl.request(delete_link(device.ifindex))


def _ifreq(name: str) -> bytes:
    return struct.pack(f"={IFNAMSIZ}s{IFREQ_SIZE - IFNAMSIZ}x", name.encode())
