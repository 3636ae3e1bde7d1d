# SPDX-License-Identifier: MIT
"""Wait for a condition in the guest: one deadline, polls that back off, an error that names the wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from harness.errors import KernrigError

T = TypeVar("T")

FIRST_PAUSE = 0.0002
LONGEST_PAUSE = 0.05


class WaitTimeout(KernrigError):
    """A condition did not come true before its deadline; `last` is the predicate's last value."""

    def __init__(self, what: str, *, last: object, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.last = last


def slow_factor() -> float:
    """How much slower than a native machine this one may be: the environment's KERNRIG_SLOW, at least 1.

    The host sets it (TCG, debug kernels); every deadline in the guest is multiplied by it. Raises
    `KernrigError` when the variable is no positive number.
    """
    text = os.environ.get("KERNRIG_SLOW", "")
    if not text:
        return 1.0
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.0 < factor < 1e6:
        raise KernrigError(
            f"KERNRIG_SLOW={text!r} is no factor for deadlines", hint="give a positive number, for example 20"
        )
    return max(factor, 1.0)


def wait_until(predicate: Callable[[], T], *, timeout: float, what: str) -> T:
    """Call `predicate` until what it returns is true, and return that value.

    `timeout` is in seconds of a native machine, multiplied by `slow_factor()`. The predicate is called at
    least once, and once more after the deadline, so that a machine that stood still for a while does not fail
    a condition that holds. Raises `WaitTimeout` with `what` and the last value seen; an exception of the
    predicate passes through.
    """
    value = predicate()
    if value:
        return value
    scaled = timeout * slow_factor()
    start = time.monotonic()
    deadline = start + scaled
    pause = FIRST_PAUSE
    while True:
        left = deadline - time.monotonic()
        if left > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)
        value = predicate()
        if value:
            return value
        if left <= 0:
            waited = f"waited {time.monotonic() - start:.3g} s (deadline {scaled:.3g} s) for {what}"
            raise WaitTimeout(f"{waited}; last seen: {value!r}", last=value)
