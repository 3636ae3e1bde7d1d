# SPDX-License-Identifier: MIT
from __future__ import annotations

import struct
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from harness.errors import KernrigError
from harness.guest import rtnl
from harness.guest.net import Device, parse_counters
from harness.guest.netns import NetNamespace
from harness.guest.traffic import frame

PROC_NET_DEV = """\
Inter-|   Receive                            |  Transmit
 face |bytes packets errs drop fifo frame .. |bytes packets errs drop fifo colls carrier compressed
    lo:    0       0    0    0    0     0 0 0     0       0    0    0    0     0       0          0
veth-a:  446       7    1    2    0     0 0 0   888      14    3    4    0     0       0          0
"""


def decode(request: rtnl.Request, kind: type[Any]) -> Any:
    """The request as pyroute2 understands it."""
    message = kind(rtnl.encode([request], 1))
    message.decode()
    return message


def test_a_veth_request_is_what_pyroute2_understands_by_one() -> None:
    message = decode(
        rtnl.new_veth("va", 100, "02:00:00:00:00:01", "vb", 101, "02:00:00:00:00:02", 7), ifinfmsg
    )
    assert message["index"] == 100
    assert message.get_attr("IFLA_IFNAME") == "va"
    assert message.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:01"
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer["index"] == 101
    assert peer.get_attr("IFLA_IFNAME") == "vb"
    assert peer.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:02"
    assert peer.get_attr("IFLA_NET_NS_FD") == 7


@pytest.mark.parametrize(("address", "prefix", "nodad"), [("10.1.0.1", 24, None), ("fd00::1", 64, 0x82)])
def test_an_address_request_says_that_an_ipv6_address_needs_no_detection(
    address: str, prefix: int, nodad: int | None
) -> None:
    message = decode(rtnl.new_address(100, address, prefix), ifaddrmsg)
    assert (message["index"], message["prefixlen"]) == (100, prefix)
    assert message.get_attr("IFA_LOCAL") == address
    assert message.get_attr("IFA_FLAGS") == nodad


def test_a_neighbour_request_is_for_a_permanent_one() -> None:
    message = decode(rtnl.new_neighbour(100, "10.1.0.2", "02:00:00:00:00:02"), ndmsg)
    assert (message["ifindex"], message["state"]) == (100, rtnl.NUD_PERMANENT)
    assert message.get_attr("NDA_DST") == "10.1.0.2"
    assert message.get_attr("NDA_LLADDR") == "02:00:00:00:00:02"


def test_requests_are_numbered_and_each_asks_for_an_answer() -> None:
    buffer = rtnl.encode([rtnl.link_up(100), rtnl.delete_link(100)], 5)
    length, kind, flags, sequence, _ = rtnl.NLMSGHDR.unpack_from(buffer)
    assert (kind, sequence) == (rtnl.RTM_NEWLINK, 5)
    assert flags & rtnl.NLM_F_ACK
    second = rtnl.NLMSGHDR.unpack_from(buffer, length)
    assert (second[1], second[3]) == (rtnl.RTM_DELLINK, 6)
    assert length + second[0] == len(buffer)


def test_attributes_are_padded_but_their_length_is_not() -> None:
    assert rtnl.attribute(3, b"abc") == struct.pack("=HH", 7, 3) + b"abc\0"


def test_counters_are_read_by_column() -> None:
    counters = parse_counters(PROC_NET_DEV)["veth-a"]
    assert (counters.rx_bytes, counters.rx_packets, counters.rx_errors, counters.rx_dropped) == (446, 7, 1, 2)
    assert (counters.tx_bytes, counters.tx_packets, counters.tx_errors, counters.tx_dropped) == (
        888,
        14,
        3,
        4,
    )


def test_counters_are_subtracted_field_by_field() -> None:
    found = parse_counters(PROC_NET_DEV)
    assert found["veth-a"] - found["lo"] == found["veth-a"]
    assert (found["veth-a"] - found["veth-a"]).tx_packets == 0


def test_a_frame_has_both_addresses_and_the_shortest_legal_length() -> None:
    here = NetNamespace(-1)
    a = Device(name="a", ifindex=1, ns=here, mac="02:00:00:00:00:01")
    b = Device(name="b", ifindex=2, ns=here, mac="02:00:00:00:00:02")
    wire = frame(a, b, b"hello")
    assert len(wire) == 60
    assert wire.startswith(bytes.fromhex("02000000000202000000000188b5") + b"hello\0")


def test_a_frame_needs_known_addresses() -> None:
    a = Device(name="a", ifindex=1, ns=NetNamespace(-1))
    with pytest.raises(KernrigError, match="MAC"):
        frame(a, a)


def test_only_sysctls_of_the_network_belong_to_a_namespace() -> None:
    with NetNamespace.current() as here, pytest.raises(KernrigError, match=r"kernel\.panic"):
        here.sysctl("kernel.panic")
