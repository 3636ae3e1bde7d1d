# SPDX-License-Identifier: MIT
"""Connections on a congestion control, and what its name and its map's id say while they come and go."""

from __future__ import annotations

import errno
import socket

from harness.guest import tcp
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.errnos import fails_with
from harness.guest.waiting import slow_factor, wait_until

DEFAULT = "net.ipv4.tcp_congestion_control"
ALLOWED = "net.ipv4.tcp_allowed_congestion_control"
NON_RESTRICTED = 1  # TCP_CONG_NON_RESTRICTED, include/net/tcp.h


def assert_unknown(name: str) -> None:
    """No socket of the thread's namespace can choose `name`."""
    with socket.socket() as fresh, fails_with(errno.ENOENT):
        tcp.set_congestion(fresh, name)


def connect_to(listener: socket.socket, client: socket.socket) -> tcp.TcpPair:
    """A connection made of these two. Raises OSError."""
    for each in (listener, client):
        each.settimeout(5 * slow_factor())
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    return tcp.TcpPair(client, server, None)


def wait_until_freed(map_id: int, prog_ids: set[int]) -> None:
    """Wait for a map and its programs to be gone, for RCU-tasks grace periods, too (STOPS-QUIRK-009)."""
    wait_until(
        lambda: map_id not in Map.ids() and prog_ids.isdisjoint(Prog.ids()),
        timeout=10,
        what=f"struct_ops map {map_id} and its programs {sorted(prog_ids)} to be freed",
    )
