# SPDX-License-Identifier: MIT
"""QMP, QEMU's control protocol, for synchronous callers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from harness.deadline import Deadline
from harness.errors import KernrigError

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _shared_loop() -> asyncio.AbstractEventLoop:
    """One event loop in one daemon thread serves all monitors of this process."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="qmp", daemon=True).start()
        return _loop


class MonitorError(KernrigError):
    """QEMU refused a command, or its monitor is gone."""


class Monitor:
    """A connected QMP monitor. `events` collects what QEMU announced since the connection."""

    def __init__(self, connection: socket.socket, *, deadline: Deadline) -> None:
        self._client = QMPClient("kernrig")
        self.events: list[dict[str, Any]] = []
        self._wait(self._connect(connection), deadline)

    async def _connect(self, connection: socket.socket) -> None:
        await self._client.connect(connection)
        self._collector = asyncio.ensure_future(self._collect())

    async def _collect(self) -> None:
        with self._client.listener() as listener:
            async for event in listener:
                self.events.append(dict(event))

    def _wait(self, work: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        future = asyncio.run_coroutine_threadsafe(work, _shared_loop())
        try:
            return future.result(deadline.remaining())
        except TimeoutError:
            future.cancel()
            raise deadline.error("QEMU's monitor did not answer") from None
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused a command: {error}") from error
        except (QMPError, OSError) as error:
            raise MonitorError(f"QEMU's monitor is gone: {error}") from error

    def execute(self, command: str, arguments: dict[str, Any] | None = None, *, seconds: float = 30) -> Any:
        """The `return` member of QEMU's answer. Raises MonitorError or DeadlineError."""
        deadline = Deadline.after(seconds, f"QMP command {command}")
        return self._wait(self._client.execute(command, arguments), deadline)

    def close(self) -> None:
        """Disconnect; never raises."""

        async def disconnect() -> None:
            self._collector.cancel()
            with contextlib.suppress(Exception):
                await self._client.disconnect()

        with contextlib.suppress(Exception):
            self._wait(disconnect(), Deadline.after(2, "QMP disconnect"))
