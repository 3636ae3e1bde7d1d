# SPDX-License-Identifier: MIT
"""Which files of a kernel count how often each of their lines runs, and what is kept to read the counts.

gcc leaves a note (`.gcno`) for each such object, which tells where its counters belong; the kernel shows the
counters in debugfs (Documentation/dev-tools/gcov.rst).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HostError, KernrigError
from harness.kernels.source.kconfig import FRAGMENTS

LIST = FRAGMENTS / "coverage.objects"
FOLDER = "coverage"
"""What `keep` makes of a kernel's entry in the cache: `profiled.json`, `notes/OBJECT.gcno`, `source/FILE`."""

_OPTION = re.compile(r"^CONFIG_GCOV_KERNEL=y\b", re.MULTILINE)
_COVERAGE_FLAG = "-ftest-coverage"
_GCOV_TIMEOUT_S = 120.0


def lists_for(fragments: Sequence[Path]) -> tuple[Path, ...]:
    """The lists that a kernel of these fragments is built with: none for a kernel that counts nothing."""
    return (LIST,) if any(_OPTION.search(each.read_text(encoding="utf-8")) for each in fragments) else ()


def make_words(lists: Sequence[Path]) -> list[str]:
    """What make needs on its command line so that the files in the lists count, and no others.

    kbuild asks the variable for each object that it compiles (scripts/Makefile.lib), which is `$@` then. Raises
    KernrigError for a line that names neither a directory nor a source file.
    """
    patterns = []
    for path in lists:
        for line in path.read_text(encoding="utf-8").splitlines():
            name = line.partition("#")[0].strip()
            if not name:
                continue
            if not re.fullmatch(r"[\w.+-]+(?:/[\w.+-]+)*(?:/|\.c)", name):
                raise KernrigError(
                    f"{path}: {name!r} is neither a directory nor a source file",
                    hint="write kernel/bpf/ or kernel/bpf/mprog.c",
                )
            patterns.append(f"{name}%.o" if name.endswith("/") else f"{name.removesuffix('.c')}.o")
    return [f"GCOV_PROFILE=$(if $(filter {' '.join(patterns)},$@),y)"] if patterns else []


def keep(tree: Path, build: Path, folder: Path) -> None:
    """Copy into `folder` the notes of the objects in `build` that count, and the sources that they name.

    Raises KernrigError when there is none, or gcov does not read them.
    """
    sources: set[str] = set()
    objects: dict[str, list[str]] = {}
    places: set[str] = set()
    for note in _notes(build):
        name = note.relative_to(build).with_suffix(".o").as_posix()
        told = read_note(note)
        places.add(told["current_working_directory"])
        found = {place(each["file"], tree, build): each["lines"] for each in told["files"]}
        objects[name] = sorted(each for each, lines in found.items() if lines)
        sources.update(objects[name])
        kept = folder / "notes" / note.relative_to(build)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(note, kept)
    if not objects or len(places) != 1:
        raise KernrigError(
            f"the kernel was built to count its lines, but left {len(objects)} notes of gcc in {build}",
            hint=f"does {LIST} name files of this kernel? clang's kernels can't be asked",
        )
    for source in sources:
        kept = folder / "source" / source
        kept.parent.mkdir(parents=True, exist_ok=True)
        for root in (tree, build):
            if (root / source).is_file():
                shutil.copyfile(root / source, kept)
                break
    about = {"build": places.pop(), "tree": str(tree), "objects": objects}
    (folder / "profiled.json").write_text(json.dumps(about, indent=1, sort_keys=True))


def read_note(note: Path) -> Mapping[str, Any]:
    """What gcov tells of a note, and of the counters beside it if there are any: the one object of its JSON.

    Raises HostError without gcov, KernrigError when it does not understand the files.
    """
    command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", note.name]
    try:
        done = subprocess.run(
            command, cwd=note.parent, capture_output=True, timeout=_GCOV_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise HostError("gcov is not installed", hint="apt-get install gcc") from error
    try:
        told: dict[str, Any] = json.loads(done.stdout)
        told["files"], told["current_working_directory"]
    except (ValueError, KeyError, TypeError) as error:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise KernrigError(
            f"gcov does not understand {note}: {said}", hint="it must be that of the kernel's compiler"
        ) from error
    return told


def _notes(build: Path) -> Iterator[Path]:
    """The notes of objects that were compiled to count, not what an earlier build left."""
    for folder, _, files in os.walk(build):
        for file in sorted(files):
            command = Path(folder, f".{file.removesuffix('.gcno')}.o.cmd")
            if (
                file.endswith(".gcno")
                and command.exists()
                and _COVERAGE_FLAG in command.read_text(errors="replace")
            ):
                yield Path(folder, file)


def place(file: str, tree: Path, build: Path) -> str:
    """A source's path, as gcov tells it, below the tree, or below the build where it was made; whole if it lies
    elsewhere."""
    path = Path(os.path.normpath(build / file))
    for root in (build, tree):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)
