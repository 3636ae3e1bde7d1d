# SPDX-License-Identifier: MIT
"""What a scenario must leave as it found it: taint and inventory; and the kernel log it caused."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.guest import objects
from harness.verdict.inventory import Inventory

_TAINTED = Path("/proc/sys/kernel/tainted")


@dataclass(frozen=True)
class State:
    """The kernel's taint mask and everything that `harness.guest.objects` can list."""

    tainted: int
    inventory: Inventory

    baseline: ClassVar[State | None] = None
    """The state of the template, taken once before it is frozen."""

    @classmethod
    def take(cls) -> State:
        return cls(int(_TAINTED.read_text()), objects.inventory())

    def to_json(self) -> dict[str, Any]:
        return {"tainted": self.tainted, "inventory": self.inventory.to_json()}


class KernelLog:
    """The kernel's log from the moment this was made on, as raw /dev/kmsg records."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """The records since the last call. A record that was overwritten before it could be read is missing
        (Documentation/ABI/testing/dev-kmsg: EPIPE)."""
        records: list[str] = []
        while True:
            try:
                records.append(os.read(self._fd, 8192).decode("utf-8", "replace"))
            except BlockingIOError:
                return records
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise

    def close(self) -> None:
        os.close(self._fd)
