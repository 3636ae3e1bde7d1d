# SPDX-License-Identifier: MIT
"""Makes a sequence on which kernel and model differ as short and plain as it gets.

Hypothesis could, but does not know that any part of a sequence is a sequence: to the model and to the player a name
that nothing has is a closed descriptor. So calls can be left out at will, which takes some dozens of tries instead of
thousands, each of them a job in the guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from harness.modelcheck.facility import Divergence
from harness.oracle.calls import Call

Play = Callable[[Sequence[Call]], Divergence | None]
Plainer = Callable[[Call], Iterator[Call]]
SECONDS = 60.0


def shortest(
    calls: Sequence[Call], found: Divergence, play: Play, plainer: Plainer, *, seconds: float = SECONDS
) -> tuple[tuple[Call, ...], Divergence]:
    """The shortest sequence, and how it differs, that was found in so many seconds; at worst the given one.

    `plainer` says how one call gets plainer.
    """
    end = time.monotonic() + seconds
    best, divergence = _cut(calls, found), found
    progress = True
    while progress:
        progress = False
        for shorter in _simpler(best, plainer):
            if time.monotonic() > end:
                return best, divergence
            if again := play(shorter):
                best, divergence = _cut(shorter, again), again
                progress = True
                break
    return best, divergence


def _cut(calls: Sequence[Call], found: Divergence) -> tuple[Call, ...]:
    """Without what comes after the divergence."""
    return tuple(calls if found.place is None else calls[: found.place + 1])


def _simpler(calls: tuple[Call, ...], plainer: Plainer) -> Iterator[tuple[Call, ...]]:
    """Shorter sequences, those without most calls first; then such with plainer calls."""
    size = len(calls) // 2
    while size:
        for start in range(0, len(calls) - size + 1, size):
            yield calls[:start] + calls[start + size :]
        size //= 2
    for place, call in enumerate(calls):
        for each in plainer(call):
            yield (*calls[:place], each, *calls[place + 1 :])
