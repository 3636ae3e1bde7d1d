# SPDX-License-Identifier: MIT
"""What inet_diag tells of sockets' congestion controls, to whoever asks the kernel itself."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from harness.guest import tcp
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from scenarios.struct_ops.algorithms import Algorithm
from scenarios.struct_ops.conftest import NewOps

pytestmark = [pytest.mark.requires("struct_ops")]

# include/uapi/linux/{netlink,sock_diag,inet_diag}.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLMSG_DONE = 4, 20, 3
NLM_F_REQUEST_DUMP = 0x301
INET_DIAG_CONG = 4
ESTABLISHED = 1 << 1
HEADER = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBBxI48x")
REPLY = struct.Struct("=BBBB48s5I")


def told(namespace: NetNamespace, *extensions: int) -> dict[int, str | None]:
    """The congestion control of each connection of IPv4 by its local port, if that was asked for and is told."""
    asked = sum(1 << each - 1 for each in extensions)
    body = REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, asked, ESTABLISHED)
    found: dict[int, str | None] = {}
    with namespace.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asking:
        length = HEADER.size + len(body)
        asking.send(HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, answer in parts(asking.recv(1 << 16), HEADER.size):
                if kind == NLMSG_DONE:
                    return found
                assert kind == SOCK_DIAG_BY_FAMILY
                port = int.from_bytes(answer[4:6], "big")
                attributes = dict(parts(answer[REPLY.size :], 4))
                name = attributes.get(INET_DIAG_CONG)
                found[port] = None if name is None else name.rstrip(b"\0").decode()


def parts(raw: bytes, header: int) -> Iterator[tuple[int, bytes]]:
    """Kind and content of the messages (or attributes) in a message, whose headers have this size."""
    while len(raw) >= header:
        length, kind = struct.unpack_from("=IH" if header == HEADER.size else "=HH", raw)
        yield kind, raw[header:length]
        raw = raw[(length + 3) & ~3 :]


def test_each_connection_is_told_with_the_algorithm_it_has(
    veth: VethPair, new_ops: NewOps, idle: Algorithm
) -> None:
    """STOPS-TCP-023, -013, -014: as the socket itself says, also when it changed or its table was unregistered."""
    first, second = new_ops(), new_ops()
    first.update(idle.members("kr_first"))
    second.update(idle.members("kr_second"))
    with (
        tcp.connect(veth, congestion="kr_first") as one,
        tcp.connect(veth, congestion="kr_second") as two,
        tcp.connect(veth, congestion="kr_second") as changed,
    ):
        pairs = (one, two, changed)
        ports = [pair.client.getsockname()[1] for pair in pairs]
        tcp.set_congestion(changed.client, "reno")
        first.delete()
        expected = dict(zip(ports, ("kr_first", "kr_second", "reno"), strict=True))
        assert [pair.congestion for pair in pairs] == list(expected.values())
        assert told(veth.ns_a, INET_DIAG_CONG) == expected
        assert told(veth.ns_a) == dict.fromkeys(ports)
