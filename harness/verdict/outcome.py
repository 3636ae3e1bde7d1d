# SPDX-License-Identifier: MIT
"""One outcome for a scenario, from everything that is known about it.

The first of these that holds decides:

1. No machine could be made (template, cold boot): INFRA. Whatever such a machine printed, no scenario ran in
   it.
2. The kernel splatted and nobody announced it: KERNEL, though every assert passed, though QEMU died as well.
3. The guest panicked, hung, halted, reset, lost its agent or holds a process that can't be killed: KERNEL,
   unless an announced splat explains it (a panic that was expected, an OOM kill that was).
4. New taint that says the kernel was damaged, and no announced splat explains: KERNEL.
5. A report of setup, call or teardown failed; the deadline passed in a machine that still answers; the
   scenario ended its own process: TEST.
6. QEMU aborted or was killed, the connection or the harness failed, or reports are missing: INFRA. A failed
   assert that came back before is not taken back by that, so this comes after 5.
7. An announced splat did not occur, or something was left behind: TEST.
8. Skipped, failed as expected (xfail), passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.verdict.expected import ExpectedSplat, match_expected
from harness.verdict.headers import Kind
from harness.verdict.leaks import Leak
from harness.verdict.machine import INFRA_ENDS, KERNEL_ENDS, End, MachineEnd
from harness.verdict.splat import Splat
from harness.verdict.taint import TaintFlag, dirty_taint, new_taint


class Outcome(StrEnum):
    """How a scenario ended, and if it failed, whose failure it is."""

    PASSED = "passed"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    TEST = "TEST"
    KERNEL = "KERNEL"
    INFRA = "INFRA"

    @property
    def failed(self) -> bool:
        """Whether the scenario counts as failed."""
        return self in (Outcome.TEST, Outcome.KERNEL, Outcome.INFRA)


@dataclass(frozen=True)
class PhaseReport:
    """What a verdict needs of one of pytest's reports: `when` is "setup", "call" or "teardown", `outcome`
    "passed", "failed" or "skipped", `message` its last line or reason; `xfailed` for a skip that stands for
    an expected failure; `where` the file and line at which it failed.
    """

    when: str
    outcome: str
    message: str = ""
    xfailed: bool = False
    where: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome and everything it was made from. `reason` is one sentence; `also` are further findings that
    would have failed the scenario too. `taint` are all new flags, `evidence` the results directory, `rerun` a
    command. `fingerprint` is the same for failures that are likely the same: the place of the assertion, or the
    splat's kind, title or first functions; "" for what did not fail.
    """

    outcome: Outcome
    reason: str
    also: tuple[str, ...] = ()
    unexpected: tuple[Splat, ...] = ()
    matched: tuple[tuple[ExpectedSplat, Splat], ...] = ()
    missing: tuple[ExpectedSplat, ...] = ()
    taint: tuple[TaintFlag, ...] = ()
    leaks: tuple[Leak, ...] = ()
    end: MachineEnd | None = None
    console_tail: tuple[str, ...] = ()
    lost_records: int = 0
    evidence: str | None = None
    rerun: str | None = None
    fingerprint: str = ""

    @property
    def dirty(self) -> bool:
        """Whether the machine must not run another scenario: it is gone, splatted, tainted or littered."""
        splats = self.unexpected or self.matched
        return bool(self.end or splats or self.leaks or dirty_taint(self.taint))


