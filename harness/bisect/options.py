# SPDX-License-Identifier: MIT
"""Two configurations of one tree as a space: which of the options in which they differ makes the difference.

Delta debugging (Zeller and Hildebrandt's ddmin): the set of options taken from the bad configuration is made smaller
as long as the failure stays. Options depend on each other, so what counts is what the tree's own kconfig makes of a
mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bisect.space import Answer, Candidate
from harness.bisect.trial import Judgement
from harness.errors import KernrigError

_TOLD = 40


@dataclass(frozen=True)
class Difference:
    """One option and its value on both sides ("n": off)."""

    option: str
    good: str
    bad: str

    def __str__(self) -> str:
        return f"{self.option}: {self.good} -> {self.bad}"


@dataclass(frozen=True)
class Mixed:
    """What became of a mixture: `kernel` names one that is built so, `id` is the same for the same configuration,
    `changed` are all options in which it differs from the good one."""

    id: str
    kernel: str
    changed: tuple[Difference, ...]


Part = tuple[Difference, ...]
Mix = Callable[[Sequence[Difference]], Mixed]


def differences(good: Mapping[str, str], bad: Mapping[str, str]) -> list[Difference]:
    """The options in which two configurations differ, by name; those that only tell what the compiler is are
    left out."""
    found = []
    for option in sorted({*good, *bad}):
        before, after = good.get(option, "n"), bad.get(option, "n")
        told = option.startswith(
            ("CONFIG_CC_", "CONFIG_GCC_", "CONFIG_CLANG_", "CONFIG_AS_", "CONFIG_LD_", "CONFIG_PAHOLE_")
        )
        if before != after and not told:
            found.append(Difference(option, before, after))
    return found


def mixture(good: Path, part: Sequence[Difference], folder: Path) -> Path:
    """A file in `folder` with the configuration `good` and these options as the bad one has them; its name tells its
    content."""
    changes = {each.option: each.bad for each in part}
    lines = [
        line
        for line in good.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.removeprefix("# ").partition("=")[0].partition(" ")[0] not in changes
    ]
    lines += [f"{option}={_written(value)}" for option, value in changes.items()]
    return keep("\n".join(lines) + "\n", folder)


def keep(text: str, folder: Path) -> Path:
    """A file in `folder` with that configuration, named by its content."""
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.config"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _written(value: str) -> str:
    """A value as a `.config` has it: KernelConfig took strings out of their quotes."""
    plain = value in ("y", "m", "n") or value.lstrip("-").isdigit() or value.startswith("0x")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return value if plain else f'"{escaped}"'


class Options:
    """A search for a smallest set of differences that is bad. `mix(differences)` is the good configuration with these
    taken from the bad one, as kconfig leaves it: an option whose dependencies are not met has stayed as it was.
    """

    def __init__(self, found: Sequence[Difference], mix: Mix) -> None:
        if not found:
            raise KernrigError("the two configurations are the same", hint="give two that differ")
        self._mix = mix
        self._mixed: dict[Part, Mixed] = {}
        self._all: Part = tuple(found)
        self._suspects = self._all
        self._parts = 2
        self._queue = self._split()
        if self._of(()).id == self._of(self._all).id:
            raise KernrigError(
                "kconfig makes the same of both configurations",
                hint="what differs has dependencies that this tree does not meet",
            )
        self._known = {self._of(()).id: Judgement.GOOD, self._of(self._all).id: Judgement.BAD}
        self._untested: list[Part] = []

    @property
    def good(self) -> Candidate:
        """The good configuration."""
        return self._candidate(())

    @property
    def bad(self) -> Candidate:
        """The bad configuration."""
        return self._candidate(self._all)

    def proposal(self) -> Candidate | None:
        """The next part of the suspects, or all but a part, that kconfig makes something new of."""
        while self._queue:
            part = self._queue[0]
            known = self._known.get(self._of(part).id)
            if known is None:
                return self._candidate(part)
            self._take(known)
        return None

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """A bad part becomes the new set of suspects."""
        assert self._queue and candidate.id == self._of(self._queue[0]).id
        self._known[candidate.id] = judgement
        self._take(judgement)

    def _take(self, judgement: Judgement) -> None:
        part = self._queue.pop(0)
        if judgement is Judgement.SKIP:
            self._untested.append(part)
        if judgement is Judgement.BAD:
            whole = len(self._suspects)
            # What is left of a complement is cut into as many parts of the old size.
            self._parts = max(2, self._parts - 1) if len(part) > whole // 2 and self._parts > 2 else 2
            self._suspects = self._effective(part)
            self._queue = self._split()
        elif not self._queue and self._parts < len(self._suspects):
            self._parts = min(2 * self._parts, len(self._suspects))
            self._queue = self._split()

    def _effective(self, part: Part) -> Part:
        """The part without the options that did not get the bad value, if these alone give the same configuration."""
        mixed = self._of(part)
        got = {(each.option, each.bad) for each in mixed.changed}
        stuck = tuple(each for each in part if (each.option, each.bad) in got)
        return stuck if stuck and len(stuck) < len(part) and self._of(stuck).id == mixed.id else part

    def left(self) -> int:
        """By halving twice: each half of the suspects may have to be tried."""
        return 2 * (len(self._suspects) - 1).bit_length() if self._queue else 0

    def answer(self) -> Answer:
        """The options that are left, of which each is needed for the failure, and what kconfig changed with them."""
        names = "+".join(each.option for each in self._suspects)
        lines = [str(each) for each in self._suspects]
        if len(self._suspects) > 1:
            lines.append("Without any one of these the failure is gone.")
        along = [each for each in self._of(self._suspects).changed if each not in self._suspects]
        if along:
            lines += ["", "kconfig changes with that, because they select or depend on each other:"]
            lines += [f"  {each}" for each in along[:_TOLD]]
            lines += [f"  and {len(along) - _TOLD} more"] if len(along) > _TOLD else []
        untested = sum(set(part) < set(self._suspects) for part in self._untested)
        if untested:
            lines += [
                "",
                f"{untested} smaller mixtures could not be tested: perhaps fewer options are enough.",
            ]
        culprit = Candidate(names, self._of(self._suspects).kernel, ", ".join(map(str, self._suspects)))
        return Answer((culprit,), "\n".join(lines))

    def _split(self) -> list[Part]:
        if len(self._suspects) < 2:
            return []
        self._parts = min(self._parts, len(self._suspects))
        size, rest = divmod(len(self._suspects), self._parts)
        parts, start = [], 0
        for number in range(self._parts):
            end = start + size + (number < rest)
            parts.append(self._suspects[start:end])
            start = end
        others = [tuple(each for each in self._suspects if each not in part) for part in parts]
        return parts if self._parts == 2 else parts + others

    def _of(self, part: Part) -> Mixed:
        if part not in self._mixed:
            self._mixed[part] = self._mix(part)
        return self._mixed[part]

    def _candidate(self, part: Part) -> Candidate:
        mixed = self._of(part)
        title = f"{len(part)} of {len(self._all)} options from the bad configuration"
        if 0 < len(part) <= 3:
            title = f"with {', '.join(f'{each.option}={each.bad}' for each in part)}"
        return Candidate(mixed.id, mixed.kernel, title)
