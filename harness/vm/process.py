# SPDX-License-Identifier: MIT
"""One QEMU process: spawned without privileges, bound to the life of this process, with its sockets inherited."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import HostError
from harness.vm.console import Console
from harness.vm.devices import Device, command_line
from harness.vm.monitor import Monitor

NOBODY = 65534


@dataclass(frozen=True)
class PortNumbers:
    """The descriptors that QEMU inherits, as numbers for its command line."""

    console: int
    monitor: int
    control: int
    ssh: int


@cache
def _wrapper() -> tuple[str, ...]:
    """setpriv(1): die with the parent, gain nothing, and as root become nobody."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise HostError("setpriv is not on this host.", hint="install util-linux")
    words = [setpriv, "--pdeathsig", "KILL", "--no-new-privs"]
    if os.geteuid() == 0:
        words += ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps=-all"]
    return tuple(words)


class QemuProcess:
    """A running QEMU and our ends of its sockets.

    Has to be made in a thread that lives as long as the machine shall (the parent-death signal is bound to it).
    """

    def __init__(
        self,
        executable: Path,
        devices: Callable[[PortNumbers], Iterable[Device]],
        *,
        inherit: Iterable[int] = (),
        keep: socket.socket | None = None,
    ) -> None:
        """`inherit`: further descriptors for QEMU; `keep`: a socket of ours to hold open as long as it runs."""
        self._keep = keep
        with contextlib.ExitStack() as theirs:
            pairs = [socket.socketpair() for _ in range(4)]
            for _, remote in pairs:
                theirs.callback(remote.close)
            console, monitor, control, ssh = (remote.fileno() for _, remote in pairs)
            self.arguments = command_line(
                str(executable), devices(PortNumbers(console, monitor, control, ssh))
            )
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            try:
                self._process = subprocess.Popen(
                    [*_wrapper(), *self.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=(console, monitor, control, ssh, *inherit),
                    start_new_session=True,
                )
            except OSError as error:
                for local, _ in pairs:
                    local.close()
                self._errors.close()
                raise HostError(
                    f"QEMU could not be started: {error}", hint="kernrig doctor tells what is missing"
                ) from error
        self.console = Console(pairs[0][0])
        self._monitor_socket = pairs[1][0]
        self.control = pairs[2][0]
        self.ssh = pairs[3][0]
        self._monitor: Monitor | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def monitor(self) -> Monitor:
        """The QMP monitor; connected at the first call."""
        if self._monitor is None:
            self._monitor = Monitor(self._monitor_socket, deadline=Deadline.after(20, "QEMU's monitor"))
        return self._monitor

    def status(self) -> int | None:
        """QEMU's exit status (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    def wait(self, deadline: Deadline) -> int:
        """Wait for QEMU's end; returns its exit status."""
        try:
            return self._process.wait(deadline.remaining())
        except subprocess.TimeoutExpired:
            raise deadline.error("QEMU is still running") from None

    def errors(self) -> str:
        """What QEMU has written to its standard output and error."""
        size = self._errors.seek(0, os.SEEK_END)
        return os.pread(self._errors.fileno(), size, 0).decode("utf-8", "replace")

    def kill(self) -> None:
        """End QEMU at once and reap it."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill QEMU and give back all that belongs to it. The console's text and `errors()` stay readable."""
        self.kill()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self.console.finish()
        self.console.close()
        for connection in (self._monitor_socket, self.control, self.ssh, self._keep):
            if connection is not None:
                connection.close()
