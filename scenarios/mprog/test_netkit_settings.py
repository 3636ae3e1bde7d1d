# SPDX-License-Identifier: MIT
"""What netkit devices let themselves be set to, and what becomes of it."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from harness.guest.bpf.uapi import NETKIT_DROP, NETKIT_PASS
from harness.guest.netns import NetNamespace
from harness.guest.privilege import as_nobody, own_network
from harness.guest.rtnl import (
    IFLA_NETKIT_HEADROOM,
    IFLA_NETKIT_PEER_POLICY,
    IFLA_NETKIT_POLICY,
    NETKIT_L3,
    change_netkit,
    link_up,
    new_address,
    new_netkit,
)
from harness.guest.traffic import send_frames
from scenarios.mprog.conftest import NetkitPair

pytestmark = [pytest.mark.requires("netkit")]

LARGE, LARGEST = 0xF000, 0xFFFF
DATAGRAM = b"x" * 100
UNKNOWN_POLICY = 99


def send_through_a_pair(headroom: int) -> bool:
    """Whether there can be a netkit pair of this headroom, in namespaces of the caller's own; a datagram is sent into
    it. Raises OSError."""
    own_network()
    with NetNamespace.current() as here, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        settings = {IFLA_NETKIT_HEADROOM: struct.pack("=H", headroom)}
        create = new_netkit(
            "nk", 301, "nk_peer", 302, here.fd, policy=NETKIT_PASS, mode=NETKIT_L3, settings=settings
        )
        try:
            here.rtnl.request(create)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ERANGE):
                return False
            raise
        here.rtnl.request(link_up(301), link_up(302), new_address(301, "10.9.0.1", 24))
        assert sock.sendto(DATAGRAM, ("10.9.0.2", 9)) == len(DATAGRAM)
        return True


@pytest.mark.requires("netkit_headroom")
def test_a_packet_has_the_headroom_that_is_asked_for() -> None:
    """MPROG-QUIRK-012: much, but less than 64 KiB together with what the kernel adds."""
    assert as_nobody(send_through_a_pair, LARGE)


@pytest.mark.requires("netkit_headroom")
@pytest.mark.usefixtures("panic_on_oops")
@pytest.mark.known_issue(
    "MPROG-QUIRK-012", reason="offsets of 16 bits overflow", splat="page fault.*(eth_header|neigh_\\w+output)"
)
def test_nobody_gets_more_headroom_than_a_packet_can_have() -> None:
    """MPROG-QUIRK-012: the offsets of a packet's headers have 16 bits."""
    as_nobody(send_through_a_pair, LARGEST)


@pytest.mark.known_issue("MPROG-QUIRK-014", reason="the first policy is set before the second is looked at")
def test_a_refused_change_of_policies_changes_none(netkit_pair: NetkitPair) -> None:
    """MPROG-QUIRK-014, MPROG-NETKIT-009."""
    pair = netkit_pair()
    policies = {IFLA_NETKIT_POLICY: NETKIT_DROP, IFLA_NETKIT_PEER_POLICY: UNKNOWN_POLICY}
    with pytest.raises(OSError, match="change netkit") as refusal:
        pair.ns_a.rtnl.request(change_netkit(pair.a.ifindex, policies))
    assert refusal.value.errno == errno.EINVAL
    assert send_frames(pair, 1) == 1
