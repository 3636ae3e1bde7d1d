# SPDX-License-Identifier: MIT
"""What a scenario must leave as it found it: the kernel's taint and the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.guest import objects
from harness.verdict.inventory import Inventory

TAINTED = Path("/proc/sys/kernel/tainted")


@dataclass(frozen=True)
class State:
    """The kernel's taint mask and everything that `harness.guest.objects` can list."""

    tainted: int
    inventory: Inventory

    baseline: ClassVar[State | None] = None
    """The state of the template, taken once before it is frozen."""

    @classmethod
    def take(cls) -> State:
        return cls(int(TAINTED.read_text()), objects.inventory())

    def to_json(self) -> dict[str, Any]:
        return {"tainted": self.tainted, "inventory": self.inventory.to_json()}
