# SPDX-License-Identifier: MIT
"""Two configurations of one tree as a space: which of the options in which they differ makes the difference.

Delta debugging: the set of options taken from the bad configuration is made smaller as long as the failure
stays. Options depend on each other, so that what a kernel has is what its own kconfig makes of the mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bisect.space import Answer, Candidate
from harness.bisect.trial import Judgement
from harness.errors import KernrigError


@dataclass(frozen=True)
class Difference:
    """One option and its value on both sides ("n": off)."""

    option: str
    good: str
    bad: str

    def __str__(self) -> str:
        return f"{self.option}: {self.good} -> {self.bad}"


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
    content, so that it is written once."""
    changes = {each.option: each.bad for each in part}
    lines = [
        line
        for line in good.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.removeprefix("# ").partition("=")[0].partition(" ")[0] not in changes
    ]
    lines += [f"{option}={_written(value)}" for option, value in changes.items()]
    text = "\n".join(lines) + "\n"
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
    """A search for the smallest set of differences that is bad. `kernel(differences)` names the kernel whose
    configuration is the good one with these taken from the bad one.
    """

    def __init__(self, found: Sequence[Difference], kernel: Callable[[Sequence[Difference]], str]) -> None:
        if not found:
            raise KernrigError("the two configurations are the same", hint="give two that differ")
        self._kernel = kernel
        self._all = tuple(found)
        self._suspects = tuple(found)
        self._parts = 2
        self._queue = self._split()

    @property
    def good(self) -> Candidate:
        """The good configuration."""
        return self._candidate(())

    @property
    def bad(self) -> Candidate:
        """The bad configuration."""
        return self._candidate(self._all)

    def proposal(self) -> Candidate | None:
        """The next part of the suspects, or all but a part."""
        return self._candidate(self._queue[0]) if self._queue else None

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """A bad part becomes the new set of suspects."""
        part = self._queue.pop(0)
        assert candidate.id == self._candidate(part).id
        if judgement is Judgement.BAD:
            whole = len(self._suspects)
            # What is left of a complement is cut into as many parts of the old size.
            self._parts = max(2, self._parts - 1) if len(part) > whole // 2 and self._parts > 2 else 2
            self._suspects = part
            self._queue = self._split()
        elif not self._queue and self._parts < len(self._suspects):
            self._parts = min(2 * self._parts, len(self._suspects))
            self._queue = self._split()

    def left(self) -> int:
        """By halving."""
        return len(self._suspects).bit_length() if self._queue else 0

    def answer(self) -> Answer:
        """The options that are left; each of them is needed for the failure."""
        culprit = Candidate(
            "+".join(each.option for each in self._suspects), "", ", ".join(map(str, self._suspects))
        )
        return Answer((culprit,), "\n".join(map(str, self._suspects)))

    def _split(self) -> list[tuple[Difference, ...]]:
        if len(self._suspects) < 2:
            return []
        size, rest = divmod(len(self._suspects), self._parts)
        parts, start = [], 0
        for number in range(self._parts):
            end = start + size + (number < rest)
            parts.append(self._suspects[start:end])
            start = end
        others = [tuple(each for each in self._suspects if each not in part) for part in parts]
        return parts if self._parts == 2 else parts + others

    def _candidate(self, part: Sequence[Difference]) -> Candidate:
        names = "+".join(each.option for each in part)
        title = f"{len(part)} of {len(self._all)} options from the bad configuration"
        return Candidate(names or "none", self._kernel(part), title)
