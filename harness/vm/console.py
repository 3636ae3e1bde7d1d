# SPDX-License-Identifier: MIT
"""The serial console: everything is kept as evidence, and pexpect works on the live stream."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pexpect
from pexpect.spawnbase import SpawnBase as _SpawnBase

if TYPE_CHECKING:
    SpawnBase = _SpawnBase[bytes]
else:
    SpawnBase = _SpawnBase

_PANIC = re.compile(rb"Kernel panic - not syncing")
_OVERLAP = 64


class Console(SpawnBase):
    """A pexpect stream over the guest's first serial port.

    A thread of its own drains the socket, so that the guest never blocks on its console, and keeps all of it in
    `text()`. `expect()` and its relatives read the same stream from where the last one stopped; `panicked` is set as
    soon as a panic was printed.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(timeout=30)
        self.panicked = threading.Event()
        self._connection = connection
        self._log = bytearray()
        self._cursor = 0
        self._ended = False
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._drain, name="console", daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        while True:
            try:
                data = self._connection.recv(65536)
            except OSError:
                data = b""
            with self._grown:
                if not data:
                    self._ended = True
                else:
                    start = max(0, len(self._log) - _OVERLAP)
                    self._log += data
                    if _PANIC.search(self._log, start):
                        self.panicked.set()
                self._grown.notify_all()
            if not data:
                return

    def text(self) -> str:
        """All that the guest has printed so far."""
        with self._grown:
            return self._log.decode("utf-8", "replace")

    def size(self) -> int:
        """Bytes printed so far: a mark for `since`."""
        return len(self._log)

    def since(self, mark: int) -> str:
        """What was printed after the mark."""
        with self._grown:
            return self._log[mark:].decode("utf-8", "replace")

    def finish(self, timeout: float = 2.0) -> None:
        """Wait until the last bytes of an ended QEMU are in."""
        self._reader.join(timeout)

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        """For pexpect: at most `size` new bytes; raises pexpect.TIMEOUT or pexpect.EOF."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._grown:
            while self._cursor >= len(self._log):
                if self._ended:
                    self.flag_eof = True
                    raise pexpect.EOF("the console was closed")
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise pexpect.TIMEOUT("nothing more on the console")
                self._grown.wait(left)
            data = bytes(self._log[self._cursor : self._cursor + size])
            self._cursor += len(data)
        return data

    def send(self, data: bytes | str) -> int:
        """Type on the console; returns the number of bytes."""
        raw = data.encode() if isinstance(data, str) else data
        self._connection.sendall(raw)
        return len(raw)

    def sendline(self, line: bytes | str = b"") -> int:
        raw = line.encode() if isinstance(line, str) else line
        return self.send(raw + b"\n")

    def isalive(self) -> bool:
        return not self._ended

    def close(self) -> None:
        """Give the console back; what was printed stays in `text()`."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reader.join(2.0)
        self._connection.close()

    def fileno(self) -> Any:
        return self._connection.fileno()
