# SPDX-License-Identifier: MIT
"""What is searched: a space has a good and a bad end, proposes a kernel between them, and learns what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.bisect.trial import Judgement
from harness.errors import KernrigError


@dataclass(frozen=True)
class Candidate:
    """One kernel of a space: `id` is unique in it (a commit, a version, a set of options), `kernel` the name
    under which it is tried, `title` what a reader wants to see.
    """

    id: str
    kernel: str
    title: str


@dataclass(frozen=True)
class Answer:
    """What is left: one culprit, or several when the ones between could not be tested. `detail` is the commit's
    message, the changelog between two packages, or the options; `log` what `git bisect replay` takes."""

    culprits: tuple[Candidate, ...]
    detail: str
    log: str = ""

    @property
    def unique(self) -> bool:
        """Whether it is one."""
        return len(self.culprits) == 1


class Space(Protocol):
    """A search in progress. The same judgements in the same order always lead to the same proposals, so that a
    journal of them is enough to go on later."""

    @property
    def good(self) -> Candidate:
        """The end without the failure."""
        ...

    @property
    def bad(self) -> Candidate:
        """The end with it."""
        ...

    def proposal(self) -> Candidate | None:
        """What to try next; None when nothing is left to try."""
        ...

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """Take a judgement of what was proposed."""
        ...

    def left(self) -> int:
        """About how many steps are still to be done."""
        ...

    def answer(self) -> Answer:
        """What broke it, once there is nothing left to propose."""
        ...


class Line:
    """Candidates in a row, of which the first is good and the last is bad; from some point on all are bad."""

    def __init__(self, candidates: Sequence[Candidate], skip: Sequence[str] = ()) -> None:
        """`skip`: ids of candidates that are not to be tried. Raises KernrigError for one that is not among them."""
        self.candidates = tuple(candidates)
        self._good, self._bad = 0, len(self.candidates) - 1
        ids = [each.id for each in self.candidates]
        if missing := [each for each in skip if each not in ids]:
            raise KernrigError(
                f"{missing[0]} is not between the ends, so that it cannot be skipped",
                hint=f"there are {', '.join(ids)}",
            )
        self._skipped = {ids.index(each) for each in skip}

    @property
    def good(self) -> Candidate:
        """The newest one that is known to be good."""
        return self.candidates[self._good]

    @property
    def bad(self) -> Candidate:
        """The oldest one that is known to be bad."""
        return self.candidates[self._bad]

    def proposal(self) -> Candidate | None:
        """The middle one, or the nearest to it that was not skipped."""
        middle = (self._good + self._bad) // 2
        inside = [each for each in range(self._good + 1, self._bad) if each not in self._skipped]
        return self.candidates[min(inside, key=lambda each: (abs(each - middle), each))] if inside else None

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """Narrow the row."""
        index = self.candidates.index(candidate)
        if judgement is Judgement.GOOD:
            self._good = max(self._good, index)
        elif judgement is Judgement.BAD:
            self._bad = min(self._bad, index)
        else:
            self._skipped.add(index)

    def left(self) -> int:
        """By halving."""
        return max(0, self._bad - self._good - 1).bit_length()

    def between(self) -> tuple[Candidate, ...]:
        """The bad one, and before it those that could not be tested: one of them is the first bad one."""
        return self.candidates[self._good + 1 : self._bad + 1]
