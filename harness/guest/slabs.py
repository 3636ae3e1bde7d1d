# SPDX-License-Identifier: MIT
"""How many objects of each kind the kernel's allocator has given away, and whether that grows with what is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from harness.guest.bpf import symbols
from harness.guest.waiting import WaitTimeout, wait_until

SLAB = Path("/sys/kernel/slab")
OTHERS = ("TCP", "filp", "sock_inode_cache")
WARM, ROWS, TIMES = 1, 3, 4


def objects() -> dict[str, int]:
    """The objects in use by cache: of those for all sizes, of files and of sockets; empty without CONFIG_SLUB_DEBUG.

    The file `objects` (mm/slub.c:show_slab_objects) takes all of each CPU's current slab for used; shrinking the cache
    first gives those back. That takes some milliseconds under TCG, so not all caches are looked at.
    """
    found = {}
    for entry in SLAB.iterdir() if SLAB.exists() else ():
        if entry.name in OTHERS or re.match(r"kmalloc-(?!rcl-|dma-)", entry.name):
            cache = entry.resolve()  # a cache that was merged with others
            with suppress(FileNotFoundError):
                (cache / "shrink").write_text("1")
                found[cache.name] = int((cache / "objects").read_text().split()[0])
    return found


def growth(live: Callable[[], object]) -> dict[str, int]:
    """Do it again and again: the caches that have at least one object more for each time, and how many more.

    What is made once, or for many times at once, is not told: a cache must have grown in each of three rows of times.
    What is freed late has half a second (native) for it. Nor are objects of 32 bytes told where the kernel tracks who
    holds devices and namespaces: it keeps 128 dead trackers of each (lib/ref_tracker.c:ref_tracker_free).
    """
    for _ in range(WARM):
        live()
    suspects: dict[str, int] = {}
    for row in range(ROWS):
        before = objects()
        for _ in range(TIMES):
            live()
        with suppress(WaitTimeout):
            wait_until(lambda before=before: not _grown(before), timeout=0.5, what="objects to be freed")  # type: ignore[misc]
        grown = _grown(before)
        suspects = {name: more for name, more in grown.items() if row == 0 or name in suspects}
        suspects = {name: more for name, more in suspects.items() if not (name.endswith("-32") and _tracks())}
        if not suspects:
            break
    return suspects


@cache
def _tracks() -> bool:
    """Whether the kernel has CONFIG_REF_TRACKER."""
    return symbols.has_symbol("ref_tracker_alloc")


def _grown(before: dict[str, int]) -> dict[str, int]:
    more = {name: count - before.get(name, 0) for name, count in objects().items()}
    return {name: count for name, count in more.items() if count >= TIMES}
