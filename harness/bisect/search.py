# SPDX-License-Identifier: MIT
"""The search itself: both ends are verified, then the space is narrowed, and each step is written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.bisect.journal import Journal, Step
from harness.bisect.laboratory import Laboratory
from harness.bisect.odds import confidence, failure_rate, repeats
from harness.bisect.space import Answer, Candidate, Space
from harness.bisect.trial import Judgement, Record, Sought, choose, evaluate
from harness.errors import KernrigError

END_RUNS = 8
"""Runs on each end, when the caller names no number; the rate at the bad end decides about the steps between."""
MOST_RUNS = 200
ENOUGH_FAILURES = 8
"""So often a failure that comes and goes has to be seen at the bad end before its rate is believed."""
_DOUBLINGS_FOR_ONE = 2
_DOUBLINGS_FOR_RATE = 3
_TOP_UPS = 3

GOOD_END, BAD_END, STEP = "good end", "bad end", "step"


@dataclass(frozen=True)
class Plan:
    """How hard to look: `end_runs` on each end, `runs` on each step (0: as the failure rate asks), `miss` the
    probability that is allowed for a wrong answer in the whole search. `failure` is part of the test or fingerprint
    that is sought, when it is not to be the one that the bad end shows most often."""

    end_runs: int = END_RUNS
    runs: int = 0
    miss: float = 0.01
    failure: str = ""


@dataclass(frozen=True)
class Result:
    """A finished search. `confidence` is the least probability that no bad kernel was taken for a good one, if runs on
    bad kernels fail at `rate`, which is a careful estimate. `runs` were asked of each step; `seconds` is the time
    that all trials took, those before an interruption too.
    """

    answer: Answer
    sought: Sought
    steps: tuple[Step, ...]
    confidence: float
    rate: float
    runs: int
    seconds: float


@dataclass(frozen=True)
class _Tester:
    """Tries candidates and writes down what they are, unless that is known."""

    laboratory: Laboratory
    journal: Journal
    plan: Plan
    say: Callable[[str], None]

    def bad_end(self, candidate: Candidate) -> Step:
        """All scenarios are run, and what fails most often is sought from then on."""
        step = self._known(BAD_END, candidate)
        if step is not None:
            return step
        self._announce(BAD_END, candidate, self.plan.end_runs)
        record = self.laboratory.run(candidate.kernel, self.plan.end_runs)
        for doubling in range(_DOUBLINGS_FOR_ONE):
            trial = evaluate(record, None)
            if self.plan.runs or trial.failed or not trial.passed:
                break
            rounds = self.plan.end_runs << doubling
            self.say(f"  {trial}: {rounds} more runs, as it may fail now and then")
            record += self.laboratory.run(candidate.kernel, rounds)
        if evaluate(record, None).failed:
            self.journal.sought = choose(record, self.plan.failure)
            record = self._measured(candidate, record, self.journal.sought)
        trial = evaluate(record, self.journal.sought)
        step = Step(BAD_END, candidate, trial, trial.judge(1))
        if step.judgement is Judgement.BAD:
            self._keep(step)
        return step

    def _measured(self, candidate: Candidate, record: Record, sought: Sought) -> Record:
        """The record with more runs until the rate of a failure that comes and goes is known well."""
        for _ in range(_DOUBLINGS_FOR_RATE):
            trial = evaluate(record, sought)
            if self.plan.runs or trial.failed == trial.runs or trial.failed >= ENOUGH_FAILURES:
                break
            rounds = math.ceil(trial.runs / len(sought.tests))
            self.say(f"  {trial}: {rounds} more runs for its rate")
            record += self.laboratory.run(candidate.kernel, rounds, sought)
        return record

    def other(self, role: str, candidate: Candidate, needed: int) -> Step:
        """Good after so many passes, bad after one failure as sought."""
        step = self._known(role, candidate)
        if step is not None:
            return step
        sought = self.journal.sought
        assert sought is not None
        rounds = math.ceil(needed / len(sought.tests))
        self._announce(role, candidate, rounds)
        record = self.laboratory.run(candidate.kernel, rounds, sought, stop=True)
        for _ in range(_TOP_UPS):
            trial = evaluate(record, sought)
            if trial.failed or trial.passed >= needed or not trial.passed:
                break
            self.say(f"  {trial}: {rounds} more runs, for {needed} that pass")
            record += self.laboratory.run(candidate.kernel, rounds, sought, stop=True)
        trial = evaluate(record, sought)
        step = Step(role, candidate, trial, trial.judge(needed))
        # An end that is not what it should be is tried again the next time.
        if role == STEP or step.judgement is Judgement.GOOD:
            self._keep(step)
        return step

    def _known(self, role: str, candidate: Candidate) -> Step | None:
        step = self.journal.known(role, candidate)
        if step is not None:
            self.say(f"{role}: {candidate.title}: {step.judgement.value}, as found before")
        return step

    def _announce(self, role: str, candidate: Candidate, runs: int) -> None:
        self.say(f"{role}: {candidate.title} ({runs} run{'s' if runs > 1 else ''})")

    def _keep(self, step: Step) -> None:
        self.journal.add(step)
        self.say(f"  {step.trial}: {step.judgement.value} ({step.trial.seconds:.0f} s)")


def search(
    space: Space, laboratory: Laboratory, journal: Journal, plan: Plan, say: Callable[[str], None]
) -> Result:
    """Find what broke the scenario.

    Raises KernrigError when an end is not what it is said to be, or cannot be tested.
    """
    tester = _Tester(laboratory, journal, plan, say)
    at_bad = tester.bad_end(space.bad)
    _verify_bad(at_bad)
    sought = journal.sought
    assert sought is not None
    rate = failure_rate(at_bad.trial.failed, at_bad.trial.runs)
    say(
        f"sought: {', '.join(map(str, sorted(sought.failures)))}; fails in at least {_percent(rate)} of the runs"
    )
    # The good end counts as a step: it, too, could be a bad kernel that passed.
    wanted = repeats(rate, plan.miss / (max(1, space.left()) + 1))
    runs = plan.runs or min(MOST_RUNS, wanted)
    if runs < wanted:
        say(f"{runs} runs on each kernel, where {wanted} would do for a probability of error of {plan.miss}")
    at_good = tester.other(GOOD_END, space.good, max(runs, plan.end_runs))
    _verify_good(at_good)
    steps = [at_bad, at_good]
    while (candidate := space.proposal()) is not None:
        step = tester.other(STEP, candidate, runs)
        space.learn(candidate, step.judgement)
        steps.append(step)
    clean = [each.trial.passed for each in steps if each.judgement is Judgement.GOOD]
    seconds = sum(each.trial.seconds for each in steps)
    return Result(space.answer(), sought, tuple(steps), confidence(rate, clean), rate, runs, seconds)


def _verify_bad(step: Step) -> None:
    if step.judgement is Judgement.BAD:
        return
    name, trial = step.candidate.title, step.trial
    if step.judgement is Judgement.GOOD:
        raise KernrigError(
            f"the bad end is good: {name}: {trial}",
            hint="name a kernel on which it fails; if it fails now and then, ask for more runs (--end-runs)",
        )
    raise _cannot_be_judged("bad", step)


def _verify_good(step: Step) -> None:
    if step.judgement is Judgement.GOOD:
        return
    name, trial = step.candidate.title, step.trial
    if step.judgement is Judgement.BAD:
        raise KernrigError(
            f"the good end is bad: {name}: {trial}\n{trial.evidence}".rstrip(),
            hint="name a kernel on which it passes; perhaps the failure is older than that one",
        )
    raise _cannot_be_judged("good", step)


def _cannot_be_judged(which: str, step: Step) -> KernrigError:
    trial = step.trial
    why = f"could not be tested:\n{trial.broken}" if trial.broken else f"{trial}\n{trial.remark}"
    return KernrigError(f"the {which} end cannot be judged: {step.candidate.title}: {why}".rstrip())


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"
