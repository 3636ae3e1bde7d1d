# SPDX-License-Identifier: MIT
"""The guest's control port, over which a machine is brought up: lines of JSON, and raw bytes behind some of them."""

from __future__ import annotations

import json
from typing import Any

from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError
from harness.vm.process import QemuProcess

_SAID_LINES = 3
_SAID_LENGTH = 300


class TemplateError(KernrigError):
    """A machine could not be booted, loaded or frozen."""

    quotes_guest = True


class ControlPort:
    """Our end of the guest's control port: lines of JSON."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process
        self._socket = process.control
        self._rest = b""

    def send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def send_bytes(self, data: bytes, deadline: Deadline) -> None:
        self._socket.settimeout(deadline.check())
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise deadline.error("the guest does not read") from None
        except OSError as error:
            raise TemplateError(f"the machine has ended ({_end(self._process)}): {error}") from error

    def receive_bytes(self, size: int, deadline: Deadline) -> bytes:
        """The raw bytes behind a message."""
        while len(self._rest) < size:
            self._fill(deadline)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def receive(self, deadline: Deadline) -> dict[str, Any]:
        """The next message. Raises DeadlineError, or TemplateError when the machine has ended."""
        while b"\n" not in self._rest:
            self._fill(deadline)
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _fill(self, deadline: Deadline) -> None:
        self._socket.settimeout(deadline.check())
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise deadline.error() from None
        except OSError:
            data = b""
        if not data:
            raise TemplateError(f"the machine has ended ({_end(self._process)})")
        self._rest += data


def _end(process: QemuProcess) -> str:
    """How QEMU ended, in words."""
    try:
        status = process.wait(Deadline.after(2, "QEMU's end"))
    except DeadlineError:
        return "QEMU still runs"
    said = " / ".join(process.errors().strip().splitlines()[:_SAID_LINES])
    return f"QEMU's exit status {status}" + (f", it said: {said[:_SAID_LENGTH]}" if said else "")


def console_tail(process: QemuProcess, lines: int = 25) -> str:
    """The end of what the guest has printed, for an error's text."""
    process.console.finish(0.2)
    tail = process.console.text().splitlines()[-lines:]
    return (
        "\n  console: " + "\n  console: ".join(tail) if tail else "\n  (nothing was printed on its console)"
    )
