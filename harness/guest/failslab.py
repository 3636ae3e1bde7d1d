# SPDX-License-Identifier: MIT
"""Allocations of the kernel that fail when told to (CONFIG_FAILSLAB): the n-th of one call, for every n in turn.

A call that finds no memory must say so and leave everything as it was; one that takes something away must succeed
nevertheless. Only slab allocations fail here, not pages and not per-CPU memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import Attr
from harness.guest.bpf.descriptor import ids
from harness.guest.bpf.syscall import errno_name, raw_call
from harness.guest.waiting import WaitTimeout, wait_until

KNOBS = Path("/sys/kernel/debug/failslab")
NTH = Path("/proc/thread-self/fail-nth")
# mm/failslab.c: by default it spares allocations that may wait; lib/fault-inject.c: and tells of each failure.
WANTED = {"ignore-gfp-wait": "N", "cache-filter": "N", "verbose": "0", "probability": "0"}
MOST = 2000
OBJECTS = {
    "programs": uapi.BPF_PROG_GET_NEXT_ID,
    "maps": uapi.BPF_MAP_GET_NEXT_ID,
    "links": uapi.BPF_LINK_GET_NEXT_ID,
    "types": uapi.BPF_BTF_GET_NEXT_ID,
}


def available() -> bool:
    """Whether this kernel fails allocations on demand."""
    return (KNOBS / "ignore-gfp-wait").exists() and NTH.exists()


class Injector:
    """Fails one allocation of the calling thread, and only of that."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def run(self, nth: int, call: Callable[[], int]) -> tuple[int, bool]:
        """The result of `call`, whose `nth` allocation (from 1) failed, and whether it came as far as that."""
        arm = b"%d" % nth
        os.pwrite(self._fd, arm, 0)
        result = call()
        left = os.pread(self._fd, 16, 0)
        os.pwrite(self._fd, b"0", 0)
        return result, int(left) == 0


@contextmanager
def injector() -> Iterator[Injector]:
    """An injector for the calling thread. Raises OSError where allocations cannot be failed."""
    before = {name: (KNOBS / name).read_text() for name in WANTED}
    for name, value in WANTED.items():
        (KNOBS / name).write_text(value)
    fd = os.open(NTH, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Injector(fd)
    finally:
        os.pwrite(fd, b"0", 0)
        os.close(fd)
        for name, value in before.items():
            (KNOBS / name).write_text(value)


def prepared(command: int, attributes: Attr) -> Callable[[], int]:
    """A bpf(2) call for which Python has nothing left to allocate: its result, or the errno as a negative number."""
    place, size = ctypes.byref(attributes), ctypes.sizeof(attributes)
    return lambda: raw_call(command, place, size)


def closing(fd: int) -> Callable[[], int]:
    """A call that closes this descriptor: 0."""

    def close() -> int:
        os.close(fd)
        return 0

    return close


@dataclass(frozen=True)
class Trial:
    """A call that can be made once, and what is to be seen of what it does.

    `look` must be the same before the call and after it failed. `undo` takes the result of a call that succeeded.
    """

    call: Callable[[], int]
    look: Callable[[], object]
    undo: Callable[[int], object]


Scene = Callable[[], AbstractContextManager[Trial]]


@dataclass(frozen=True)
class Starved:
    """How often a call was refused, and how often it succeeded although an allocation had failed."""

    refused: int
    survived: int


def starve(scene: Scene, *, refusals: tuple[int, ...] = (errno.ENOMEM,)) -> Starved:
    """Make the call of a new scene for n = 1, 2, ... with its n-th allocation failing, until it makes fewer than n.

    Each time it must succeed or fail with one of `refusals`, and a failure must leave everything as it was: what `look`
    sees, no further programs, maps, links or types, the process's descriptors. Raises AssertionError with the n.
    """
    refused = survived = 0
    before = _objects()
    with injector() as inject:
        for nth in range(1, MOST):
            with scene() as trial:
                look, made, files = trial.look(), _objects(), _descriptors()
                result, reached = inject.run(nth, trial.call)
                what = f"after its allocation {nth} failed, the call said {errno_name(-min(result, 0))}"
                if result < 0:
                    assert reached, f"{errno_name(-result)} without any failed allocation (of {nth - 1})"
                    assert -result in refusals, what
                    now = trial.look()
                    assert now == look, f"{what}; before it there was {look}, then {now}"
                    _wait_for_no_more_than(made, what)
                    assert _descriptors() == files, f"{what}, and not all descriptors are as before"
                    refused += 1
                else:
                    survived += reached
                    trial.undo(result)
            if not reached:
                _wait_for_no_more_than(before, "when all was over")
                return Starved(refused, survived)
    raise AssertionError(f"the call makes {MOST} allocations or more")


def _objects() -> set[tuple[str, int]]:
    return {(kind, id) for kind, command in OBJECTS.items() for id in ids(command)}


def _wait_for_no_more_than(before: set[tuple[str, int]], when: str) -> None:
    """What was freed goes a little later: after grace periods, in work queues."""
    try:
        wait_until(lambda: _objects() <= before, timeout=2, what="BPF objects to go")
    except WaitTimeout as late:
        raise AssertionError(f"{when}, and there are new {sorted(_objects() - before)}") from late


def _descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
