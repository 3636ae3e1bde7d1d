# SPDX-License-Identifier: MIT
"""Run a program and account for all of it: its output, its wall time, the CPU time of it and all it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harness.deadline import Deadline
from harness.errors import HostError

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
_REAP_SECONDS = 10.0


def children_cpu() -> float:
    """CPU seconds, user and system, of all children that were waited for, with all that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _adopt_orphans(adopt: bool) -> None:
    """Whether what a child of ours leaves behind becomes our child instead of init's (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(error)}")


class Program:
    """A running program in a session of its own. A context manager: at its end nothing that it started is left.

    Its orphans are adopted and reaped, so that `cpu` (known after the end, in seconds) misses nothing. It dies with
    this process. One at a time; children that this process had before are left alone.
    """

    def __init__(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> None:
        self._command = command
        self._cwd = cwd
        self._environment = environment
        self._output = bytearray()
        self.cpu = 0.0

    def __enter__(self) -> Self:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError("setpriv is not on this host.", hint="install util-linux")
        self._others = {child.pid for child in psutil.Process().children()}
        _adopt_orphans(True)
        try:
            self._cpu_before = children_cpu()
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *self._command],
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            _adopt_orphans(False)
            raise
        return self

    def output(self) -> str:
        """What it has written so far, both outputs together."""
        return self._output.decode("utf-8", "replace")

    def until(self, pattern: re.Pattern[str], deadline: Deadline) -> float | None:
        """The monotonic time at which its output first matched; None when it ended without.

        Raises DeadlineError.
        """
        while self._read(deadline):
            now = time.monotonic()
            if pattern.search(self.output()):
                return now
        return None

    def finish(self, deadline: Deadline) -> tuple[int, float]:
        """Wait for its end; returns the exit status and the wall time from its start in seconds.

        Raises DeadlineError.
        """
        while self._read(deadline):
            pass
        try:
            status = self._process.wait(deadline.check())
        except subprocess.TimeoutExpired:
            raise deadline.error("it closed its output but still runs") from None
        return status, time.monotonic() - self.started

    def interrupt(self) -> None:
        """What Ctrl-C would send, to the program alone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def _read(self, deadline: Deadline) -> bool:
        """Some more of the output; False at its end."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], deadline.check())[0]:
            raise deadline.error(f"so far it said: {self.output()[-500:]}")
        data = os.read(fd, 1 << 16)
        self._output += data
        return bool(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reap_orphans()
            self.cpu = children_cpu() - self._cpu_before
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()
            _adopt_orphans(False)

    def _reap_orphans(self) -> None:
        """End and reap what became ours; the end of one may bring us its own children."""
        deadline = Deadline.after(_REAP_SECONDS, f"what {self._command[0]} left behind to end")
        while left := [child for child in psutil.Process().children() if child.pid not in self._others]:
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
                with contextlib.suppress(psutil.TimeoutExpired):
                    child.wait(deadline.check())
