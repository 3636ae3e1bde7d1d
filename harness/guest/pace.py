# SPDX-License-Identifier: MIT
"""How fast a machine is: the same small piece of work, timed in the guest and on the host.

Part of it is Python's, most is the kernel's (pipes, files of /proc), since a debug kernel is slow in its own code only.
No processes: what a fork costs is a matter of the memory of who forks.
"""

from __future__ import annotations

import os
import time

_TRIES = 7
_LOOPS = 20_000
_MESSAGES = 300
_FILES = 60


def seconds() -> float:
    """Seconds of wall time that the work takes here: the best of some tries, as another program may be in the way."""
    return min(_once() for _ in range(_TRIES))


def _once() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(_LOOPS):
        total += number & 7
    reader, writer = os.pipe()
    for _ in range(_MESSAGES):
        os.write(writer, b"message")
        os.read(reader, 16)
    os.close(reader)
    os.close(writer)
    for _ in range(_FILES):
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123  (pathlib's own cost is not the kernel's)
            file.read()
    return time.perf_counter() - began
