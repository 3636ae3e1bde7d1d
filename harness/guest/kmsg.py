# SPDX-License-Identifier: MIT
"""The kernel log in the guest: what was logged since a mark, and lines of our own in it."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from harness.errors import KernrigError
from harness.verdict.klog import Record, parse_kmsg

DEVICE = "/dev/kmsg"
# A read gives one record and fails with EINVAL when the buffer is too short
# (Documentation/ABI/testing/dev-kmsg); PRINTK_MESSAGE_MAX, with its escapes and dictionary, is below this.
LONGEST_RECORD = 8192
KERN_NOTICE = 5
# LOG_LINE_MAX of kernel/printk/printk.c: a longer write is refused.
LONGEST_LINE = 960


class Mark:
    """A place in the kernel log: its end when the mark was made. A context manager.

    The records since then can be asked for again and again; each is read from the kernel once.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._raw = bytearray()
        self.overwritten = False

    @classmethod
    def now(cls) -> Self:
        """A mark at the present end of the log. Raises OSError where /dev/kmsg can't be read."""
        fd = os.open(DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(fd, 0, os.SEEK_END)
        return cls(fd)

    @classmethod
    def oldest(cls) -> Self:
        """A mark before all that the log still holds. Raises OSError where /dev/kmsg can't be read."""
        return cls(os.open(DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """The descriptor of /dev/kmsg."""
        return self._fd

    def raw(self) -> bytes:
        """The device's own text of all records since the mark, for a parser that runs elsewhere.

        `overwritten` becomes True when the ring buffer lost some before they were read
        (`harness.verdict.klog.lost_records` counts them).
        """
        while self._fd >= 0:
            try:
                self._raw += os.read(self._fd, LONGEST_RECORD)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                self.overwritten = True
        return bytes(self._raw)

    def read(self) -> tuple[Record, ...]:
        """All records logged since the mark, in order, parsed."""
        return parse_kmsg(self.raw())

    def close(self) -> None:
        """Close the descriptor; what was read so far can still be asked for."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def records_since(mark: Mark) -> tuple[Record, ...]:
    """All records logged since `mark`, in order (see `Mark.read`)."""
    return mark.read()


def write(line: str, *, level: int = KERN_NOTICE) -> None:
    """Write one line into the kernel log, as facility user: the parser tells it from the kernel's own lines.

    Each call opens the device anew: the kernel drops, without an error, what exceeds ten lines in five
    seconds through one open file (kernel/printk/printk.c:devkmsg_write). Raises `KernrigError` for what is no
    single short line.
    """
    if "\n" in line or not 0 < len(line.encode()) <= LONGEST_LINE:
        raise KernrigError(
            f"kernel log marker {line[:60]!r} is no line of 1 to {LONGEST_LINE} bytes",
            hint="shorten or split it",
        )
    fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # Without its line feed the record stays open for a continuation, and no reader sees it.
        os.write(fd, f"<{level}>{line}\n".encode())
    finally:
        os.close(fd)
