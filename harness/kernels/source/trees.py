# SPDX-License-Identifier: MIT
"""A kernel tree at one moment: its content's identity, and a copy of it to build from.

The user's tree is only read. What lies in it is stored as a git tree in a bare repository of the cache, which
borrows the objects of the user's own repository; the copy is updated file by file, so that a build after a
small change is small.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.cache import Cache, Say, digest
from harness.errors import HostError, KernrigError

_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Snapshot:
    """What a tree holds. `content` is a git tree's id or a package's checksum, the same for the same files; `version`
    names it for people; `place` is where it came from (one place is built incrementally).

    `tree` is a directory that has it already and never changes, or None when it has to be copied out of `repository`.
    """

    place: str
    content: str
    version: str
    tree: Path | None = None
    repository: Path | None = None

    def copy_to(self, folder: Path) -> Path:
        """A directory with the content: `tree` itself, or `folder`, brought up to date."""
        if self.tree is not None:
            return self.tree
        assert self.repository is not None
        folder.mkdir(exist_ok=True)
        git = _Git(self.repository, folder, folder.with_name(f"{folder.name}.index"))
        git.run("read-tree", "--reset", "-u", self.content, what=f"copying the tree {self.version}")
        return folder


def snapshot(path: Path, rev: str | None, *, cache: Cache, say: Say | None = None) -> Snapshot:
    """The kernel tree at `path`: commit `rev` of its repository, or as it lies there, with changes that are not
    committed.

    In a git repository, files that its .gitignore names (what a build in the tree leaves) are not part of it. Raises
    KernrigError when there is no kernel tree, no such commit, or a tree without git has been built in.
    """
    if not (path / "Kbuild").exists() or not (path / "scripts/kconfig").is_dir():
        raise KernrigError(
            f"{path} is no kernel tree: it has no Kbuild and scripts/kconfig",
            hint="name the top of a checkout or of an unpacked source archive",
        )
    place = f"tree {path.resolve()}"
    own = _Git.of(path)
    if own is None and rev is not None:
        raise KernrigError(
            f"{path} is no git repository, so that it has no revision {rev}", hint="leave out the @REV"
        )
    if own is None and any((path / each).exists() for each in (".config", "include/config", "vmlinux")):
        raise KernrigError(
            f"{path} has been built in, and without git nothing tells what belongs to the tree",
            hint=f"run `make -C {path} mrproper`, or name a git checkout",
        )
    with cache.state(f"kernel-tree-{digest(place)}", say=say) as home:
        repository = home / "repository"
        _prepare(repository, own)
        git = _Git(repository, path, home / "index")
        if own is not None and rev is not None:
            commit = own.run(
                "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}", what=f"looking up {rev}"
            )
            content = own.run("rev-parse", f"{commit}^{{tree}}", what=f"looking up {rev}")
            return Snapshot(place, content, f"{rev} ({commit[:12]})", None, repository)
        if own is not None and not git.index.exists():
            index = own.run(
                "rev-parse", "--path-format=absolute", "--git-path", "index", what="finding the index"
            )
            if Path(index).exists():
                shutil.copyfile(index, git.index)
        if say is not None and not git.index.exists():
            say(f"reading the kernel tree {path}")
        # An unpacked archive may come with a .gitignore that names everything, as Debian's does.
        force = ["--force"] if own is None else []
        git.run("add", "--all", *force, ".", what=f"reading the kernel tree {path}")
        content = git.run("write-tree", what=f"reading the kernel tree {path}")
    version = f"tree {content[:12]}"
    if own is not None:
        head = own.run("rev-parse", "--verify", "HEAD", what="looking up HEAD")
        same = own.run("rev-parse", f"{head}^{{tree}}", what="looking up HEAD") == content
        version = head[:12] if same else f"{head[:12]} with changes (tree {content[:12]})"
    return Snapshot(place, content, version, None, repository)


def _prepare(repository: Path, own: _Git | None) -> None:
    """A bare repository that borrows the objects of the user's."""
    if not (repository / "HEAD").exists():
        _Git(repository, None).run("init", "--quiet", "--bare", what="making a repository in the cache")
    if own is not None:
        objects = own.run(
            "rev-parse", "--path-format=absolute", "--git-path", "objects", what="finding the tree's objects"
        )
        (repository / "objects/info/alternates").write_text(f"{objects}\n")


@dataclass(frozen=True)
class _Git:
    """git on one repository, perhaps with a work tree and an index of its own; the user's settings that run
    programs or rewrite files (hooks, filters, line ends) are left out."""

    repository: Path
    work_tree: Path | None
    index: Path = Path()

    @classmethod
    def of(cls, path: Path) -> _Git | None:
        """The repository whose top `path` is, or None."""
        if not (path / ".git").exists():
            return None
        found = _git(["-C", str(path), "rev-parse", "--absolute-git-dir"], {}, f"asking git about {path}")
        return cls(Path(found), None)

    def run(self, *words: str, what: str) -> str:
        """Output of a git command, without the last line's end. Raises KernrigError with what git said."""
        environment = {"GIT_DIR": str(self.repository)}
        if self.work_tree is not None:
            environment["GIT_WORK_TREE"] = str(self.work_tree)
            environment["GIT_INDEX_FILE"] = str(self.index)
        command = ["-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false", "-c", "core.bare=false"]
        if self.work_tree is None:
            command = []
        elif words[0] == "add":
            command += ["-C", str(self.work_tree), "-c", "advice.addEmbeddedRepo=false"]
        return _git([*command, *words], environment, what)


def _git(words: list[str], environment: Mapping[str, str], what: str) -> str:
    base = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *words],
            env=base | {"LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1"} | dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError(f"{what} needs git", hint="apt-get install git") from error
    except subprocess.TimeoutExpired as error:
        raise KernrigError(f"{what} took more than {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip() or "there is no such revision"
        raise KernrigError(f"{what} failed: {said}")
    return done.stdout.rstrip("\n")
