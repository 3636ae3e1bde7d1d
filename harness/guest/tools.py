# SPDX-License-Identifier: MIT
"""Other people's tools in the guest: what bpftool, tc, ip and ss make of the same kernel.

They run in the calling thread's network namespace, as root, whatever capabilities the thread has given up.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

from harness.errors import KernrigError
from harness.guest.waiting import slow_factor

# Seconds of a native machine; each answers within some 10 ms there.
DEADLINE = 5.0


class ToolError(KernrigError):
    """A tool failed: `command`, `code` (its exit code; None: it did not end, or could not be started), what it
    wrote to `stdout` and `stderr`.
    """

    def __init__(
        self, command: tuple[str, ...], code: int | None, reason: str, stdout: str = "", stderr: str = ""
    ) -> None:
        said = [
            f"  {name}: {text.strip()}" for name, text in (("stdout", stdout), ("stderr", stderr)) if text
        ]
        super().__init__("\n".join([f"{shlex.join(command)}: {reason}", *said]))
        self.command = command
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


def run(*command: object, timeout: float = DEADLINE) -> str:
    """What the command writes to its standard output; its words may be paths and numbers.

    `timeout` is in native seconds. Raises ToolError when there is no such program, when it does not end in
    time, or when its exit code is not 0.
    """
    words = tuple(map(str, command))
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout * slow_factor()
        )
    except OSError as error:
        raise ToolError(words, None, f"cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(words, None, f"did not end within {error.timeout:.3g} s") from error
    if done.returncode != 0:
        raise ToolError(words, done.returncode, f"exit code {done.returncode}", done.stdout, done.stderr)
    return done.stdout


def parsed(*command: object, timeout: float = DEADLINE) -> Any:
    """The JSON that the command writes; None if it writes nothing. Raises ToolError, also if it is no JSON."""
    text = run(*command, timeout=timeout)
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        words = tuple(map(str, command))
        raise ToolError(words, 0, f"its output is no JSON ({error})", text) from error


def bpftool(*args: object) -> Any:
    """What `bpftool -j ARGS` tells, such as `bpftool("map", "dump", "id", 3)`; None from commands that tell nothing.

    Raises ToolError: bpftool reports what went wrong on its standard output.
    """
    return parsed("bpftool", "-j", *args)


def tc(*args: object) -> Any:
    """What `tc -j ARGS` tells; None from commands that tell nothing. Raises ToolError."""
    return parsed("tc", "-j", *args)


def ip(*args: object) -> Any:
    """What `ip -j ARGS` tells; None from commands that tell nothing. Raises ToolError."""
    return parsed("ip", "-j", *args)


def ss(*args: object) -> list[str]:
    """The lines of `ss -H -n -O ARGS`, one per socket: ss has no JSON. Raises ToolError."""
    return run("ss", "-H", "-n", "-O", *args).splitlines()
