# SPDX-License-Identifier: MIT
"""One monotonic deadline per wait."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

SLOW_FACTOR_VARIABLE = "KERNRIG_SLOW"


def slow_factor() -> float:
    """How many times longer than usual to wait; the environment's KERNRIG_SLOW, 1 by default."""
    try:
        return max(1.0, float(os.environ.get(SLOW_FACTOR_VARIABLE, "1")))
    except ValueError:
        return 1.0


class DeadlineError(TimeoutError):
    """A wait came to its end; the text says which wait it was."""


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock (seconds) and what is being waited for until then."""

    what: str
    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float, what: str, *, scaled: bool = True) -> Deadline:
        """A deadline `seconds` from now, times the slow factor unless `scaled` is false."""
        length = seconds * slow_factor() if scaled else seconds
        return cls(what, length, time.monotonic() + length)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.end - time.monotonic())

    def passed(self) -> bool:
        return time.monotonic() >= self.end

    def error(self, detail: str = "") -> DeadlineError:
        """The exception to raise when this deadline has passed."""
        return DeadlineError(
            f"waited {self.seconds:.0f} s for {self.what}" + (f": {detail}" if detail else "")
        )

    def check(self, detail: str = "") -> float:
        """Seconds left; raises DeadlineError when there are none."""
        left = self.remaining()
        if left <= 0:
            raise self.error(detail)
        return left
