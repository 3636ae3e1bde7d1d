# SPDX-License-Identifier: MIT
"""netfilter's hooks at a device, by nf_tables: a chain without rules, whose policy drops every packet."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from harness.guest.net import Device
from harness.guest.rtnl import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, NLMSGHDR, attribute, nest

# include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h, include/uapi/linux/netfilter.h
NETLINK_NETFILTER = 12
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SUBSYS_NFTABLES = 10
NEWTABLE, DELTABLE, NEWCHAIN = 0, 2, 3
NFTA_TABLE_NAME = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_HOOK_DEV = 1, 2, 3
NFPROTO_NETDEV = 5
NF_NETDEV_INGRESS, NF_NETDEV_EGRESS = 0, 1
NF_DROP = 0
TABLE = b"kernrig\0"


@contextmanager
def dropping(device: Device, *, egress: bool = False) -> Iterator[None]:
    """During the block, netfilter drops all that comes to its hook at the device.

    Needs the module nf_tables. Raises OSError with the kernel's errno.
    """
    hook = nest(
        NFTA_CHAIN_HOOK,
        attribute(NFTA_HOOK_HOOKNUM, _be32(NF_NETDEV_EGRESS if egress else NF_NETDEV_INGRESS)),
        attribute(NFTA_HOOK_PRIORITY, _be32(0)),
        attribute(NFTA_HOOK_DEV, device.name.encode() + b"\0"),
    )
    chain = [
        attribute(NFTA_CHAIN_TABLE, TABLE),
        attribute(NFTA_CHAIN_NAME, b"all\0"),
        hook,
        attribute(NFTA_CHAIN_POLICY, _be32(NF_DROP)),
        attribute(NFTA_CHAIN_TYPE, b"filter\0"),
    ]
    table = attribute(NFTA_TABLE_NAME, TABLE)
    with device.ns.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as nfnetlink:
        _transact(nfnetlink, (NEWTABLE, NLM_F_CREATE, table), (NEWCHAIN, NLM_F_CREATE, b"".join(chain)))
        try:
            yield
        finally:
            _transact(nfnetlink, (DELTABLE, 0, table))


def _transact(nfnetlink: socket.socket, *messages: tuple[int, int, bytes]) -> None:
    """Send the messages as one batch, which takes effect as a whole or not at all."""
    batch = [_message(BATCH_BEGIN, 0, 0, b"", family=socket.AF_UNSPEC, resource=SUBSYS_NFTABLES)]
    for sequence, (kind, flags, attributes) in enumerate(messages, 1):
        batch.append(_message(SUBSYS_NFTABLES << 8 | kind, flags | NLM_F_ACK, sequence, attributes))
    batch.append(_message(BATCH_END, 0, 0, b"", family=socket.AF_UNSPEC, resource=SUBSYS_NFTABLES))
    nfnetlink.send(b"".join(batch))
    waiting = set(range(1, len(messages) + 1))
    while waiting:
        answers = nfnetlink.recv(65536)
        while answers:
            length, kind, _, sequence, _ = NLMSGHDR.unpack_from(answers)
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", answers, NLMSGHDR.size)
                if code:
                    raise OSError(-code, f"nf_tables: {os.strerror(-code)}")
                waiting.discard(sequence)
            answers = answers[(length + 3) & ~3 :]


def _message(
    kind: int,
    flags: int,
    sequence: int,
    attributes: bytes,
    *,
    family: int = NFPROTO_NETDEV,
    resource: int = 0,
) -> bytes:
    payload = struct.pack("!BBH", family, 0, resource) + attributes
    return NLMSGHDR.pack(NLMSGHDR.size + len(payload), kind, NLM_F_REQUEST | flags, sequence, 0) + payload


def _be32(number: int) -> bytes:
    return struct.pack("!I", number)