def judge(
    *,
    reports: Sequence[PhaseReport],
    splats: Iterable[Splat] = (),
    expected: Sequence[ExpectedSplat] = (),
    taint_before: int = 0,
    taint_after: int | None = None,
    leaks: Sequence[Leak] = (),
    end: MachineEnd | None = None,
    console_tail: Sequence[str] = (),
    lost_records: int = 0,
    evidence: str | None = None,
    rerun: str | None = None,
) -> Verdict:
    """The verdict on one scenario, by the rules at the top of this module.

    `splats` are those between its start and its end; `taint_after` is None when it could not be read any
    more; `end` is None for a machine that lived. `lost_records` says how many kernel log records were
    overwritten unread.
    """
    unexpected, matched, missing = match_expected(splats, expected)
    taint = () if taint_after is None else new_taint(taint_before, taint_after)
    known = tuple(splat for _, splat in matched)
    excused = end is not None and _explains_end(known, end)
    live_end = None if excused else end
    unexplained = [
        flag for flag in dirty_taint(taint) if not any(flag.letter in _taint_of(splat) for splat in known)
    ]
    skipped = next((report for report in reports if report.outcome == "skipped"), None)

    findings: list[tuple[Outcome, str]] = []
    if live_end and live_end.how is End.TEMPLATE:
        findings.append((Outcome.INFRA, str(live_end)))
    if unexpected:
        findings.append((Outcome.KERNEL, _splat_reason(unexpected, reports)))
    if live_end and live_end.how in KERNEL_ENDS:
        findings.append((Outcome.KERNEL, str(live_end)))
    if unexplained:
        flags = ", ".join(str(flag) for flag in unexplained)
        findings.append((Outcome.KERNEL, f"the kernel became tainted: {flags}"))
    for report in reports:
        if report.outcome == "failed":
            message = f": {report.message}" if report.message else ""
            findings.append((Outcome.TEST, f"the scenario failed in its {report.when}{message}"))
    if live_end and live_end.how in (End.DEADLINE, End.PROCESS):
        findings.append((Outcome.TEST, str(live_end)))
    if live_end and live_end.how in INFRA_ENDS and live_end.how is not End.TEMPLATE:
        findings.append((Outcome.INFRA, str(live_end)))
    if end is None and not _complete(reports):
        seen = ", ".join(report.when for report in reports) or "none"
        findings.append((Outcome.INFRA, f"the scenario's reports did not come back (seen: {seen})"))
    if live_end is None and not skipped:
        findings.extend(
            (Outcome.TEST, f"expected splat {item.regex!r} did not occur ({item.reason})") for item in missing
        )
    if leaks:
        findings.append((Outcome.TEST, f"the scenario left behind {'; '.join(str(leak) for leak in leaks)}"))

    if findings:
        (outcome, reason), *others = findings
    elif skipped:
        outcome = Outcome.XFAILED if skipped.xfailed else Outcome.SKIPPED
        reason, others = skipped.message or outcome.value, []
    else:
        outcome, reason, others = Outcome.PASSED, "every assert passed and the kernel kept quiet", []
        if known:
            reason = f"every assert passed and the announced splat occurred: {known[0].title}"
    return Verdict(
        outcome=outcome,
        reason=reason,
        also=tuple(text for _, text in others),
        unexpected=unexpected,
        matched=matched,
        missing=missing,
        taint=taint,
        leaks=tuple(leaks),
        end=end,
        console_tail=tuple(console_tail),
        lost_records=lost_records,
        evidence=evidence,
        rerun=rerun,
        fingerprint=_fingerprint(outcome, reason, unexpected, reports) if outcome.failed else "",
    )


def _fingerprint(
    outcome: Outcome, reason: str, unexpected: Sequence[Splat], reports: Sequence[PhaseReport]
) -> str:
    if unexpected:
        return f"{outcome}:{_worst(unexpected).fingerprint}"
    failed = next((report for report in reports if report.outcome == "failed" and report.where), None)
    if outcome is Outcome.TEST and failed is not None:
        error = re.match(r"[\w.]+(?:: \[Errno \d+\]|(?=:|$))", failed.message)
        return f"{outcome}:{failed.where}:{error[0] if error else ''}"
    return f"{outcome}:{re.sub(r'[0-9]+', 'N', reason)}"


def _complete(reports: Sequence[PhaseReport]) -> bool:
    """Whether the reports cover the item's whole protocol: setup, call where setup passed, teardown."""
    outcomes = {report.when: report.outcome for report in reports}
    called = "call" in outcomes or outcomes.get("setup") in ("failed", "skipped")
    return "setup" in outcomes and called and "teardown" in outcomes


def _splat_reason(splats: Sequence[Splat], reports: Sequence[PhaseReport]) -> str:
    worst = _worst(splats)
    verb = "panicked" if worst.fatal else "complained"
    more = "" if len(splats) == 1 else f" (and {len(splats) - 1} more)"
    passed = _complete(reports) and all(report.outcome == "passed" for report in reports)
    return f"the kernel {verb}: {worst.title}{more}" + (", though every assert passed" if passed else "")


def _worst(splats: Sequence[Splat]) -> Splat:
    return next((splat for splat in splats if splat.fatal), splats[0])


# make_task_dead() in kernel/exit.c, and the OOM killer.
_KILL_THE_TASK = (Kind.OOPS, Kind.BUG, Kind.LIST, Kind.STACK, Kind.OOM)


def _explains_end(known: Sequence[Splat], end: MachineEnd) -> bool:
    """Whether announced splats are the reason that the guest is gone."""
    if end.how is End.AGENT_KILLED:
        return any(splat.fatal or splat.kind is Kind.OOM for splat in known)
    if end.how is End.PROCESS:
        return any(splat.kind in _KILL_THE_TASK for splat in known)
    return end.how in KERNEL_ENDS and any(splat.fatal for splat in known)


def _taint_of(splat: Splat) -> str:
    """The letters of the taint that a splat of this kind sets (callers of `add_taint`)."""
    if splat.kind in (Kind.PANIC, Kind.OOPS, Kind.DOUBLE_FAULT, Kind.STACK, Kind.LIST):
        return "DW"
    if splat.kind in (Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.SLAB):
        return "BW"
    if splat.kind is Kind.BUG:
        return "DBW"
    return "LW" if splat.kind is Kind.SOFT_LOCKUP else "W"
