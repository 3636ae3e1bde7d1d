# SPDX-License-Identifier: MIT
"""SSH through paramiko, with a deadline on every wait."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass

import paramiko
from paramiko.common import cMSG_CHANNEL_OPEN
from paramiko.message import Message

from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError

# It logs each lost connection, which here is how a machine ends; what matters is raised.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

STREAMLOCAL = "direct-streamlocal@openssh.com"
_GOODBYE_SECONDS = 10


class SshError(KernrigError):
    """The SSH connection could not be made, or broke."""


class _Transport(paramiko.Transport):
    """paramiko's transport, taught OpenSSH's extension to reach a unix socket in the guest.

    The extension is in OpenSSH's PROTOCOL file, section 2.4: after the usual fields of a channel-open message come the
    socket's path and two reserved fields. paramiko builds the usual fields only.
    """

    # The guest's server is dropbear, whose arithmetic is portable C: what is cheap there was measured (make bench).
    _preferred_kex = ("curve25519-sha256@libssh.org",)
    _preferred_ciphers = ("aes128-ctr",)
    _preferred_macs = ("hmac-sha2-256",)
    _preferred_keys = ("ssh-ed25519",)
    _preferred_pubkeys = ("rsa-sha2-256",)

    socket_path: str | None = None

    def _send_user_message(self, data: Message) -> None:
        if self.socket_path is not None and data.asbytes()[:1] == cMSG_CHANNEL_OPEN:
            data.add_string(self.socket_path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]


class _Prefixed:
    """A connected socket that first yields bytes which were received earlier."""

    def __init__(self, connection: socket.socket, prefix: bytes) -> None:
        self._connection = connection
        self._prefix = prefix
        self._closed = False  # paramiko looks at its socket's attribute of that name

    def recv(self, size: int) -> bytes:
        if self._prefix:
            data, self._prefix = self._prefix[:size], self._prefix[size:]
            return data
        return self._connection.recv(size)

    def send(self, data: bytes) -> int:
        return self._connection.send(data)

    def settimeout(self, timeout: float | None) -> None:
        self._connection.settimeout(timeout)

    def close(self) -> None:
        self._closed = True
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@dataclass(frozen=True)
class Completed:
    """A command that ended in the guest."""

    status: int
    output: bytes
    errors: bytes


class SshClient:
    """An authenticated connection. Raises SshError when it breaks, DeadlineError when a wait is over."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        key: paramiko.PKey,
        host_key: str,
        deadline: Deadline,
        prefix: bytes = b"",
    ) -> None:
        """`host_key` is the only one accepted, in base64; `prefix` is what the server has already said."""
        self._connection = _Prefixed(connection, prefix)
        self._transport = _Transport(self._connection)  # type: ignore[arg-type]
        self._open_lock = threading.Lock()
        self._transport.daemon = True
        for name in ("banner_timeout", "handshake_timeout", "auth_timeout", "channel_timeout"):
            setattr(self._transport, name, deadline.remaining())
        try:
            self._transport.start_client(timeout=deadline.remaining())
            if self._transport.get_remote_server_key().get_base64() != host_key:
                raise SshError("The guest's SSH server has another host key than its template's.")
            self._transport.auth_publickey("root", key)
        except SshError:
            self.close()
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            if deadline.passed():
                raise deadline.error(str(error)) from error
            raise SshError(f"SSH to the guest failed: {error or type(error).__name__}") from error

    def alive(self) -> bool:
        return self._transport.is_active()

    def open_socket(self, path: str, *, deadline: Deadline) -> paramiko.Channel:
        """A channel to a listening unix socket in the guest."""
        with self._open_lock:
            self._transport.socket_path = path
            try:
                return self._transport.open_channel(STREAMLOCAL, timeout=deadline.check())
            except (paramiko.SSHException, OSError, EOFError) as error:
                if deadline.passed():
                    raise deadline.error(str(error)) from error
                raise SshError(f"{path} in the guest can't be reached: {error}") from error
            finally:
                self._transport.socket_path = None

    def open_session(self, *, deadline: Deadline) -> paramiko.Channel:
        """A session channel, for a command or a shell."""
        with self._open_lock:
            try:
                return self._transport.open_session(timeout=deadline.check())
            except (paramiko.SSHException, OSError, EOFError) as error:
                if deadline.passed():
                    raise deadline.error(str(error)) from error
                raise SshError(f"The guest gives no SSH session: {error}") from error

    def run(self, command: str, *, stdin: bytes = b"", seconds: float = 60) -> Completed:
        """Run one shell command in the guest and collect what it prints."""
        deadline = Deadline.after(seconds, f"the guest's command {command!r}")
        channel = self.open_session(deadline=deadline)
        with channel:
            channel.exec_command(command)
            sender = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
            sender.start()
            output, errors = bytearray(), bytearray()
            while True:
                read = False
                while channel.recv_ready():
                    output += channel.recv(65536)
                    read = True
                while channel.recv_stderr_ready():
                    errors += channel.recv_stderr(65536)
                    read = True
                if read:
                    continue
                if channel.exit_status_ready() and channel.eof_received:
                    if not channel.recv_ready() and not channel.recv_stderr_ready():
                        return Completed(channel.recv_exit_status(), bytes(output), bytes(errors))
                    continue
                if not self.alive():
                    raise SshError(f"The connection ended while {command!r} ran in the guest.")
                deadline.check()
                _wait_for_data(channel, min(0.5, deadline.remaining()))

    def close(self) -> None:
        """Hang up; never raises. When it returns nothing reads from the connection any more.

        paramiko's own close() does not wait for its thread. Between two reads that would find the descriptor's number
        to be another machine's, and take the head of what that says.
        """
        self._transport.close()
        self._connection.close()
        if self._transport.is_alive():
            self._transport.join(_GOODBYE_SECONDS)


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    try:
        if data:
            channel.sendall(data)
        channel.shutdown_write()
    except OSError:
        pass


def _wait_for_data(channel: paramiko.Channel, seconds: float) -> None:
    """Wait until the channel has something to read or has ended, `seconds` at the most."""
    end = time.monotonic() + seconds
    pause = 0.001
    while time.monotonic() < end:
        if (
            channel.recv_ready()
            or channel.recv_stderr_ready()
            or channel.exit_status_ready()
            or channel.closed
        ):
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


class Lines:
    """Lines from a channel, each wait bounded by a deadline."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._rest = b""

    def next(self, deadline: Deadline) -> bytes | None:
        """The next line without its end, or None when the guest has closed the channel."""
        while b"\n" not in self._rest:
            self._channel.settimeout(max(0.001, deadline.remaining()))
            try:
                data = self._channel.recv(65536)
            except TimeoutError:
                raise deadline.error() from None
            if not data:
                return None
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line


__all__ = ["Completed", "DeadlineError", "Lines", "SshClient", "SshError"]
