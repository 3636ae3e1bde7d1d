# SPDX-License-Identifier: MIT
"""Raw rtnetlink for the hot path: several requests in one system call, each with its own acknowledgement.

pyroute2 does everything else (`NetNamespace.ipr`), but building a pair of connected namespaces through it
costs many times what the kernel's own part does, and each scenario that needs a network pays for it under
TCG.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

# include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h, veth.h
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLA_F_NESTED = 0x8000
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWQDISC, RTM_DELQDISC = 16, 17, 20, 28, 36, 37
RTM_NEWROUTE, RTM_DELNEIGH, RTM_NEWTFILTER = 24, 29, 44
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_NETKIT_PEER_INFO, IFLA_NETKIT_PRIMARY, IFLA_NETKIT_POLICY, IFLA_NETKIT_PEER_POLICY = 1, 2, 3, 4
IFLA_NETKIT_MODE, IFLA_NETKIT_SCRUB, IFLA_NETKIT_PEER_SCRUB = 5, 6, 7
IFLA_NETKIT_HEADROOM, IFLA_NETKIT_PAIRING = 8, 10
NETKIT_L2, NETKIT_L3 = 0, 1
NETKIT_SCRUB_NONE, NETKIT_SCRUB_DEFAULT = 0, 1
NETKIT_DEVICE_PAIR, NETKIT_DEVICE_SINGLE = 0, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
RTA_DST, RTA_GATEWAY = 1, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
IFF_UP = 0x1
TCA_KIND, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 1, 13, 14
TC_H_CLSACT, CLSACT_HANDLE, NEW_HANDLE = 0xFFFFFFF1, 0xFFFF0000, 0xFFFE0000
INGRESS_FILTERS = 0xFFFFFFF2  # include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS
ALL_PROTOCOLS = socket.htons(0x0003)  # ETH_P_ALL

NLMSGHDR = struct.Struct("=IHHII")
IFINFOMSG = struct.Struct("=BxHiII")
IFADDRMSG = struct.Struct("=BBBBI")
NDMSG = struct.Struct("=BxxxiHBB")
TCMSG = struct.Struct("=BxxxiIII")
RTMSG = struct.Struct("=BBxxBBxBxxxx")


@dataclass(frozen=True)
class Request:
    """One rtnetlink message without its header; `what` says in an error message what was asked for."""

    what: str
    type: int
    flags: int
    payload: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def nest(kind: int, *members: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(members))


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address written with colons."""
    return bytes.fromhex(mac.replace(":", ""))


def _link(index: int, name: str, mac: str | None, *more: bytes) -> bytes:
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    ifname = attribute(IFLA_IFNAME, name.encode() + b"\0")
    address = attribute(IFLA_ADDRESS, mac_bytes(mac)) if mac else b""
    return header + ifname + address + b"".join(more)


def new_veth(
    name: str, index: int, mac: str, peer: str, peer_index: int, peer_mac: str, peer_ns_fd: int
) -> Request:
    """Create a veth pair with the given indices: `name` here, `peer` in the namespace of `peer_ns_fd`."""
    peer_link = _link(peer_index, peer, peer_mac, attribute(IFLA_NET_NS_FD, struct.pack("=I", peer_ns_fd)))
    info = nest(
        IFLA_LINKINFO,
        attribute(IFLA_INFO_KIND, b"veth"),
        nest(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer_link)),
    )
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(f"create veth {name} with peer {peer}", RTM_NEWLINK, flags, _link(index, name, mac, info))


# What IFLA_NETKIT_* attributes are set to: a number of 32 bits, or any bytes.
NetkitSettings = Mapping[int, int | bytes]


