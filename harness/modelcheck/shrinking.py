# SPDX-License-Identifier: MIT
"""Makes a sequence on which kernel and model differ as short and plain as it gets.

Hypothesis could, but does not know that any part of a sequence is a sequence: to the model and to the player a name
that nothing has is a closed descriptor. So calls can be left out at will, which takes some dozens of tries instead of
thousands, each of them a job in the guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

from harness.modelcheck.comparison import Divergence
from harness.oracle.calls import Call, Fill
from harness.oracle.world import SPARE

Play = Callable[[Sequence[Call]], Divergence | None]
SECONDS = 60.0
FIRST_SPARE = f"{SPARE}0"


def shortest(
    calls: Sequence[Call], found: Divergence, play: Play, *, seconds: float = SECONDS
) -> tuple[tuple[Call, ...], Divergence]:
    """The shortest sequence, and how it differs, that was found in so many seconds; at worst the given one."""
    end = time.monotonic() + seconds
    best, divergence = _cut(calls, found), found
    progress = True
    while progress:
        progress = False
        for shorter in _simpler(best):
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


def _simpler(calls: tuple[Call, ...]) -> Iterator[tuple[Call, ...]]:
    """Shorter sequences, those without most calls first; then such with plainer calls."""
    size = len(calls) // 2
    while size:
        for start in range(0, len(calls) - size + 1, size):
            yield calls[:start] + calls[start + size :]
        size //= 2
    for place, call in enumerate(calls):
        for plainer in _plainer(call):
            yield (*calls[:place], plainer, *calls[place + 1 :])


def _plainer(call: Call) -> Iterator[Call]:
    """The call with one operand at its default, or without one flag; a list filled with less."""
    if isinstance(call, Fill) and call.size > 1:
        yield replace(call, size=call.size // 2)
        yield replace(call, size=call.size - 1)
    for each in fields(call):
        value = getattr(call, each.name)
        if value == each.default or each.name in ("op", "hook", "count", "size"):
            continue
        if isinstance(value, str) and value.startswith(SPARE) and value != FIRST_SPARE:
            yield replace(call, **{each.name: FIRST_SPARE})
        if each.name == "flags":
            bits = [1 << bit for bit in range(32) if value >> bit & 1]
            for bit in bits:
                yield replace(call, **{each.name: value & ~bit})
        elif each.default in (None, 0):
            yield replace(call, **{each.name: each.default})
