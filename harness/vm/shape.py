# SPDX-License-Identifier: MIT
"""What a scenario may ask of its machine: processors, memory, additions to the kernel's command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.errors import KernrigError

DEFAULT_CPUS = 1
DEFAULT_MEMORY_MIB = 384
LEAST_MEMORY_MIB = 256
_KASAN_FACTOR = 2


@dataclass(frozen=True)
class Shape:
    """A machine's shape; each distinct shape has a template of its own.

    `memory` is in MiB. `append` holds whole kernel parameters, in order.
    """

    cpus: int = DEFAULT_CPUS
    memory: int = DEFAULT_MEMORY_MIB
    append: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= 64:
            raise KernrigError(
                f"A machine can't have {self.cpus} processors.",
                hint="give --kr-cpus or vm(cpus=) from 1 to 64",
            )
        if self.memory < LEAST_MEMORY_MIB:
            raise KernrigError(
                f"A machine can't boot with {self.memory} MiB: the root file system lives in memory.",
                hint=f"give --kr-memory or vm(memory=) of at least {LEAST_MEMORY_MIB} (MiB)",
            )

    def on(self, config: Mapping[str, str]) -> Shape:
        """The shape on a kernel of that configuration: one with KASAN gets twice the memory, for shadow, red zones and
        the quarantine of what was freed."""
        return replace(self, memory=_KASAN_FACTOR * self.memory) if "CONFIG_KASAN" in config else self

    def __str__(self) -> str:
        text = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}, {self.memory} MiB"
        return text + (f", append {' '.join(self.append)!r}" if self.append else "")