def new_netkit(
    name: str,
    index: int,
    peer: str,
    peer_index: int,
    peer_ns_fd: int,
    *,
    policy: int,
    mode: int = NETKIT_L2,
    macs: tuple[str | None, str | None] = (None, None),
    settings: NetkitSettings | None = None,
) -> Request:
    """Create a netkit pair: the primary `name` here, `peer` in the namespace of `peer_ns_fd`.

    `policy` is what the primary does with a packet that no program sees: NETKIT_PASS or NETKIT_DROP. Without
    `macs` (the primary's, the peer's) link-layer mode makes random ones. `settings` are further attributes.
    """
    peer_ns = attribute(IFLA_NET_NS_FD, struct.pack("=I", peer_ns_fd))
    info = _netkit(
        {
            IFLA_NETKIT_PEER_INFO: _link(peer_index, peer, macs[1], peer_ns),
            IFLA_NETKIT_POLICY: policy,
            IFLA_NETKIT_MODE: mode,
            **(settings or {}),
        }
    )
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(
        f"create netkit {name} with peer {peer}", RTM_NEWLINK, flags, _link(index, name, macs[0], info)
    )


def new_single_netkit(name: str, index: int, settings: NetkitSettings | None = None) -> Request:
    """Create a netkit device without a peer, as kernels with IFLA_NETKIT_PAIRING can."""
    info = _netkit({IFLA_NETKIT_PAIRING: NETKIT_DEVICE_SINGLE, **(settings or {})})
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(f"create single netkit {name}", RTM_NEWLINK, flags, _link(index, name, None, info))


def change_netkit(index: int, settings: NetkitSettings) -> Request:
    """Change settings of an existing netkit device."""
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return Request(f"change netkit device {index}", RTM_NEWLINK, 0, header + _netkit(settings))


def _netkit(settings: NetkitSettings) -> bytes:
    data = (
        attribute(kind, value if isinstance(value, bytes) else struct.pack("=I", value))
        for kind, value in settings.items()
    )
    return nest(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"netkit"), nest(IFLA_INFO_DATA, *data))


def set_mac(index: int, mac: str) -> Request:
    """Give the device another MAC address."""
    payload = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(IFLA_ADDRESS, mac_bytes(mac))
    return Request(f"set the MAC address of device {index}", RTM_NEWLINK, 0, payload)


def move_link(index: int, ns_fd: int) -> Request:
    """Move the device into the network namespace of `ns_fd`; it goes down on the way."""
    payload = IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    payload += attribute(IFLA_NET_NS_FD, struct.pack("=I", ns_fd))
    return Request(f"move device {index} to another namespace", RTM_NEWLINK, 0, payload)


def link_up(index: int) -> Request:
    """Set the device up."""
    return Request(
        f"set device {index} up", RTM_NEWLINK, 0, IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP)
    )


