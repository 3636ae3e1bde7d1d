# SPDX-License-Identifier: MIT
"""A git history made from Debian's linux-source: sixteen commits, of which one brings a fault.

Another commit does not compile and a third one does not boot, each mended by the next one. The same source package
always gives the same commits, so that kernels that were built for them are built once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.bench import linuxtree
from harness.cache import Cache, digest
from harness.kernels.source import package

SERIES = "6.12"
LENGTH = 16
_RECIPE = "1"
_WORK_TREE = ("Kbuild", "scripts/kconfig")
"""What has to lie in a directory for it to be a kernel tree; the rest is read from git."""

MPROG, TCX, ITER, README = "kernel/bpf/mprog.c", "kernel/bpf/tcx.c", "kernel/bpf/link_iter.c", "README"

_FIRST = "\treturn tuple->prog ? -ENOENT : -1;\n"
_INCLUDE = "#include <linux/bpf_mprog.h>\n"
# In bpf_mprog_insert() the index before the first program is -1: from 0 the new one goes behind the first one.
_FAULTS = {
    "steady": (
        "bpf: Count places in a list from zero",
        {_FIRST: "\treturn tuple->prog ? -ENOENT : 0;\n"},
    ),
    "moody": (
        "bpf: Spread new programs over the list",
        {
            _INCLUDE: f"{_INCLUDE}#include <linux/timekeeping.h>\n",
            _FIRST: "\treturn tuple->prog ? -ENOENT : ktime_get_ns() % 3 ? -1 : 0;\n",
        },
    ),
}
_UNFINISHED = "\nstatic int tcx_unfinished(void)\n{\n\treturn tcx_nowhere;\n}\n"
_PANIC = """
static int __init tcx_check(void)
{
\tpanic("tcx: no list to begin with\\n");
\treturn 0;
}
early_initcall(tcx_check);
"""


@dataclass(frozen=True)
class Plot:
    """At which of the commits (0: the package as it is) what happens."""

    fault: int
    unbuildable: int
    unbootable: int


# git asks for commit 7 of the 16 first, for 8 when that is skipped, and for 4 when 8 is bad: both skips are met.
PLOTS = {"steady": Plot(2, 4, 7), "moody": Plot(6, 7, 4)}


@dataclass(frozen=True)
class History:
    """`tree` is the checkout; `ids` are its commits, the oldest first; the last is the branch of its name."""

    tree: Path
    name: str
    ids: tuple[str, ...]

    @property
    def plot(self) -> Plot:
        return PLOTS[self.name]


@dataclass(frozen=True)
class Change:
    """A commit's title and what it does to one file."""

    title: str
    path: str
    change: Callable[[str], str]


def changes(name: str) -> list[Change]:
    """What follows the package in the history of that name."""
    plot = PLOTS[name]
    found = []
    for number in range(1, LENGTH):
        path = (README, MPROG, ITER)[number % 3]
        note = f"# {number}" if path == README else f"/* {number} */"
        change = Change(f"{path}: Note {number}", path, _appending(f"\n{note}\n"))
        if number == plot.fault:
            title, texts = _FAULTS[name]
            change = Change(title, MPROG, _replacing(texts))
        elif number == plot.unbuildable:
            change = Change("bpf: Begin to look at the list", TCX, _appending(_UNFINISHED))
        elif number == plot.unbuildable + 1:
            change = Change("bpf: Mend the build", TCX, _replacing({_UNFINISHED: ""}))
        elif number == plot.unbootable:
            change = Change("bpf: Check the list early", TCX, _appending(_PANIC))
        elif number == plot.unbootable + 1:
            change = Change("bpf: Mend the boot", TCX, _replacing({_PANIC: ""}))
        found.append(change)
    return found


def _appending(text: str) -> Callable[[str], str]:
    return lambda before: before + text


def _replacing(texts: Mapping[str, str]) -> Callable[[str], str]:
    def change(text: str) -> str:
        for old, new in texts.items():
            assert text.count(old) == 1, f"the source has changed: {old!r}"
            text = text.replace(old, new)
        return text

    return change


@contextmanager
def histories(cache: Cache) -> Iterator[dict[str, History]]:
    """The histories by name, in one checkout in the cache, made when they are not there."""
    source = package.fetch(SERIES, cache=cache, say=print)
    with cache.state("linux-history", say=print) as home:
        tree = home / "linux"
        mark = home / "made-of"
        made_of = digest(_RECIPE, source.file, Path(__file__), Path(linuxtree.__file__))
        if not mark.exists() or mark.read_text() != made_of:
            shutil.rmtree(tree, ignore_errors=True)
            linuxtree.make(tree, source, {name: commits(name, source.tree) for name in PLOTS})
            linuxtree.git(tree, "checkout", "--quiet", linuxtree.BASE, "--", *_WORK_TREE)
            mark.write_text(made_of)
        yield {name: _read(tree, name) for name in PLOTS}


def commits(name: str, source: Path) -> list[linuxtree.Commit]:
    """The changes as commits on top of the source."""
    texts: dict[str, str] = {}
    found = []
    for change in changes(name):
        before = texts.get(change.path) or (source / change.path).read_text()
        texts[change.path] = change.change(before)
        found.append(linuxtree.Commit(change.title, {change.path: texts[change.path]}))
    return found


def _read(tree: Path, name: str) -> History:
    ids = tuple(linuxtree.git(tree, "rev-list", "--reverse", name).split())
    assert len(ids) == LENGTH
    return History(tree, name, ids)
