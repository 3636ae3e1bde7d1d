# SPDX-License-Identifier: MIT
"""What a search has found out so far, in a file that is replaced as a whole: an interrupted one goes on from there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.bisect.space import Candidate
from harness.bisect.trial import Failure, Judgement, Sought, Trial


@dataclass(frozen=True)
class Step:
    """One kernel that was tried: `role` is "good end", "bad end" or "step"."""

    role: str
    candidate: Candidate
    trial: Trial
    judgement: Judgement


@dataclass
class Journal:
    """The steps so far, and the failure that is sought. `question` is all that they depend on: a journal of another
    question is none."""

    path: Path
    question: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    sought: Sought | None = None

    @classmethod
    def open(cls, path: Path, question: dict[str, Any]) -> Journal:
        """The journal at `path`; empty when there is none, it cannot be read, or it is of another question."""
        journal = cls(path, question)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["question"] != question:
                return journal
            steps = [
                Step(
                    each["role"],
                    Candidate(**each["candidate"]),
                    Trial(**each["trial"]),
                    Judgement(each["judgement"]),
                )
                for each in told["steps"]
            ]
            failures = frozenset(Failure(**each) for each in told["sought"])
        except (OSError, ValueError, KeyError, TypeError):
            return journal
        if steps and failures:
            journal.steps, journal.sought = steps, Sought(failures)
        return journal

    def add(self, step: Step) -> None:
        """Write one more step down. A process that is killed meanwhile leaves the file as it was."""
        self.steps.append(step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "question": self.question,
            "sought": [asdict(each) for each in sorted(self.sought.failures)] if self.sought else [],
            "steps": [asdict(each) for each in self.steps],
        }
        new = self.path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)
        self.steps.clear()
        self.sought = None

    def known(self, role: str, candidate: Candidate) -> Step | None:
        """What an earlier run of the same search found out about it."""
        found = (each for each in self.steps if each.role == role and each.candidate.id == candidate.id)
        return next(found, None)
