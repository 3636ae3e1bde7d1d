# SPDX-License-Identifier: MIT
"""How sure a search is whose scenario does not fail each time."""

from __future__ import annotations

import math
from collections.abc import Iterable

_Z = 1.6448536269514722
"""The 95 % quantile of the normal distribution."""


def failure_rate(failed: int, runs: int) -> float:
    """A careful estimate of how often a run on a bad kernel fails: the lower end of Wilson's one-sided 95 % interval
    for `failed` of `runs`. It is below 1 even when all of them failed."""
    if not runs:
        return 0.0
    p = failed / runs
    centre = p + _Z * _Z / (2 * runs)
    spread = _Z * math.sqrt(p * (1 - p) / runs + _Z * _Z / (4 * runs * runs))
    return max(0.0, (centre - spread) / (1 + _Z * _Z / runs))


def missed(rate: float, runs: int) -> float:
    """The probability that a bad kernel passes that many runs."""
    return (1.0 - rate) ** runs


def repeats(rate: float, miss: float) -> int:
    """How many runs it takes for a bad kernel to pass them all with a probability of at most `miss`."""
    if rate <= 0.0:
        raise ValueError("a failure that never happens cannot be looked for")
    if rate >= 1.0:
        return 1
    return max(1, math.ceil(math.log(miss) / math.log(1.0 - rate)))


def confidence(rate: float, clean: Iterable[int]) -> float:
    """The least probability that no bad kernel was taken for a good one, when those called good passed `clean` runs
    each: the probabilities of the single mistakes add up to at least that of any mistake."""
    return max(0.0, 1.0 - sum(missed(rate, runs) for runs in clean))
