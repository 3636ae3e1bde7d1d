# SPDX-License-Identifier: MIT
"""Git histories that begin with Debian's linux-source, written by git-fast-import(1)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError, KernrigError
from harness.kernels.source.package import SourcePackage

BASE = "base"
"""The branch that has the package as it is."""

_TIME = 1_767_225_600
_NOBODY = b"Nobody <nobody@example.org>"


@dataclass(frozen=True)
class Commit:
    """A commit's title, and the new contents of the files that it changes."""

    title: str
    files: Mapping[str, str]


def make(tree: Path, source: SourcePackage, branches: Mapping[str, Sequence[Commit]]) -> None:
    """A new repository at `tree`: the branch BASE, and others that go on from it. Nothing is checked out.

    The same package and branches always give the same commits. Raises KernrigError when git fails.
    """
    git(tree.parent, "init", "--quiet", "--template=", f"--initial-branch={BASE}", str(tree))
    command = ["git", "-C", str(tree), "-c", "core.compression=1", "fast-import", "--quiet"]
    with subprocess.Popen(
        command, env=_environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin is not None and program.stderr is not None
        with contextlib.suppress(BrokenPipeError):  # git says why
            for piece in _stream(source, branches):
                program.stdin.write(piece)
        with contextlib.suppress(BrokenPipeError):
            program.stdin.close()
        said = program.stderr.read().decode("utf-8", "replace")
    if program.returncode:
        raise KernrigError(f"git could not import {source.tree} into {tree}: {said.strip()}")


def git(tree: Path, *words: str) -> str:
    """What git says in `tree`, without the user's settings and hooks. Raises KernrigError when it fails."""
    command = ["git", "-C", str(tree), "-c", "core.hooksPath=/dev/null", *words]
    try:
        done = subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise HostError("making a git history needs git", hint="apt-get install git") from error
    if done.returncode:
        raise KernrigError(f"git {words[0]} failed in {tree}: {done.stderr.strip()}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C.UTF-8"}


def _stream(source: SourcePackage, branches: Mapping[str, Sequence[Commit]]) -> Iterator[bytes]:
    yield _head(BASE, f"linux-source {source.version}", 0)
    for path in sorted(source.tree.rglob("*")):
        name = path.relative_to(source.tree).as_posix().encode()
        if path.is_symlink():
            yield _file(b"120000", name, os.fsencode(path.readlink()))
        elif path.is_file():
            yield _file(b"100755" if os.access(path, os.X_OK) else b"100644", name, path.read_bytes())
    for branch, commits in branches.items():
        for number, commit in enumerate(commits, 1):
            yield _head(branch, commit.title, number)
            if number == 1:
                yield f"from refs/heads/{BASE}\n".encode()
            for changed, text in commit.files.items():
                yield _file(b"100644", changed.encode(), text.encode())


def _head(branch: str, title: str, number: int) -> bytes:
    data = title.encode()
    return b"commit refs/heads/%s\ncommitter %s %d +0000\ndata %d\n%s\n" % (
        branch.encode(),
        _NOBODY,
        _TIME + 3600 * number,
        len(data),
        data,
    )


def _file(mode: bytes, name: bytes, data: bytes) -> bytes:
    return b"M %s inline %s\ndata %d\n%s\n" % (mode, name, len(data), data)
