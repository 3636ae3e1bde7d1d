# SPDX-License-Identifier: MIT
"""Running the programs that build an image: one environment for all, one way to end them and to report
failures."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError

# Stands wherever a tool wants a time (reproducible-builds.org, SOURCE_DATE_EPOCH): the day of trixie's
# release.
EPOCH = 1754697600
NOEXEC_HINT = "the host must be able to run x86-64 programs from the cache directory (is it mounted noexec?)"

# Whatever is downloaded has time-outs of its own; this ends what is stuck beyond them.
_LONGEST_S = 1800.0
_STUCK_HINT = "is the network or a disk stuck? Ending it and trying again is safe"
_LOG_LINES = 8
# mmdebstrap takes away what it has unpacked when it is told to end.
_ENDING_S = 15.0


@dataclass(frozen=True)
class Output:
    """What a program wrote to its standard output (empty when that went to a file) and error output."""

    out: str
    err: str


def run(
    command: Sequence[str],
    *,
    step: str,
    hint: str | Callable[[str], str],
    to: Path | None = None,
    env: dict[str, str] | None = None,
) -> Output:
    """Run a program to its end, with `env` on top of the build's environment and its output to the file `to`.

    Raises KernrigError "`step` failed ..." with the last lines of its error output, and `hint` (or what it
    makes of the error output), when the program cannot be started or its status is not 0. However this
    function is left, the program has ended.
    """
    target = subprocess.PIPE if to is None else os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.PIPE,
            env=_environment() | (env or {}),
        )
    except OSError as error:
        raise KernrigError(f"{step} failed: {command[0]} cannot be run: {error}", hint=NOEXEC_HINT) from error
    finally:
        if to is not None:
            os.close(target)
    with process:
        try:
            out, err = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise KernrigError(f"{step} failed: no end after {_LONGEST_S:.0f} s", hint=_STUCK_HINT) from error
        except BaseException:
            _end(process)
            raise
    log = err.decode(errors="replace")
    if process.returncode != 0:
        advice = hint if isinstance(hint, str) else hint(log)
        if "No space left on device" in log:
            advice = "free some disk space, in the cache directory and in the one for temporary files"
        # mmdebstrap's own progress follows what its apt-get has to say.
        said = [line for line in log.strip().splitlines() if not line.startswith("I: ")]
        tail = "".join(f"\n  {line}" for line in said[-_LOG_LINES:])
        ended = f"{Path(command[0]).name} ended with status {process.returncode}"
        raise KernrigError(f"{step} failed: {ended}{tail}", hint=advice)
    return Output("" if out is None else out.decode(errors="replace"), log)


def inside(root: Path, program: str) -> list[str]:
    """The beginning of a command line that runs `program` (a path in the unpacked `root`) on the host.

    It goes through the root's own loader and libraries (ld.so(8)): no chroot, no privileges.
    """
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(root / program)]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
