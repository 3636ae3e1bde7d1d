# SPDX-License-Identifier: MIT
"""A git history made from Debian's linux-source: sixteen commits, of which one brings a fault.

Another commit does not compile and a third one does not boot, each mended by the next one. The same source package
always gives the same commits, so that kernels that were built for them are built once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.cache import Cache, digest
from harness.kernels.source import package

SERIES = "6.12"
LENGTH = 16
_RECIPE = "1"
_TIME = 1_767_225_600
_NOBODY = b"Nobody <nobody@example.org>"
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
class Commit:
    """A commit's title and what it does to one file."""

    title: str
    path: str
    change: Callable[[str], str]


def commits(name: str) -> list[Commit]:
    """What follows the package in the history of that name."""
    plot = PLOTS[name]
    found = []
    for number in range(1, LENGTH):
        path = (README, MPROG, ITER)[number % 3]
        note = f"# {number}" if path == README else f"/* {number} */"
        change = Commit(f"{path}: Note {number}", path, _appending(f"\n{note}\n"))
        if number == plot.fault:
            title, texts = _FAULTS[name]
            change = Commit(title, MPROG, _replacing(texts))
        elif number == plot.unbuildable:
            change = Commit("bpf: Begin to look at the list", TCX, _appending(_UNFINISHED))
        elif number == plot.unbuildable + 1:
            change = Commit("bpf: Mend the build", TCX, _replacing({_UNFINISHED: ""}))
        elif number == plot.unbootable:
            change = Commit("bpf: Check the list early", TCX, _appending(_PANIC))
        elif number == plot.unbootable + 1:
            change = Commit("bpf: Mend the boot", TCX, _replacing({_PANIC: ""}))
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
        made_of = digest(_RECIPE, source.file, Path(__file__))
        if not mark.exists() or mark.read_text() != made_of:
            shutil.rmtree(tree, ignore_errors=True)
            _make(tree, source.tree, source.version)
            mark.write_text(made_of)
        yield {name: _read(tree, name) for name in PLOTS}


def _read(tree: Path, name: str) -> History:
    done = subprocess.run(
        ["git", "-C", str(tree), "rev-list", "--reverse", name], check=True, capture_output=True, text=True
    )
    ids = tuple(done.stdout.split())
    assert len(ids) == LENGTH
    return History(tree, name, ids)


def _make(tree: Path, source: Path, version: str) -> None:
    subprocess.run(["git", "init", "-q", "-b", "base", str(tree)], check=True)
    command = ["git", "-C", str(tree), "-c", "core.compression=1", "fast-import", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert program.stdin is not None
        _write(program.stdin, source, version)
        program.stdin.close()
        assert program.wait() == 0
    subprocess.run(["git", "-C", str(tree), "checkout", "-q", "base", "--", *_WORK_TREE], check=True)


def _write(stream: IO[bytes], source: Path, version: str) -> None:
    """The histories for git-fast-import(1)."""
    _head(stream, "base", f"linux-source {version}", 0)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix().encode()
        if path.is_symlink():
            _file(stream, b"120000", name, os.fsencode(path.readlink()))
        elif path.is_file():
            _file(stream, b"100755" if os.access(path, os.X_OK) else b"100644", name, path.read_bytes())
    for branch in PLOTS:
        texts: dict[str, str] = {}
        for number, commit in enumerate(commits(branch), 1):
            before = texts.get(commit.path) or (source / commit.path).read_text()
            texts[commit.path] = commit.change(before)
            _head(stream, branch, commit.title, number)
            if number == 1:
                stream.write(b"from refs/heads/base\n")
            _file(stream, b"100644", commit.path.encode(), texts[commit.path].encode())


def _head(stream: IO[bytes], branch: str, title: str, number: int) -> None:
    stream.write(b"commit refs/heads/%s\n" % branch.encode())
    stream.write(b"committer %s %d +0000\n" % (_NOBODY, _TIME + 3600 * number))
    stream.write(b"data %d\n%s\n" % (len(title.encode()), title.encode()))


def _file(stream: IO[bytes], mode: bytes, name: bytes, data: bytes) -> None:
    stream.write(b"M %s inline %s\ndata %d\n" % (mode, name, len(data)))
    stream.write(data)
    stream.write(b"\n")
