# SPDX-License-Identifier: MIT
"""What a kernel counts: its objects, the source files in them, and what the user named of these."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.errors import KernrigError
from harness.kernels import Kernel, source
from harness.kernels.source.profile import LIST


@dataclass(frozen=True)
class Profiled:
    """`objects` are those that count (`kernel/bpf/mprog.o`), each with the source files that have code in it, headers
    too; the kernel was built in `build` from `tree`, and `folder` keeps notes and sources."""

    kernel: str
    folder: Path
    build: str
    tree: Path
    objects: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, kernel: Kernel) -> Profiled:
        """What that kernel counts. Raises KernrigError when it counts nothing, naming one that does."""
        if kernel.coverage is None:
            series = ".".join(kernel.release.split(".")[:2])
            other = f"deb-source:{series}" if kernel.provenance.source == "debian" else "tree:PATH"
            raise _counts_nothing(kernel.name, other)
        told = json.loads((kernel.coverage / "profiled.json").read_bytes())
        objects = {name: tuple(files) for name, files in told["objects"].items()}
        return cls(kernel.name, kernel.coverage, told["build"], Path(told["tree"]), objects)

    @property
    def sources(self) -> Path:
        """The directory with the source files, each in its place in the kernel's tree."""
        return self.folder / "source"

    def note(self, name: str) -> Path:
        """gcc's note of an object."""
        return (self.folder / "notes" / name).with_suffix(".gcno")

    def counters(self, name: str) -> str:
        """Where an object's counters are, below the directory of gcov in debugfs."""
        return str(PurePosixPath(self.build, name).with_suffix(".gcda")).lstrip("/")

    def files(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The source files that are named, in that order: a directory stands for all .c files in it that count.

        Raises KernrigError for a name that is of none, telling which there are.
        """
        known = {file for files in self.objects.values() for file in files}
        found: list[str] = []
        for each in asked:
            name = each.removeprefix("./").rstrip("/")
            inside = [file for file in known if file.startswith(f"{name}/") and file.endswith(".c")]
            if name not in known and not inside:
                raise KernrigError(
                    f"the kernel {self.kernel} does not count the lines of {each}",
                    hint=f"it counts those of {_listed(known)}; {LIST} says which, for the next build",
                )
            found += [name] if name in known else sorted(inside)
        return tuple(dict.fromkeys(found))

    def objects_with(self, files: Sequence[str]) -> tuple[str, ...]:
        """The objects in which one of the files has code."""
        wanted = set(files)
        return tuple(name for name, its in sorted(self.objects.items()) if wanted.intersection(its))


def check(name: str) -> None:
    """Before a kernel is built: raises KernrigError, as `Profiled.of` does, when its name says that it counts
    nothing."""
    if source.is_name(name) and not source.counts_lines(name):
        raise _counts_nothing(name, name.replace("+clang", "") if "+config=" not in name else "tree:PATH")


def _counts_nothing(name: str, other: str) -> KernrigError:
    return KernrigError(
        f"the kernel {name} does not count which of its lines run",
        hint=f"take one that was built for it: --kr-kernel={other}+coverage",
    )


def _listed(files: set[str]) -> str:
    """The .c files, those of one directory together: `kernel/bpf/{arena,mprog}.c`."""
    folders: dict[str, list[str]] = defaultdict(list)
    for file in sorted(files):
        if file.endswith(".c"):
            folder, _, name = file.rpartition("/")
            folders[folder].append(name.removesuffix(".c"))
    return ", ".join(
        f"{folder}/{{{','.join(names)}}}.c" if len(names) > 1 else f"{folder}/{names[0]}.c"
        for folder, names in folders.items()
    )
