# SPDX-License-Identifier: MIT
"""Counters become lines: gcov reads them, and what it tells of each source file is added up over the objects."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.coverage.counters import Counters
from harness.coverage.profiled import Profiled
from harness.kernels.source.profile import place, read_note


@dataclass
class Line:
    """How often a line ran, and each of the ways on from it was taken; `before`: whether it ran before any scenario,
    while the machine was made ready."""

    count: int = 0
    branches: list[int] = field(default_factory=list)
    before: bool = False


@dataclass
class Function:
    """How often a function was called, and which lines are its own."""

    name: str
    first: int
    last: int
    count: int = 0


@dataclass
class Source:
    """What is known of one file's lines with code, by number. `text` are all its lines."""

    path: str
    text: Sequence[str]
    lines: dict[int, Line] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    def reached(self) -> tuple[int, int]:
        """Lines that ran, lines with code."""
        return sum(line.count > 0 for line in self.lines.values()), len(self.lines)

    def branches(self) -> tuple[int, int]:
        """Branches that were taken, all branches."""
        each = [count for line in self.lines.values() for count in line.branches]
        return sum(count > 0 for count in each), len(each)

    def called(self) -> tuple[int, int]:
        """Functions that were called, all functions. Small inline ones are part of their callers."""
        return sum(each.count > 0 for each in self.functions.values()), len(self.functions)

    def function_at(self, number: int) -> str:
        """The function that a line belongs to. Of one that gcc merged into its callers only the text is left: it begins
        after the last line that begins with a closing brace."""
        inside = [each for each in self.functions.values() if each.first <= number <= each.last]
        if inside:
            return max(inside, key=lambda each: each.first).name
        for line in reversed(self.text[:number]):
            if line.startswith("}"):
                break
            before, bracket, _ = line.partition("(")
            if bracket and (before[:1].isalpha() or before[:1] == "_"):
                return before.split()[-1].lstrip("*")
        return ""


def read(
    profiled: Profiled,
    files: Sequence[str],
    scenarios: Mapping[str, Counters],
    before: Mapping[str, Counters],
) -> list[Source]:
    """What the scenarios reached of the files, in that order, from the counters of the objects.

    An object that nobody has counters of was not reached. Raises HostError without gcov, KernrigError when it does not
    understand what the kernel's compiler left.
    """
    found = {file: Source(file, _text(profiled.sources / file)) for file in files}
    with tempfile.TemporaryDirectory(prefix="kernrig-gcov-") as name:
        folder = Path(name)
        for each in profiled.objects_with(files):
            note = folder / "object.gcno"
            shutil.copyfile(profiled.note(each), note)
            for counters, early in ((before.get(each), True), (scenarios.get(each), False)):
                counted = note.with_suffix(".gcda")
                counted.unlink(missing_ok=True)
                if counters is not None:
                    counted.write_bytes(counters.pack())
                for told in read_note(note)["files"]:
                    path = place(told["file"], profiled.tree, Path(profiled.build))
                    if path in found:
                        _add(found[path], told, early=early)
    return list(found.values())


def _add(source: Source, told: Mapping[str, Any], *, early: bool) -> None:
    for each in told["lines"]:
        line = source.lines.setdefault(int(each["line_number"]), Line())
        if early:
            line.before = line.before or each["count"] > 0
            continue
        line.count += each["count"]
        branches = [branch["count"] for branch in each["branches"]]
        # The same inline function has as many in each object that has it, but for what a constant decides.
        line.branches = [a + b for a, b in zip_longest(line.branches, branches, fillvalue=0)]
    for each in told["functions"] if not early else ():
        function = source.functions.setdefault(
            each["name"], Function(each["name"], int(each["start_line"]), int(each["end_line"]))
        )
        function.count += each["execution_count"]


def _text(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def total(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Sums of both."""
    listed = list(pairs)
    return sum(some for some, _ in listed), sum(most for _, most in listed)
