# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.deadline import Deadline
from harness.ssh import SshClient
from harness.vm.keys import load_key, new_key


class Anybody(paramiko.ServerInterface):
    """Lets each client in."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(paramiko.common.AUTH_SUCCESSFUL)


class SlowReader:
    """A connection whose reader is slow to say that it has come to the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def recv(self, size: int) -> bytes:
        data = self._connection.recv(size)
        if not data:
            time.sleep(0.2)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode()))


@pytest.fixture
def server(host_key: paramiko.PKey) -> Iterator[tuple[paramiko.Transport, socket.socket]]:
    """A server, and the client's end of its connection."""
    ours, theirs = socket.socketpair()
    with ours:
        transport = paramiko.Transport(theirs)
        transport.add_server_key(host_key)
        transport.start_server(server=Anybody(), event=threading.Event())
        yield transport, ours
        transport.close()


@pytest.mark.parametrize("who", ["we", "the guest"])
def test_nobody_reads_a_connection_that_was_closed(
    server: tuple[paramiko.Transport, socket.socket], host_key: paramiko.PKey, who: str
) -> None:
    """Its descriptor's number is the next machine's."""
    guest, connection = server
    private, _ = new_key()
    client = SshClient(
        SlowReader(connection),  # type: ignore[arg-type]
        key=load_key(private),
        host_key=host_key.get_base64(),
        deadline=Deadline.after(20, "the handshake"),
    )
    reader = client._transport
    assert client.alive() and reader.is_alive()
    if who == "the guest":
        guest.close()
    client.close()
    assert not reader.is_alive()
