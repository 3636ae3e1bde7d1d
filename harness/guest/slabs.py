# SPDX-License-Identifier: MIT
"""How many objects of each kind the kernel's allocator has given away, and whether that grows with what is done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from harness.guest.bpf import symbols
from harness.guest.waiting import WaitTimeout, wait_until

SLAB = Path("/sys/kernel/slab")
OTHERS = ("TCP", "filp", "sock_inode_cache")
WARM, ROWS, TIMES = 1, 3, 4


def counted() -> bool:
    """Whether the kernel counts them (CONFIG_SLUB_DEBUG)."""
    return SLAB.exists()


@contextmanager
def counter() -> Iterator[Callable[[], dict[str, int]]]:
    """A function that returns the objects in use by cache: of those for all sizes, of files and of sockets.

    The file `objects` (mm/slub.c:show_slab_objects) takes all of each CPU's current slab for used; shrinking the cache
    first gives those back. That takes some milliseconds under TCG, so not all caches are looked at. The files stay
    open: part of what an open file takes is freed late (fs/kernfs/file.c:kernfs_unlink_open_file).
    """
    with ExitStack() as stack:

        def opened(file: Path, flags: int) -> int:
            fd = os.open(file, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        files = {}
        for entry in SLAB.iterdir():
            if entry.name in OTHERS or re.match(r"kmalloc-(?!rcl-|dma-)", entry.name):
                folder = entry.resolve()  # a cache that was merged with others
                files[folder.name] = (
                    opened(folder / "shrink", os.O_WRONLY),
                    opened(folder / "objects", os.O_RDONLY),
                )

        def count() -> dict[str, int]:
            found = {}
            for name, (shrink, objects) in files.items():
                os.pwrite(shrink, b"1", 0)
                found[name] = int(os.pread(objects, 4096, 0).split()[0])
            return found

        yield count


def growth(live: Callable[[], object]) -> dict[str, int]:
    """Do it again and again: the caches that have at least one object more for each time, and how many more.

    What is made once, or for many times at once, is not told: a cache must have grown in each of three rows of times.
    What is freed late has half a second (native) for it. Nor are objects of 32 bytes told where the kernel tracks who
    holds devices and namespaces: it keeps 128 dead trackers of each (lib/ref_tracker.c:ref_tracker_free).
    """
    for _ in range(WARM):
        live()
    suspects: dict[str, int] = {}
    with counter() as count:
        for row in range(ROWS):
            before = count()
            for _ in range(TIMES):
                live()
            grown = _still_grown(before, count)
            suspects = {name: more for name, more in grown.items() if row == 0 or name in suspects}
            suspects = {
                name: more for name, more in suspects.items() if not (name.endswith("-32") and _tracks())
            }
            if not suspects:
                break
    return suspects


@cache
def _tracks() -> bool:
    """Whether the kernel has CONFIG_REF_TRACKER."""
    return symbols.has_symbol("ref_tracker_alloc")


def _still_grown(before: Mapping[str, int], count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What has grown and stays so for half a second."""
    with suppress(WaitTimeout):
        wait_until(lambda: not _grown(before, count()), timeout=0.5, what="objects to be freed")
    return _grown(before, count())


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    more = {name: count - before[name] for name, count in after.items()}
    return {name: count for name, count in more.items() if count >= TIMES}
