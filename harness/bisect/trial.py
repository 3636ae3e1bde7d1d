# SPDX-License-Identifier: MIT
"""Running the scenarios on one kernel some times, and what that says about it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from harness.bisect import observer
from harness.errors import KernrigError

_EVIDENCE_LINES = 30
_BUILD_FAILED = "could not be tested"


class Judgement(StrEnum):
    """What a kernel is, as git bisect says it."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True)
class Sought:
    """The failure that is looked for: by these fingerprints (a failing assertion's place, or a splat's title and first
    functions). None are known until the bad end was run."""

    fingerprints: frozenset[str] = frozenset()

    def is_it(self, fingerprint: str) -> bool:
        """Whether a failure with that fingerprint is the one."""
        return not self.fingerprints or fingerprint in self.fingerprints


@dataclass(frozen=True)
class Trial:
    """What happened on one kernel: how many runs passed, failed as sought, failed in another way, or told
    nothing (skipped, or a fault of the host). `broken` says why there were no runs: it did not build or boot.
    """

    kernel: str
    passed: int = 0
    failed: int = 0
    other: int = 0
    void: int = 0
    seconds: float = 0.0
    broken: str = ""
    fingerprints: dict[str, int] = field(default_factory=dict)
    evidence: str = ""

    @property
    def runs(self) -> int:
        """The runs that say something."""
        return self.passed + self.failed

    @property
    def judgement(self) -> Judgement:
        """One failure as sought is enough to be bad. A kernel on which the scenario failed in other ways only, or told
        nothing, is neither."""
        if self.failed:
            return Judgement.BAD
        if self.passed and not self.other:
            return Judgement.GOOD
        return Judgement.SKIP

    def __str__(self) -> str:
        if self.broken:
            return f"{_BUILD_FAILED}: {self.broken.splitlines()[0]}"
        parts = [(self.passed, "passed"), (self.failed, "failed"), (self.other, "failed otherwise")]
        parts.append((self.void, "told nothing"))
        return ", ".join(f"{count} {what}" for count, what in parts if count) or "no runs"


class Laboratory(Protocol):
    """Where kernels are tried."""

    def try_out(self, kernel: str, runs: int, sought: Sought) -> Trial:
        """Run the scenarios `runs` times on the kernel of that name. Must not raise for a kernel that does not
        build or boot: that is a trial that was `broken`."""
        ...


@dataclass(frozen=True)
class Pytest:
    """Runs pytest in a process of its own, repetitions in parallel clones."""

    arguments: tuple[str, ...]
    jobs: int
    rootdir: Path
    options: tuple[str, ...] = ()

    def try_out(self, kernel: str, runs: int, sought: Sought) -> Trial:
        """See Laboratory. Raises KernrigError when pytest finds nothing to run or its command line is wrong."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kernrig-trial-") as folder:
            results = Path(folder, "results.jsonl")
            command = [sys.executable, "-m", "pytest", "-p", "harness.bisect.observer", "-q"]
            command += ["--no-header", "-rN", f"--kr-kernel={kernel}", f"--kr-repeat={runs}", *self.options]
            if self.jobs > 1 and runs > 1:
                command += ["-n", str(min(self.jobs, runs))]
            status, output = self._run([*command, *self.arguments], results)
            lines = results.read_text().splitlines() if results.exists() else []
        seconds = time.monotonic() - began
        if not lines:
            if status == 5 or "not found" in output or "no tests ran" in output:
                raise KernrigError(
                    f"pytest found nothing to run: {' '.join(self.arguments)}\n{_last(output)}",
                    hint="give a scenario as pytest takes it: scenarios/mprog/test_order.py::test_name",
                )
            return Trial(kernel, seconds=seconds, broken=_last(output))
        return evaluate(kernel, [json.loads(each) for each in lines], sought, seconds)

    def _run(self, command: Sequence[str], results: Path) -> tuple[int, str]:
        program = subprocess.Popen(
            command,
            cwd=self.rootdir,
            env=os.environ | {observer.VARIABLE: str(results)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            output, _ = program.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                program.send_signal(signal.SIGINT)
            program.wait()
            raise
        return program.returncode, output


def evaluate(kernel: str, ends: Sequence[dict[str, str]], sought: Sought, seconds: float) -> Trial:
    """The trial that these tests' ends (harness/bisect/observer.py) make up. The evidence is that of the first failure
    that is sought."""
    passed = failed = other = void = 0
    fingerprints: Counter[str] = Counter()
    evidence = ""
    for end in ends:
        if end["outcome"] == "passed":
            passed += 1
        elif end["outcome"] == "failed" and end.get("kernrig") != "INFRA":
            fingerprint = end.get("fingerprint", "")
            fingerprints[fingerprint] += 1
            if sought.is_it(fingerprint):
                failed += 1
                evidence = evidence or end["text"]
            else:
                other += 1
        else:
            void += 1
    tail = "\n".join(evidence.splitlines()[-_EVIDENCE_LINES:])
    return Trial(kernel, passed, failed, other, void, seconds, "", dict(fingerprints), tail)


def failure_rate(trial: Trial) -> float:
    """A careful estimate of how often a run on a bad kernel fails: the lower end of the one-sided 95 % interval
    (Wilson) of what was seen."""
    if not trial.runs:
        return 0.0
    z = 1.645
    n, p = trial.runs, trial.failed / trial.runs
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n))


def repeats(rate: float, miss: float) -> int:
    """How many runs it takes for a bad kernel to pass them all with a probability of at most `miss`."""
    if rate >= 1.0:
        return 1
    if rate <= 0.0:
        raise ValueError("a failure that never happens cannot be looked for")
    return max(1, math.ceil(math.log(miss) / math.log(1.0 - rate)))


def missed(rate: float, runs: int) -> float:
    """The probability that a bad kernel passes that many runs."""
    return (1.0 - rate) ** runs if rate < 1.0 else 0.0


def _last(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return "\n".join(lines[-6:]) or "pytest said nothing"
