# SPDX-License-Identifier: MIT
"""Times in which nothing more can be opened."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_MAX = Path("/proc/sys/fs/file-max")


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process can open nothing more: EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def no_file_left() -> Iterator[None]:
    """Nobody can open anything more but who has CAP_SYS_ADMIN (fs/file_table.c:alloc_empty_file): ENFILE."""
    before = FILE_MAX.read_text()
    FILE_MAX.write_text("0")
    try:
        yield
    finally:
        FILE_MAX.write_text(before)
