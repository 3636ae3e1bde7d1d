# SPDX-License-Identifier: MIT
"""A verdict as the text that stands in a failure's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.verdict.outcome import Verdict
from harness.verdict.splat import Splat
from harness.verdict.taint import letters

EXCERPT_LINES = 40
TAIL_LINES = 20
OTHER_SPLATS = 10


def explain(verdict: Verdict) -> str:
    """The outcome class and its reason, then the evidence: splats (the first one's lines, at most 40), how
    the machine ended with the console's last lines, taint, leaks with ids and names, where everything is
    kept, how to run it again. Ends without a line feed.
    """
    lines = [f"{verdict.outcome.value}: {verdict.reason}"]
    lines += [f"also: {text}" for text in verdict.also]
    if verdict.unexpected:
        shown = next((splat for splat in verdict.unexpected if splat.fatal), verdict.unexpected[0])
        lines += ["", f"kernel log, {shown.timestamp_us / 1e6:.6f} s after boot [{shown.fingerprint}]:"]
        lines += [f"    {line}".rstrip() for line in excerpt(shown)]
        lines += _others(verdict.unexpected, shown)
    if verdict.matched and verdict.outcome.failed:
        lines += [f"expected splat seen: {splat.title} ({item.reason})" for item, splat in verdict.matched]
    if verdict.lost_records:
        lines.append(f"kernel log: {verdict.lost_records} records were overwritten before they were read")
    if verdict.end is not None:
        lines += ["", f"machine: {verdict.end}"]
        if verdict.console_tail and not verdict.unexpected:
            lines.append("console, last lines:")
            lines += [f"    {line}".rstrip() for line in verdict.console_tail[-TAIL_LINES:]]
    if verdict.taint:
        mask = sum(1 << flag.bit for flag in verdict.taint)
        lines.append(f"new taint: {letters(mask)}: {'; '.join(flag.reason for flag in verdict.taint)}")
    if verdict.leaks:
        lines.append("left behind:")
        lines += [f"    {leak}" for leak in verdict.leaks]
    if verdict.evidence:
        lines.append(f"evidence: {verdict.evidence}")
    if verdict.rerun:
        lines.append(f"rerun: {verdict.rerun}")
    return "\n".join(lines)


def excerpt(splat: Splat, limit: int = EXCERPT_LINES) -> tuple[str, ...]:
    """The splat's lines, at most `limit` of them: its beginning and its end, with a line between that counts
    the rest.
    """
    lines: Sequence[str] = splat.lines
    if len(lines) <= limit:
        return tuple(lines)
    tail = limit // 4
    head = limit - tail - 1
    left_out = len(lines) - head - tail
    return (*lines[:head], f"... {left_out} lines left out ...", *lines[len(lines) - tail :])


def _others(splats: Sequence[Splat], shown: Splat) -> list[str]:
    """One line for each further bug, however often it splatted, and how often the shown one did."""
    counts = Counter(splat.fingerprint for splat in splats)
    lines = []
    if counts[shown.fingerprint] > 1:
        lines.append(f"the same {counts[shown.fingerprint]} times")
    titles = {splat.fingerprint: splat.title for splat in reversed(splats)}
    others = [fingerprint for fingerprint in counts if fingerprint != shown.fingerprint]
    for fingerprint in others[:OTHER_SPLATS]:
        times = f" ({counts[fingerprint]} times)" if counts[fingerprint] > 1 else ""
        lines.append(f"another splat: {titles[fingerprint]}{times}")
    if len(others) > OTHER_SPLATS:
        lines.append(f"and {len(others) - OTHER_SPLATS} further kinds of splat, see the kernel log")
    return lines
