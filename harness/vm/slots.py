# SPDX-License-Identifier: MIT
"""How many machines may run at once on this host: as many as fit its memory, whoever starts them.

Memory is dealt out in units, each a locked file; a machine holds as many as its memory needs. The locks belong to the
process (flock(2)) and go with it, so a killed worker leaves none behind.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError

UNIT_MIB = 128
# What QEMU itself takes: code, translated code, device models.
OVERHEAD_MIB = 112
_SHARE_OF_MEMORY = 0.8
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def host_memory_mib() -> int:
    """MiB of memory that this host (or the control group that we are in) has."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            pages = min(pages, int(file.read_text()))
    return pages >> 20


def available_memory_mib() -> int:
    """MiB that new programs could use without swapping, as the kernel estimates it (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return host_memory_mib()


def units_for(memory_mib: int) -> int:
    """Units that a machine with so much memory holds."""
    return -(-(memory_mib + OVERHEAD_MIB) // UNIT_MIB)


class Slots:
    """The units of this host, as files in `directory`. `total` is how many there are."""

    def __init__(self, directory: Path, *, memory_mib: int | None = None) -> None:
        self._directory = directory
        available = memory_mib if memory_mib is not None else int(host_memory_mib() * _SHARE_OF_MEMORY)
        self.total = available // UNIT_MIB

    def check(self, memory_mib: int) -> int:
        """The units that a machine needs. Raises HostError when the host is too small for it at any time."""
        need = units_for(memory_mib)
        if need > self.total:
            raise HostError(
                f"A machine of {memory_mib} MiB does not fit this host's memory "
                f"({self.total * UNIT_MIB} MiB are for machines).",
                hint="give it less with --kr-memory or vm(memory=), or run on a larger host",
            )
        return need

    @contextmanager
    def held(
        self, memory_mib: int, *, seconds: float = 600, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold what a machine needs. Raises HostError when the host is too small for it, DeadlineError when nothing
        became free in time; `waiting` is called once when there is something to wait for."""
        locks = self.acquire(memory_mib, seconds=seconds, waiting=waiting)
        try:
            yield
        finally:
            release(locks)

    def acquire(
        self, memory_mib: int, *, seconds: float = 600, waiting: Callable[[], None] | None = None
    ) -> list[int]:
        """Like `held`; returns the locks, for `release`."""
        need = self.check(memory_mib)
        self._directory.mkdir(parents=True, exist_ok=True)
        deadline = Deadline.after(seconds, "memory for another machine", scaled=False)
        told = False
        while True:
            locks = self._try(need)
            if locks is not None:
                return locks
            deadline.check("other machines hold it")
            if waiting is not None and not told:
                waiting()
                told = True
            time.sleep(0.02)

    def _try(self, need: int) -> list[int] | None:
        """All the locks at once or none: one process at a time looks for them.

        What others use of the host's memory counts too, unless no machine runs at all: then one may try.
        """
        gate = os.open(self._directory / "gate", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        locks: list[int] = []
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            wanted = need if available_memory_mib() > need * UNIT_MIB else self.total
            for number in range(self.total):
                fd = os.open(self._directory / str(number), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    continue
                locks.append(fd)
                if len(locks) == wanted:
                    release(locks[need:])
                    return locks[:need]
            release(locks)
            return None
        finally:
            os.close(gate)


def release(locks: list[int]) -> None:
    """Give the units back."""
    for fd in locks:
        os.close(fd)