def delete_link(index: int) -> Request:
    """Delete the device (for a veth: both ends)."""
    return Request(f"delete device {index}", RTM_DELLINK, 0, IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def new_ingress_side(
    index: int, kind: str, *, replace: bool = False, ingress_block: int = 0, egress_block: int = 0
) -> Request:
    """Add a qdisc of kind "clsact" or "ingress" to the device; its filters may be those of shared blocks.

    EEXIST when there is one of either kind; with `replace` the new one is made, then put into its place: a handle
    that no qdisc has keeps the kernel from changing the old one (net/sched/sch_api.c:tc_modify_qdisc). EBUSY when
    the device would be in a shared block twice (net/sched/cls_api.c:tcf_block_get_ext, 6.8).
    """
    payload = _ingress_side(index, kind, handle=NEW_HANDLE if replace else CLSACT_HANDLE)
    for number, block in ((TCA_INGRESS_BLOCK, ingress_block), (TCA_EGRESS_BLOCK, egress_block)):
        if block:
            payload += attribute(number, struct.pack("=I", block))
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Request(f"add {kind} to device {index}", RTM_NEWQDISC, flags, payload)


def delete_ingress_side(index: int, kind: str) -> Request:
    """Delete that qdisc of the device with its filters."""
    return Request(f"delete {kind} of device {index}", RTM_DELQDISC, 0, _ingress_side(index, kind))


def new_ingress_filter(index: int, kind: str) -> Request:
    """Add a filter without any settings to the device's ingress. ENOENT when no classifier has this name.

    The kernel asks modprobe for one it does not know, and holds the qdisc meanwhile, but not RTNL
    (net/sched/cls_api.c:tc_new_tfilter).
    """
    payload = TCMSG.pack(socket.AF_UNSPEC, index, 0, INGRESS_FILTERS, 1 << 16 | ALL_PROTOCOLS)
    payload += attribute(TCA_KIND, kind.encode() + b"\0")
    return Request(f"add {kind} filter to device {index}", RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, payload)


def _ingress_side(index: int, kind: str, *, handle: int = CLSACT_HANDLE) -> bytes:
    # TC_H_INGRESS, where the ingress qdisc has its place, is the same number.
    header = TCMSG.pack(socket.AF_UNSPEC, index, handle, TC_H_CLSACT, 0)
    return header + attribute(TCA_KIND, kind.encode() + b"\0")


def new_address(index: int, address: str, prefix_length: int) -> Request:
    """Give the device an address; an IPv6 one is usable at once (no duplicate address detection)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    payload = IFADDRMSG.pack(family, prefix_length, IFA_F_PERMANENT, 0, index)
    payload += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if family == socket.AF_INET6:
        payload += attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD | IFA_F_PERMANENT))
    what = f"add {address}/{prefix_length} to device {index}"
    return Request(what, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload)


def new_neighbour(index: int, address: str, mac: str) -> Request:
    """Make `address` a permanent neighbour with the given MAC address, so that nobody has to ask for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    payload = NDMSG.pack(family, index, NUD_PERMANENT, 0, 0)
    payload += attribute(NDA_DST, socket.inet_pton(family, address)) + attribute(NDA_LLADDR, mac_bytes(mac))
    return Request(f"add neighbour {address} to device {index}", RTM_NEWNEIGH, NLM_F_CREATE, payload)


def delete_neighbour(index: int, address: str) -> Request:
    """Forget the neighbour: whoever sends to it has to ask for its MAC address. ENOENT when there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    payload = NDMSG.pack(family, index, 0, 0, 0) + attribute(NDA_DST, socket.inet_pton(family, address))
    return Request(f"delete neighbour {address} of device {index}", RTM_DELNEIGH, 0, payload)


def new_route(address: str, gateway: str) -> Request:
    """Route what is for one `address` by way of `gateway`, which must be reachable directly."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed, via = socket.inet_pton(family, address), socket.inet_pton(family, gateway)
    payload = RTMSG.pack(family, 8 * len(packed), RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST)
    payload += attribute(RTA_DST, packed) + attribute(RTA_GATEWAY, via)
    return Request(f"add route to {address} by {gateway}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, payload)


def encode(requests: Iterable[Request], first_sequence: int) -> bytes:
    """The requests as one buffer of consecutively numbered messages, each asking for an acknowledgement."""
    buffer = bytearray()
    for sequence, request in enumerate(requests, first_sequence):
        length = NLMSGHDR.size + len(request.payload)
        flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
        buffer += (
            NLMSGHDR.pack(length, request.type, flags, sequence, 0) + request.payload + b"\0" * (-length % 4)
        )
    return bytes(buffer)


class RtnlSocket:
    """A NETLINK_ROUTE socket; it stays in the network namespace in which it was made, whoever uses it."""

    def __init__(self) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = itertools.count(1)

    def request(self, *requests: Request) -> None:
        """Send all requests in one system call; the kernel works on them in order.

        The kernel does not stop at the first that fails. Raises OSError with the first failure's errno and
        its `what`, after all were answered.
        """
        numbered = {next(self._sequence): request for request in requests}
        self.socket.send(encode(numbered.values(), next(iter(numbered))))
        failure: OSError | None = None
        while numbered:
            answers = self.socket.recv(65536)
            offset = 0
            while offset + NLMSGHDR.size <= len(answers):
                length, kind, _, sequence, _ = NLMSGHDR.unpack_from(answers, offset)
                if kind == NLMSG_ERROR and sequence in numbered:
                    request = numbered.pop(sequence)
                    (code,) = struct.unpack_from("=i", answers, offset + NLMSGHDR.size)
                    if code and failure is None:
                        failure = OSError(-code, f"{request.what}: {os.strerror(-code)}")
                offset += (length + 3) & ~3
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the socket, and let go of its network namespace."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
