# SPDX-License-Identifier: MIT
"""The commits of a kernel tree as a space; git's own bisection chooses among them.

It works in a bare repository that borrows the objects of the user's, so that nothing in that changes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.bisect.space import Answer, Candidate
from harness.bisect.trial import Judgement
from harness.errors import KernrigError

_FIRST_BAD = re.compile(r"^([0-9a-f]{40}) is the first bad commit$", re.MULTILINE)
_ONLY_SKIPPED = "The first bad commit could be any of:"
_STEPS = re.compile(r"\(roughly (\d+) steps?\)")


class Commits:
    """A bisection between two revisions of the repository at `tree`.

    `kernel` makes a kernel's name of a commit's full id. `paths` limits to commits that touch them, `skip`
    names revisions that are not to be tried. Raises KernrigError for a revision that is not there, or when good
    is no ancestor of bad.
    """

    def __init__(
        self,
        tree: Path,
        good: str,
        bad: str,
        *,
        repository: Path,
        flavours: Sequence[str] = (),
        first_parent: bool = False,
        paths: Sequence[str] = (),
        skip: Sequence[str] = (),
    ) -> None:
        self._tree = tree
        self._repository = repository
        self._suffix = "".join(f"+{each}" for each in flavours)
        self._borrow()
        good_id, bad_id = self._commit(good), self._commit(bad)
        if good_id == bad_id:
            raise KernrigError(
                f"good and bad are the same commit, {good_id[:12]}", hint="name two different ones"
            )
        if self._git("merge-base", good_id, bad_id, check=False).strip() != good_id:
            raise KernrigError(
                f"{good} is no ancestor of {bad}, so that no commit between them broke it",
                hint="take the branch point (`git merge-base`) as the good one",
            )
        self._good, self._bad = self._candidate(good_id), self._candidate(bad_id)
        options = ["--no-checkout", *(["--first-parent"] if first_parent else [])]
        self._git("bisect", "reset", check=False)
        # git bisects only where HEAD is a commit.
        self._git("update-ref", "--no-deref", "HEAD", bad_id)
        self._said = self._git("bisect", "start", *options, bad_id, good_id, "--", *paths)
        for each in skip:
            self._said = self._git("bisect", "skip", self._commit(each), check=False)

    @property
    def good(self) -> Candidate:
        """The good revision."""
        return self._good

    @property
    def bad(self) -> Candidate:
        """The bad revision."""
        return self._bad

    def proposal(self) -> Candidate | None:
        """git's choice."""
        if _FIRST_BAD.search(self._said) or _ONLY_SKIPPED in self._said:
            return None
        head = self._git("rev-parse", "--verify", "--quiet", "BISECT_HEAD", check=False).strip()
        return self._candidate(head) if head else None

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """Tell git, whose exit status is not 0 when only skipped commits are left."""
        self._said = self._git("bisect", judgement.value, candidate.id, check=False)

    def left(self) -> int:
        """git's own estimate."""
        found = _STEPS.search(self._said)
        return int(found[1]) + 1 if found else 1

    def answer(self) -> Answer:
        """The first bad commit with its message and the files that it touched."""
        found = _FIRST_BAD.search(self._said)
        ids = [found[1]] if found else re.findall(r"^([0-9a-f]{40})$", self._said, re.MULTILINE)
        detail = "\n\n".join(
            self._git("show", "--no-patch", "--stat=100", "--format=medium", each).strip()
            if len(ids) > 3
            else self._git("show", "--stat=100", "--format=medium", each).strip()
            for each in ids
        )
        return Answer(tuple(self._candidate(each) for each in ids), detail)

    def log(self) -> str:
        """git's own log, for `git bisect replay`."""
        return self._git("bisect", "log", check=False)

    def _candidate(self, commit: str) -> Candidate:
        title = self._git("log", "-1", "--format=%h %s", commit).strip()
        return Candidate(commit, f"tree:{self._tree}@{commit}{self._suffix}", title)

    def _commit(self, rev: str) -> str:
        # Names are looked up in the user's repository: the bare one has the objects only.
        found = _git(["-C", str(self._tree), "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}"], None)
        if found is None:
            raise KernrigError(
                f"{self._tree} has no commit {rev!r}", hint="name a commit, tag or branch of it"
            )
        return found.strip()

    def _borrow(self) -> None:
        objects = _git(
            ["-C", str(self._tree), "rev-parse", "--path-format=absolute", "--git-path", "objects"], None
        )
        if objects is None:
            raise KernrigError(
                f"{self._tree} is no git repository", hint="give --tree the path of a kernel's checkout"
            )
        if not (self._repository / "HEAD").exists():
            self._git("init", "--quiet", "--bare", str(self._repository))
        (self._repository / "objects/info/alternates").write_text(objects.strip() + "\n")

    def _git(self, *words: str, check: bool = True) -> str:
        said = _git(words, self._repository, always=not check)
        if said is None:
            raise KernrigError(f"git {' '.join(words[:2])} failed in the search's repository")
        return said


def _git(words: Sequence[str], repository: Path | None, *, always: bool = False) -> str | None:
    """What git said; None when it failed, unless `always`."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    if repository is not None:
        base["GIT_DIR"] = str(repository)
    done = subprocess.run(
        ["git", *words],
        env=base | {"LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
    )
    if done.returncode and not always:
        return None
    return done.stdout
