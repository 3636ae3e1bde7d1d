# SPDX-License-Identifier: MIT
"""/proc/sys/kernel/tainted as flags, and which of them say that a scenario damaged the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TaintFlag:
    """One bit of the taint mask: its letter as in oops headers, and what sets it.

    `dirty`: whether a scenario that sets it fails, and its machine must not be used again. Loading a test
    module sets flags that are not: out of tree, unsigned, staging, a test.
    """

    bit: int
    letter: str
    reason: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.letter} ({self.reason})"


FLAGS: tuple[TaintFlag, ...] = (
    TaintFlag(0, "P", "proprietary module was loaded", False),
    TaintFlag(1, "F", "module was force loaded", True),
    TaintFlag(2, "S", "kernel runs on an out-of-specification system", True),
    TaintFlag(3, "R", "module was force unloaded", True),
    TaintFlag(4, "M", "processor reported a machine check exception", True),
    TaintFlag(5, "B", "bad page referenced, or memory corruption found", True),
    TaintFlag(6, "U", "taint requested by user space", True),
    TaintFlag(7, "D", "kernel died: there was an oops or BUG", True),
    TaintFlag(8, "A", "ACPI table overridden by user", True),
    TaintFlag(9, "W", "kernel issued a warning", True),
    TaintFlag(10, "C", "staging driver was loaded", False),
    TaintFlag(11, "I", "workaround for a firmware bug applied", True),
    TaintFlag(12, "O", "out-of-tree module was loaded", False),
    TaintFlag(13, "E", "unsigned module was loaded", False),
    TaintFlag(14, "L", "soft lockup occurred", True),
    TaintFlag(15, "K", "kernel has been live patched", False),
    TaintFlag(16, "X", "auxiliary taint, defined by distributions", False),
    TaintFlag(17, "T", "kernel was built with the struct randomization plugin", False),
    TaintFlag(18, "N", "an in-kernel test has been run", False),
    TaintFlag(19, "J", "user space used a mutating debug operation in fwctl", False),
)
"""The kernel's table: `taint_flags` in kernel/panic.c, Documentation/admin-guide/tainted-kernels.rst."""


def decode(tainted: int) -> tuple[TaintFlag, ...]:
    """The flags set in a value of /proc/sys/kernel/tainted, lowest bit first. A bit that this table doesn't
    know is dirty and has the letter "?". ValueError for a negative number, which no kernel reports.
    """
    if tainted < 0:
        raise ValueError(f"taint mask {tainted}: /proc/sys/kernel/tainted is never negative")
    return tuple(_flag(bit) for bit in range(tainted.bit_length()) if tainted >> bit & 1)


def letters(tainted: int) -> str:
    """The letters of all flags that are set, as in "DOE"; "" for an untainted kernel."""
    return "".join(flag.letter for flag in decode(tainted))


def new_taint(before: int, after: int) -> tuple[TaintFlag, ...]:
    """The flags that `after` has and `before` had not."""
    return decode(after & ~before)


def dirty_taint(flags: Iterable[TaintFlag]) -> tuple[TaintFlag, ...]:
    """Those of the flags that fail a scenario."""
    return tuple(flag for flag in flags if flag.dirty)


def _flag(bit: int) -> TaintFlag:
    return FLAGS[bit] if bit < len(FLAGS) else TaintFlag(bit, "?", f"unknown taint, bit {bit}", True)
