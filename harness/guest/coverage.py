# SPDX-License-Identifier: MIT
"""The kernel's counters of lines, read from debugfs (kernel/gcov/fs.c)."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from pathlib import Path

from harness.guest.waiting import WaitTimeout, wait_until

ROOT = Path("/sys/kernel/debug/gcov")
# Native seconds: counters that never stand still have been looked at for long enough.
SETTLE_SECONDS = 1.5
# The pauses between polls double up to a twentieth of a second: so many without a change last longer than the grace
# period of RCU-tasks, after which the maps of struct_ops are freed.
_STILL = 14


def read(names: Sequence[str], root: str = str(ROOT)) -> dict[str, str]:
    """The counters in the files `names` below `root`, once they stand still for a moment or have had their time: each
    file compressed, in base64. One that is not there (of a module that is not loaded) is left out."""
    found: dict[str, bytes] = {}
    still = 0

    def stand_still() -> bool:
        nonlocal found, still
        now = {name: data for name in names if (data := _read(Path(root, name))) is not None}
        still = still + 1 if now == found else 0
        found = now
        return still >= _STILL

    try:
        wait_until(stand_still, timeout=SETTLE_SECONDS, what="the counters to stand still")
    except WaitTimeout:
        pass
    return {name: base64.b64encode(zlib.compress(data, 1)).decode() for name, data in found.items()}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
