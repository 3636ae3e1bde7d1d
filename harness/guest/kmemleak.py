# SPDX-License-Identifier: MIT
"""Memory that nobody points to any more, on a kernel that was booted with `kmemleak=on`.

What a scan finds goes into the kernel's log, object by object with the stack of its allocation, and so into the
verdict. See Documentation/dev-tools/kmemleak.rst.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

REPORTS = Path("/sys/kernel/debug/kmemleak")
VERBOSE = Path("/sys/module/kmemleak/parameters/verbose")
PARAMETER = "kmemleak=on"

# mm/kmemleak.c: MSECS_MIN_AGE, younger objects may not yet be where somebody points to them; and an object is reported
# by the second scan at the earliest, as the first one only takes its checksum (update_checksum).
AGE_SECONDS = 5.0
SCANS = 2
SECONDS = 60.0
"""How long `scan` may take, in native seconds."""


@cache
def active() -> bool:
    """Whether the kernel keeps account of its memory, because it was asked to."""
    return PARAMETER in Path("/proc/cmdline").read_text().split() and REPORTS.exists()


def scan() -> None:
    """Have everything reported that nobody points to and that is not reported yet; waits until what was allocated last
    is old enough."""
    VERBOSE.write_text("1")
    time.sleep(AGE_SECONDS)
    for _ in range(SCANS):
        REPORTS.write_text("scan")
