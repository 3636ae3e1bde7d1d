# SPDX-License-Identifier: MIT
"""Where kernels are tried: pytest in a process of its own, repetitions in parallel clones of one template."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.bisect import observer
from harness.bisect.trial import Record, Sought
from harness.errors import HostError, KernrigError

_SAID = "kernrig: "
# What harness/kernels/source/build.py:teller says each ten seconds.
_PROGRESS = re.compile(r"\d+(?: of about \d+)? files in \d+ s, now .*")
# What harness/kernels/source says of each kernel; of all in a search the same.
_UNKNOWN = re.compile(r"this kernel does not know \w+")
_TELL_EVERY_S = 60.0
_LAST_LINES = 6
# pytest's own exit statuses (pytest.ExitCode): a wrong command line, nothing collected.
_USAGE_ERROR, _NO_TESTS = 4, 5
_PATIENCE: tuple[tuple[signal.Signals, float], ...] = (
    (signal.SIGINT, 60.0),
    (signal.SIGTERM, 20.0),
    (signal.SIGKILL, 20.0),
)


class Laboratory(Protocol):
    """Runs scenarios on kernels."""

    def run(self, kernel: str, rounds: int, sought: Sought | None = None, *, stop: bool = False) -> Record:
        """Run the scenarios `rounds` times on the kernel of that name: all, or those in which something is sought; with
        `stop` no further than to the first failure that is sought.

        A kernel that does not build or boot is a record that is `broken`. Raises KernrigError for what is no kernel's
        fault.
        """
        ...


@dataclass(frozen=True)
class Pytest:
    """`arguments` are pytest's as the user gave them, `jobs` how many clones run at once, `rootdir` where it is run."""

    arguments: tuple[str, ...]
    jobs: int
    rootdir: Path
    say: Callable[[str], None]
    _unknown: set[str] = field(default_factory=set)

    def run(self, kernel: str, rounds: int, sought: Sought | None = None, *, stop: bool = False) -> Record:
        """See Laboratory."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kernrig-bisect-") as name:
            folder = Path(name)
            observer.write_request(folder, sought, stop=stop)
            status, output = self._pytest(self._command(kernel, rounds), folder)
            ends, broken = observer.read_results(folder)
        seconds = time.monotonic() - began
        if broken is not None:
            if broken.by_host:
                raise HostError(
                    f"{kernel} could not be tried, which is no fault of the kernel:\n{broken.text}"
                )
            return Record(kernel, seconds=seconds, broken=broken.text)
        if ends:
            return Record(kernel, ends, seconds)
        if status in (_USAGE_ERROR, _NO_TESTS):
            raise KernrigError(
                f"pytest found nothing to run: {' '.join(self.arguments)}\n{_last(output)}",
                hint="give a scenario as pytest takes it: scenarios/mprog/test_order.py::test_name",
            )
        raise KernrigError(f"pytest ended with status {status} and told of no test:\n{_last(output)}")

    def _command(self, kernel: str, rounds: int) -> list[str]:
        # A known issue is a failure here, and the user's --lf is to remember the user's own runs.
        command = [sys.executable, "-m", "pytest", "-p", "harness.bisect.observer", "-p", "no:cacheprovider"]
        command += ["--no-header", "-rN", "--runxfail", f"--kr-kernel={kernel}", f"--kr-repeat={rounds}"]
        if self.jobs > 1 and rounds > 1:
            command += ["-n", str(min(self.jobs, rounds))]
        return [*command, *self.arguments]

    def _pytest(self, command: Sequence[str], folder: Path) -> tuple[int, str]:
        """Status and output; what it says about slow things (building a kernel) is passed on."""
        program = subprocess.Popen(
            command,
            cwd=self.rootdir,
            env=os.environ | {observer.VARIABLE: str(folder), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A Ctrl-C reaches it once, from here, and not a second time while it ends its machines.
            start_new_session=True,
        )
        output = []
        told = time.monotonic()
        assert program.stdout is not None
        try:
            for line in program.stdout:
                output.append(line)
                if not line.startswith(_SAID):
                    continue
                if unknown := _UNKNOWN.search(line):
                    if unknown[0] in self._unknown:
                        continue
                    self._unknown.add(unknown[0])
                progress = _PROGRESS.search(line)
                if progress is None:
                    self.say(f"  {line.removeprefix(_SAID).rstrip()}")
                elif time.monotonic() - told > _TELL_EVERY_S:
                    told = time.monotonic()
                    self.say(f"  {progress[0]}")
            return program.wait(), "".join(output)
        except BaseException:
            _end(program)
            raise


def _end(program: subprocess.Popen[str]) -> None:
    """End pytest with its machines; each further Ctrl-C makes it less gentle."""
    for number, seconds in _PATIENCE:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGINT:
                program.send_signal(number)
            else:
                os.killpg(program.pid, number)
        try:
            program.communicate(timeout=seconds)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue


def _last(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:]) or "pytest said nothing"
