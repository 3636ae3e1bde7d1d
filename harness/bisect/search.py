# SPDX-License-Identifier: MIT
"""The search itself: both ends are verified, then the space is narrowed, and each step is written down.

A journal (JSON, replaced as a whole after each step) lets an interrupted search go on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.bisect.space import Answer, Candidate, Space
from harness.bisect.trial import Judgement, Laboratory, Sought, Trial, failure_rate, missed, repeats
from harness.errors import KernrigError

END_RUNS = 8
"""Runs on each end, when the caller names no number; the rate at the bad end decides about the steps between."""
MOST_RUNS = 200


@dataclass(frozen=True)
class Step:
    """One kernel that was tried: `role` is "good end", "bad end" or "step"."""

    role: str
    candidate: Candidate
    trial: Trial
    judgement: Judgement


@dataclass(frozen=True)
class Plan:
    """How hard to look: `end_runs` on each end, `runs` on each step (0: as the failure rate asks), `miss` the
    probability that is allowed for a wrong answer in the whole search."""

    end_runs: int = END_RUNS
    runs: int = 0
    miss: float = 0.01


@dataclass(frozen=True)
class Result:
    """A finished search: `confidence` is the probability that no bad kernel was taken for a good one, by the
    failure rate that was seen at the bad end.
    """

    answer: Answer
    steps: tuple[Step, ...]
    confidence: float
    rate: float
    runs: int
    seconds: float


@dataclass
class Journal:
    """The steps so far, kept in a file. `question` is what was asked: a journal of another question is not gone
    on with."""

    path: Path
    question: dict[str, Any]
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, question: dict[str, Any]) -> Journal:
        """The journal at `path`, empty when there is none or it is of another question."""
        journal = cls(path, question)
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            return journal
        if told.get("question") == question:
            journal.steps = [
                Step(
                    each["role"],
                    Candidate(**each["candidate"]),
                    Trial(**each["trial"]),
                    Judgement(each["judgement"]),
                )
                for each in told["steps"]
            ]
        return journal

    def add(self, step: Step) -> None:
        """Write one more step down."""
        self.steps.append(step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(
            json.dumps({"question": self.question, "steps": [asdict(each) for each in self.steps]}, indent=1)
        )
        new.replace(self.path)

    def known(self, role: str, candidate: Candidate) -> Step | None:
        """What an earlier run of the same search found about it."""
        found = (each for each in self.steps if each.role == role and each.candidate.id == candidate.id)
        return next(found, None)


def search(
    space: Space, laboratory: Laboratory, journal: Journal, plan: Plan, say: Callable[[str], None]
) -> Result:
    """Find what broke the scenario.

    Raises KernrigError when an end is not what it is said to be, or cannot be tested.
    """
    began = time.monotonic()
    good, bad = space.good, space.bad
    steps: list[Step] = []

    def tried(role: str, candidate: Candidate, runs: int, sought: Sought) -> Step:
        step = journal.known(role, candidate)
        if step is None:
            say(f"{role}: {candidate.title} ({runs} run{'s' if runs > 1 else ''})")
            trial = laboratory.try_out(candidate.kernel, runs, sought)
            step = Step(role, candidate, trial, trial.judgement)
            journal.add(step)
            say(f"  {trial}: {step.judgement.value} ({trial.seconds:.0f} s)")
        else:
            say(f"{role}: {candidate.title}: {step.judgement.value}, as found before")
        steps.append(step)
        return step

    at_bad = tried("bad end", bad, plan.end_runs, Sought())
    _verify_bad(at_bad)
    sought = Sought(frozenset(at_bad.trial.fingerprints))
    rate = failure_rate(at_bad.trial)
    expected = max(1, space.left())
    # The good end counts as a step: it, too, could be a bad kernel that passed.
    runs = plan.runs or min(MOST_RUNS, repeats(rate, plan.miss / (expected + 1)))
    at_good = tried("good end", good, max(runs, plan.end_runs), sought)
    _verify_good(at_good)
    while (candidate := space.proposal()) is not None:
        step = tried("step", candidate, runs, sought)
        space.learn(candidate, step.judgement)
    confidence = math.prod(
        1.0 - missed(rate, each.trial.runs) for each in steps if each.judgement is Judgement.GOOD
    )
    return Result(space.answer(), tuple(steps), confidence, rate, runs, time.monotonic() - began)


def _verify_bad(step: Step) -> None:
    if step.judgement is Judgement.BAD:
        return
    name, trial = step.candidate.title, step.trial
    if step.judgement is Judgement.GOOD:
        raise KernrigError(
            f"the bad end is good: {name}: {trial}",
            hint="name a kernel on which it fails; if it fails now and then, ask for more runs (--end-runs)",
        )
    raise KernrigError(f"the bad end cannot be judged: {name}: {trial}\n{trial.broken}".rstrip())


def _verify_good(step: Step) -> None:
    if step.judgement is Judgement.GOOD:
        return
    name, trial = step.candidate.title, step.trial
    if step.judgement is Judgement.BAD:
        raise KernrigError(
            f"the good end is bad: {name}: {trial}\n{trial.evidence}".rstrip(),
            hint="name a kernel on which it passes; perhaps the failure is older than that one",
        )
    raise KernrigError(f"the good end cannot be judged: {name}: {trial}\n{trial.broken}".rstrip())
