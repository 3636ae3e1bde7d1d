# SPDX-License-Identifier: MIT
"""A private checkout of a kernel's source, and private caches in which it is built."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness import kernels
from harness.bench import linuxtree
from harness.bench.caches import STATE, TEMPLATE_KINDS, private_cache
from harness.cache import Cache
from harness.errors import HostError, KernrigError
from harness.kernels.source import package

SERIES = "6.12"
BASE, DEBUG = "", "+debug"
"""Flavours, as they end a kernel's name."""
MPROG = "kernel/bpf/mprog.c"
COMMITS = 8
CULPRIT = 4
"""Which of the commits, counted from 0, the package, brings the fault."""
FAULTY = "faulty"
"""The branch of the commits."""

_KINDS = (*TEMPLATE_KINDS, "headers", "image", "kernel", "test-modules", STATE)
_CCACHE = "ccache"
_NEEDED_BYTES = 12 * 10**9
# In bpf_mprog_insert() the index before the first program is -1: from 0 the new one goes behind the first one.
_SOUND = "\treturn tuple->prog ? -ENOENT : -1;\n"
_UNSOUND = "\treturn tuple->prog ? -ENOENT : 0;\n"


@dataclass
class Sources:
    """Builds a kernel of Debian's source package, fetched into the user's cache `base`, in `folder`.

    There are a checkout, whose files can be edited, and a cache with its kernels, what is made of them, its build
    directories and its ccache. One flavour at a time: asking for another one removes the cache of the one before.
    """

    base: Cache
    folder: Path
    say: Callable[[str], None]
    _edits: int = 0
    _complete: set[str] = field(default_factory=set)

    @cached_property
    def tree(self) -> Path:
        """The checkout, made when it is first asked for. Raises KernrigError when there is no room for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < _NEEDED_BYTES:
            raise HostError(
                f"Building kernels in {self.folder} may need {_NEEDED_BYTES / 1e9:.0f} GB, and {free / 1e9:.0f} GB are "
                "free.",
                hint="free some space, or set KERNRIG_CACHE to a directory on another disk",
            )
        source = package.fetch(SERIES, cache=self.base, say=self.say)
        self.say(f"making a git checkout of linux-source-{SERIES} {source.version}")
        tree = self.folder / "linux"
        shutil.rmtree(tree, ignore_errors=True)
        text = (source.tree / MPROG).read_text(encoding="utf-8")
        linuxtree.make(tree, source, {FAULTY: commits(text)})
        linuxtree.git(tree, "checkout", "--quiet", linuxtree.BASE)
        return tree

    def kernel(self, flavour: str) -> str:
        """The kernel's name: the checkout as it lies there."""
        return f"tree:{self.tree}{flavour}"

    def cache(self, flavour: str) -> Cache:
        """The flavour's cache."""
        for other in {BASE, DEBUG} - {flavour}:
            shutil.rmtree(self._root(other), ignore_errors=True)
        self._complete &= {flavour}
        root = self._root(flavour)
        return Cache(root) if root.exists() else private_cache(self.base, root, _KINDS)

    def _root(self, flavour: str) -> Path:
        return self.folder / f"cache-{flavour.removeprefix('+') or 'base'}"

    def forget(self, flavour: str, *, but_ccache: bool = False) -> None:
        """Empty the flavour's cache; with `but_ccache` what ccache has in it is kept."""
        root, kept = self.cache(flavour).root, self.folder / _CCACHE
        if but_ccache and self.compiled(flavour):
            (root / STATE / _CCACHE).rename(kept)
        shutil.rmtree(root)
        root = self.cache(flavour).root
        if kept.exists():
            kept.rename(root / STATE / _CCACHE)
        else:
            self._complete.discard(flavour)

    def compiled(self, flavour: str) -> bool:
        """Whether ccache remembers a whole build of the flavour."""
        ccache = self.cache(flavour).root / STATE / _CCACHE
        return flavour in self._complete and ccache.is_dir() and any(ccache.iterdir())

    def build(self, flavour: str) -> float:
        """Have the kernel in the cache; returns how many seconds that took. Raises KernrigError when it doesn't
        build."""
        name, cache = self.kernel(flavour), self.cache(flavour)
        begin = time.monotonic()
        kernels.resolve(name, cache=cache, say=self.say)
        seconds = time.monotonic() - begin
        self._complete.add(flavour)
        return seconds

    def edit(self) -> None:
        """Change a file of the checkout as an editor would, each time differently, and so that the kernel is another
        one."""
        self._edits += 1
        file = self.tree / MPROG
        file.write_text(file.read_text(encoding="utf-8") + _constant(f"edit_{self._edits}"), encoding="utf-8")

    def culprit(self) -> str:
        """The id of the commit that brings the fault."""
        ids = linuxtree.git(self.tree, "rev-list", "--reverse", FAULTY).split()
        return ids[CULPRIT]


def commits(text: str) -> list[linuxtree.Commit]:
    """What comes after the package, of whose MPROG this is the text: each commit changes that file and nothing else,
    and makes another kernel of it. Raises KernrigError when the fault has no place in it.
    """
    if text.count(_SOUND) != 1:
        raise KernrigError(
            f"{MPROG} of linux-source-{SERIES} is not as it was, so that no fault can be planted in it",
            hint="harness/bench/sources.py has the line that it is planted in",
        )
    found = []
    for number in range(1, COMMITS):
        title = f"bpf: Number {number}"
        text += _constant(f"commit_{number}")
        if number == CULPRIT:
            title, text = "bpf: Count places in a list from zero", text.replace(_SOUND, _UNSOUND)
        found.append(linuxtree.Commit(title, {MPROG: text}))
    return found


def _constant(name: str) -> str:
    """C that leaves something in the object file."""
    return f'\nextern const char kernrig_{name}[];\nconst char kernrig_{name}[] = "{name}";\n'
