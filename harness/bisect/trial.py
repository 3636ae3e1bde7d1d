# SPDX-License-Identifier: MIT
"""What was seen on one kernel, and what that makes of it: good, bad or neither."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from harness.errors import KernrigError

_EVIDENCE_LINES = 40


class Judgement(StrEnum):
    """What a kernel is, as git bisect says it."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, order=True)
class Failure:
    """A failure as it is known again: the test's node id, and the fingerprint of its verdict (a failing assertion's
    place, or a splat's title and first functions)."""

    test: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.test}: {self.fingerprint}"


@dataclass(frozen=True)
class Sought:
    """The failures of which each counts as the one that is looked for."""

    failures: frozenset[Failure]

    @property
    def tests(self) -> frozenset[str]:
        """The tests in which it was seen; no others need to be run."""
        return frozenset(each.test for each in self.failures)


class Outcome(StrEnum):
    """How one run of a test ended: `skipped` and `infra` (a fault of harness or host) tell nothing about the kernel."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    INFRA = "infra"


@dataclass(frozen=True)
class End:
    """One run of one test; `text` is what pytest would have shown for it."""

    test: str
    outcome: Outcome
    fingerprint: str = ""
    text: str = ""


@dataclass(frozen=True)
class Record:
    """All that happened on one kernel. `broken` says why no test was run: it did not build or boot."""

    kernel: str
    ends: tuple[End, ...] = ()
    seconds: float = 0.0
    broken: str = ""

    def __add__(self, other: Record) -> Record:
        return Record(
            self.kernel,
            self.ends + other.ends,
            self.seconds + other.seconds,
            self.broken or other.broken,
        )


@dataclass(frozen=True)
class Trial:
    """A record as the search sees it: how many runs passed, failed as sought, failed in another way, or told nothing.

    `failures` counts all that was seen, `evidence` is the text of the first failure as sought, `remark` that of the
    first run that was neither a pass nor such a failure.
    """

    kernel: str
    passed: int = 0
    failed: int = 0
    other: int = 0
    void: int = 0
    seconds: float = 0.0
    broken: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    evidence: str = ""
    remark: str = ""

    @property
    def runs(self) -> int:
        """The runs that say something about the kernel."""
        return self.passed + self.failed + self.other

    def judge(self, needed: int) -> Judgement:
        """One failure as sought is enough to be bad; so many passes are needed to be good. Everything else is neither:
        a failure of another kind may have hidden the one that is sought."""
        if self.failed:
            return Judgement.BAD
        return Judgement.GOOD if self.passed >= max(1, needed) else Judgement.SKIP

    def __str__(self) -> str:
        if self.broken:
            return f"could not be tested: {_gist(self.broken)}"
        parts = [(self.passed, "passed"), (self.failed, "failed"), (self.other, "failed otherwise")]
        parts.append((self.void, "told nothing"))
        return ", ".join(f"{count} {what}" for count, what in parts if count) or "no runs"


def evaluate(record: Record, sought: Sought | None) -> Trial:
    """The trial that a record makes. Of tests in which nothing is sought nothing counts; without `sought` each failure
    counts as the one that is looked for."""
    passed = failed = other = void = 0
    failures: Counter[str] = Counter()
    evidence = remark = ""
    for end in record.ends:
        if sought is not None and end.test not in sought.tests:
            continue
        if end.outcome is Outcome.PASSED:
            passed += 1
        elif end.outcome is Outcome.FAILED:
            failure = Failure(end.test, end.fingerprint)
            failures[str(failure)] += 1
            if sought is None or failure in sought.failures:
                failed += 1
                evidence = evidence or end.text
            else:
                other += 1
                remark = remark or end.text
        else:
            void += 1
            remark = remark or end.text
    return Trial(
        record.kernel,
        passed,
        failed,
        other,
        void,
        record.seconds,
        record.broken,
        dict(failures),
        _tail(evidence),
        _tail(remark),
    )


def choose(record: Record, containing: str = "") -> Sought:
    """What to look for after the runs at the bad end: the failure seen most often there, or all whose test or
    fingerprint has `containing` in it.

    Raises KernrigError when there is none.
    """
    seen = Counter(Failure(end.test, end.fingerprint) for end in record.ends if end.outcome is Outcome.FAILED)
    if not seen:
        raise KernrigError(f"nothing failed on {record.kernel}")
    if not containing:
        return Sought(frozenset({seen.most_common(1)[0][0]}))
    found = frozenset(each for each in seen if containing in str(each))
    if not found:
        raise KernrigError(
            f"no failure on {record.kernel} has {containing!r} in its test or fingerprint; there were:\n"
            + "\n".join(f"  {each} ({count} times)" for each, count in seen.most_common()),
            hint="give --failure a part of one of these",
        )
    return Sought(found)


def _gist(text: str) -> str:
    """The first line, with the line that it announces: an error if there is one."""
    first, *rest = [line.strip() for line in text.splitlines()] or [""]
    if not first.endswith(":") or not rest:
        return first
    return f"{first} {next((line for line in rest if 'error:' in line), rest[0])}"


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_EVIDENCE_LINES:])
