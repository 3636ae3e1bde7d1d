# SPDX-License-Identifier: MIT
"""The ids of kernel behaviours: what they mean, which scenarios and model rules name them.

`scenarios/FACILITY/BEHAVIOURS.md` explains a facility's ids in tables whose first column is `id`. Its section
"Exemptions" lists those that nothing can show, each with the reason; "Upstream tests" the kernel's own selftests, each
with the scenarios that cover it. Code names ids as people write them: `MPROG-LINK-025, -027, MPROG-RUN-002 to -006`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError

NAME = "BEHAVIOURS.md"
EXEMPTIONS = "Exemptions"
UPSTREAM = "Upstream tests"

_ID = re.compile(r"\b([A-Z][A-Z0-9]*-[A-Z][A-Z0-9]*)-(\d+)")
# What stands between an id and the next short one: punctuation, a quote's end, the beginning of a comment.
_FILLER = r"[\s,;\"'`()\[\]#*/]*"
_SHORT = re.compile(rf"{_FILLER}(?:\b(and|or|to)\b{_FILLER})?-(\d{{3}})\b")
_TO_FULL = re.compile(rf"{_FILLER}\bto\b{_FILLER}(?={_ID.pattern})")


@dataclass(frozen=True)
class Behaviour:
    """An id and its gist: the other cells of its row."""

    id: str
    gist: str


@dataclass(frozen=True)
class UpstreamTest:
    """A test of the kernel's own and the scenarios that cover it, as `test_file.py::test_name`."""

    case: str
    scenarios: tuple[str, ...]


@dataclass(frozen=True)
class Facility:
    """What one BEHAVIOURS.md says. `exemptions` maps an id to the reason."""

    folder: Path
    behaviours: tuple[Behaviour, ...]
    exemptions: tuple[tuple[str, str], ...]
    upstream: tuple[UpstreamTest, ...]

    @property
    def name(self) -> str:
        """The folder's name, such as mprog."""
        return self.folder.name

    def missing(self, scenario: str) -> str:
        """Why `test_file.py::test_name` is no scenario of this folder; empty if it is one."""
        file, _, test = scenario.partition("::")
        path = self.folder / file
        if not path.is_file():
            return f"there is no {file}"
        found = any(name == test for name, _, _ in _tests(path.read_text()))
        return "" if found else f"{file} has no {test or 'test without a name'}"


@dataclass(frozen=True)
class Mention:
    """An id in a text, or a range of them: `stem` is MPROG-RUN, `first` to `last` its numbers as written."""

    stem: str
    first: str
    last: str
    line: int

    @property
    def ends(self) -> tuple[str, ...]:
        """The ids that stand there in so many words."""
        ends = (f"{self.stem}-{self.first}", f"{self.stem}-{self.last}")
        return ends[:1] if self.first == self.last else ends

    def covers(self, behaviour: str) -> bool:
        """Whether the id is meant: one of the two ends, or between them."""
        stem, _, number = behaviour.rpartition("-")
        return stem == self.stem and int(self.first) <= int(number) <= int(self.last)


@dataclass(frozen=True)
class Place:
    """Where an id is named: `test` is the test function around it, empty outside of any."""

    path: Path
    line: int
    test: str = ""

    def __str__(self) -> str:
        return f"{self.path}::{self.test}" if self.test else f"{self.path}:{self.line}"


def read(path: Path) -> Facility:
    """Parse a BEHAVIOURS.md. Raises KernrigError for a row that makes no sense."""
    behaviours: list[Behaviour] = []
    exemptions: list[tuple[str, str]] = []
    upstream: list[UpstreamTest] = []
    for number, section, cells in _rows(path.read_text()):
        first, rest = cells[0], " | ".join(cells[1:])
        if section == UPSTREAM:
            scenarios = (name.strip(" `") for name in rest.split(","))
            upstream.append(UpstreamTest(first, tuple(name for name in scenarios if name)))
        elif not _ID.fullmatch(first) or not rest.strip(" |"):
            raise KernrigError(
                f"{path}:{number}: {first!r} is no id with a text.", hint="write `| ABC-DEF-001 | text |`"
            )
        elif section == EXEMPTIONS:
            exemptions.append((first, rest))
        else:
            behaviours.append(Behaviour(first, rest))
    return Facility(path.parent, tuple(behaviours), tuple(exemptions), tuple(upstream))


def read_all(root: Path) -> tuple[Facility, ...]:
    """All facilities below root/scenarios that have a table. Raises KernrigError."""
    return tuple(read(path) for path in sorted((root / "scenarios").glob(f"*/{NAME}")))


def _rows(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line, section and cells of each table row but headers."""
    section, header = "", True
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            section = line[3:].strip()
        if not line.startswith("|"):
            header = True
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        ruler = all(set(cell) <= set("-:") for cell in cells)
        if not header and not ruler:
            yield number, section, cells
        header = False


def mentions(text: str) -> Iterator[Mention]:
    """The ids in a text, shorthand and all, in order."""
    position = 0
    while match := _ID.search(text, position):
        stem, last = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        position = match.end()
        if (to := _TO_FULL.match(text, position)) and to[1] == stem:
            yield Mention(stem, last, to[2], line)
            position = to.end() + len(f"{stem}-{to[2]}")
        else:
            yield Mention(stem, last, last, line)
        while short := _SHORT.match(text, position):
            first, last = (last if short[1] == "to" else short[2]), short[2]
            line = text.count("\n", 0, short.end()) + 1
            yield Mention(stem, first, last, line)
            position = short.end()


def evidence(root: Path) -> Iterator[Path]:
    """The files that make a behaviour count as covered when they name it: scenarios and the model's rules."""
    for pattern in ("scenarios/**/*.py", "scenarios/**/*.bpf.c", "harness/oracle/*.py"):
        yield from sorted(path for path in root.glob(pattern) if path.is_file())


def named(root: Path, behaviours: Iterable[Behaviour]) -> dict[str, list[Place]]:
    """Where scenarios and the model name each of the behaviours; places are relative to root."""
    places: dict[str, list[Place]] = {behaviour.id: [] for behaviour in behaviours}
    for path in evidence(root):
        text = path.read_text()
        found = list(mentions(text))
        tests = list(_tests(text)) if found and path.suffix == ".py" else []
        for mention in found:
            test = next((name for name, first, last in tests if first <= mention.line <= last), "")
            place = Place(path.relative_to(root), mention.line, test)
            for behaviour, known in places.items():
                if mention.covers(behaviour) and str(place) not in map(str, known):
                    known.append(place)
    return places


def _tests(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first and last line of each test function, decorators included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, first, node.end_lineno or node.lineno
