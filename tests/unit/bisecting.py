# SPDX-License-Identifier: MIT
"""A laboratory without machines, and git histories whose files say how their kernels behave."""

from __future__ import annotations

import functools
import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.bisect.journal import Journal
from harness.bisect.search import Plan, Result, search
from harness.bisect.space import Answer, Line, Space
from harness.bisect.trial import End, Outcome, Record, Sought

TEST = "scenarios/test_x.py::test_it"
FAULT = "TEST:scenarios/test_x.py:7:"
ELSE = "KERNEL:warning:elsewhere"
SOURCE = "kernel/bpf/mprog.c"
NOBODY = "Nobody <nobody@example.org>"


def passed(test: str = TEST) -> End:
    return End(test, Outcome.PASSED)


def failed(fingerprint: str = FAULT, test: str = TEST, text: str = "assert 1 == 2") -> End:
    return End(test, Outcome.FAILED, fingerprint, text)


class Row(Line):
    """Candidates in a row, of which nothing else is known."""

    def answer(self) -> Answer:
        return Answer(self.between(), "row")


@dataclass
class Bench:
    """`rate` of the runs on a kernel fail as sought, `otherwise` in another way; `broken` says why it does not run."""

    rate: Callable[[str], float]
    broken: Callable[[str], str] = lambda kernel: ""
    otherwise: Callable[[str], float] = lambda kernel: 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    asked: list[tuple[str, int]] = field(default_factory=list)

    def run(self, kernel: str, rounds: int, sought: Sought | None = None, *, stop: bool = False) -> Record:
        self.asked.append((kernel, rounds))
        if broken := self.broken(kernel):
            return Record(kernel, seconds=1.0, broken=broken)
        ends = []
        for _ in range(rounds):
            if self.dice.random() < self.rate(kernel):
                ends.append(failed())
                if stop:
                    break
            else:
                ends.append(failed(ELSE) if self.dice.random() < self.otherwise(kernel) else passed())
        return Record(kernel, tuple(ends), 1.0)

    @property
    def kernels(self) -> list[str]:
        return [kernel for kernel, _ in self.asked]


def find(
    space: Space,
    bench: Bench,
    folder: Path,
    plan: Plan | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """The search, with its journal in `folder`."""
    return search(space, bench, Journal.open(folder / "journal.json", {"q": 1}), plan or Plan(), say)


def git(tree: Path, *words: str) -> str:
    """git's output. Raises CalledProcessError."""
    names = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(tree), *names, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Change:
    """A commit: its title, what it writes, and its parents by number (default: the one before)."""

    title: str
    files: Mapping[str, str]
    parents: tuple[int, ...] | None = None


def history(tree: Path, changes: Sequence[Change]) -> list[str]:
    """A repository at `tree` with these commits, the last of them on `main`; returns their ids."""
    git_dir = tree / ".git"
    subprocess.run(["git", "init", "-q", "-b", "main", str(tree)], check=True)
    stream = []
    for number, change in enumerate(changes):
        parents = change.parents if change.parents is not None else ((number - 1,) if number else ())
        stream.append(f"commit refs/heads/{'main' if number == len(changes) - 1 else f'c{number}'}")
        stream.append(f"mark :{number + 1}\ncommitter {NOBODY} {1_767_225_600 + 60 * number} +0000")
        stream.append(f"data {len(change.title.encode())}\n{change.title}")
        stream += [f"{'merge' if place else 'from'} :{each + 1}" for place, each in enumerate(parents)]
        for path, text in change.files.items():
            stream.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}")
    marks = git_dir / "marks"
    command = ["git", "-C", str(tree), "fast-import", "--quiet", f"--export-marks={marks}"]
    subprocess.run(command, input="\n".join(stream) + "\n", text=True, check=True)
    ids = dict(line.split() for line in marks.read_text().splitlines())
    return [ids[f":{number + 1}"] for number in range(len(changes))]


def straight(faults: Mapping[int, str], length: int = 16) -> list[Change]:
    """A straight history that writes SOURCE and another file in turn. `faults`: what the kernel of a commit is like,
    from there on until another number says something else."""
    changes = []
    state = "sound"
    for number in range(length):
        state = faults.get(number, state)
        files = {SOURCE: f"{state}\n{number}\n"} if number % 2 == 0 or number in faults else {}
        changes.append(Change(f"change {number}", files or {"net/core/dev.c": f"{number}\n"}))
    return changes


def builder(tree: Path, seed: int = 1) -> Bench:
    """A bench that reads in SOURCE of the commit what its kernel is like."""

    @functools.cache
    def state(kernel: str) -> str:
        rev = kernel.rpartition("@")[2].partition("+")[0]
        return git(tree, "show", f"{rev}:{SOURCE}").split()[0]

    return Bench(
        rate=lambda kernel: {"faulty": 1.0, "moody": 1 / 3}.get(state(kernel), 0.0),
        broken=lambda kernel: {
            "broken": "the kernel does not build:\nerror: expected ';'",
            "silent": "the kernel does not boot: Kernel panic - not syncing",
        }.get(state(kernel), ""),
        otherwise=lambda kernel: 1.0 if state(kernel) == "strange" else 0.0,
        dice=random.Random(seed),
    )
