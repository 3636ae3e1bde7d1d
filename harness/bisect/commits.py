# SPDX-License-Identifier: MIT
"""The commits of a kernel tree as a space; git's own bisection chooses among them.

It works in a bare repository that borrows the objects of the user's, so that nothing in that changes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.bisect.gitlog import BisectLog, parse
from harness.bisect.space import Answer, Candidate
from harness.bisect.trial import Judgement
from harness.errors import HostError, KernrigError

_ID = r"[0-9a-f]{40,64}"
_FIRST_BAD = re.compile(rf"^({_ID}) is the first bad commit$", re.MULTILINE)
_ALONE = re.compile(rf"^({_ID})$", re.MULTILINE)
_CHOSEN = re.compile(r"^Bisecting: ", re.MULTILINE)
_STEPS = re.compile(r"\(roughly (\d+) steps?\)")
_WITH_FILES = 3
"""Of so many suspects the report tells which files they touched."""


class Repository:
    """The user's repository at `tree`, which is only read."""

    def __init__(self, tree: Path) -> None:
        """Raises KernrigError when there is none."""
        self.tree = tree
        if self._ask("rev-parse", "--git-dir") is None:
            raise KernrigError(
                f"{tree} is no git repository", hint="give --tree the path of a kernel's checkout"
            )

    def has(self, rev: str) -> bool:
        """Whether it is one commit."""
        return self._ask("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}") is not None

    def commit(self, rev: str) -> str:
        """The full id. Raises KernrigError for what is no commit."""
        found = self._ask("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
        if found is None:
            raise KernrigError(
                f"{self.tree} has no commit {rev!r}", hint="name a commit, tag or branch of it"
            )
        return found

    def commits(self, revs: str) -> list[str]:
        """The ids that one revision or a range (A..B) stands for."""
        if ".." not in revs:
            return [self.commit(revs)]
        found = self._ask("rev-list", revs)
        if found is None:
            raise KernrigError(f"{self.tree} has no range {revs!r}", hint="write it like v6.12.3..v6.12.5")
        return found.split()

    def read_log(self, path: Path) -> BisectLog:
        """What a file with the output of `git bisect log` says. Raises KernrigError when it cannot be read."""
        try:
            return parse(path.read_text(encoding="utf-8"), self.has)
        except OSError as error:
            raise KernrigError(f"the log {path} cannot be read: {error.strerror}") from error

    def lend_to(self, bare: Path) -> None:
        """Make the bare repository anew, with these objects."""
        shutil.rmtree(bare, ignore_errors=True)
        bare.parent.mkdir(parents=True, exist_ok=True)
        form = self._ask("rev-parse", "--show-object-format") or "sha1"
        done = _git(["init", "--quiet", "--bare", f"--object-format={form}", str(bare)], None)
        if done.returncode:
            raise HostError(f"making a repository in the cache failed: {done.stderr.strip()}")
        objects = self._ask("rev-parse", "--path-format=absolute", "--git-path", "objects")
        (bare / "objects/info/alternates").write_text(f"{objects}\n")
        shallow = Path(self._ask("rev-parse", "--path-format=absolute", "--git-path", "shallow") or "")
        if shallow.is_file():
            shutil.copyfile(shallow, bare / "shallow")

    def _ask(self, *words: str) -> str | None:
        done = _git(["-C", str(self.tree), *words], None)
        return None if done.returncode else done.stdout.strip()


class Commits:
    """A bisection between two revisions of the repository at `tree`.

    `paths` limits it to commits that touch them, `skip` names revisions or ranges that are not to be tried, `log` has
    verdicts that are taken as they are (its last bad revision is to be the bad end). Raises KernrigError for a
    revision that is not there, or when good and bad have no history in common.
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
        log: BisectLog | None = None,
    ) -> None:
        self._tree = tree
        self._repository = repository
        self._suffix = "".join(f"+{each}" for each in flavours)
        self._paths = tuple(paths)
        source = Repository(tree)
        source.lend_to(repository)
        good_id, bad_id = source.commit(good), source.commit(bad)
        self._check(good, good_id, bad, bad_id)
        self._good, self._bad = self._candidate(good_id), self._candidate(bad_id)
        options = ["--no-checkout", *(["--first-parent"] if first_parent else [])]
        # git bisects only where HEAD is a commit.
        self._git("update-ref", "--no-deref", "HEAD", bad_id)
        self._said = self._bisect("start", *options, bad_id, good_id, "--", *self._paths)
        for verdict in log.verdicts if log else ():
            # Of the bad ones the last is the end; those before it are newer, and git would go back to them.
            if (
                verdict.judgement is not Judgement.BAD
                and (known := source.commit(verdict.revision)) != good_id
            ):
                self._learn(known, verdict.judgement)
        left_out = [each for revs in skip for each in source.commits(revs)]
        if unwanted := [each for each in left_out if each not in (good_id, bad_id)]:
            self._said = self._bisect("skip", *unwanted)

    def _check(self, good: str, good_id: str, bad: str, bad_id: str) -> None:
        if good_id == bad_id:
            raise KernrigError(
                f"good and bad are the same commit, {good_id[:12]}", hint="name two different ones"
            )
        base = self._run("merge-base", good_id, bad_id).stdout.strip()
        if not base:
            raise KernrigError(
                f"{good} and {bad} have no history in common, so that nothing lies between them"
            )
        if base == bad_id:
            raise KernrigError(
                f"{good} is newer than {bad}: no commit between them broke it, one mended it",
                hint="the good revision has to be older than the bad one, or on another branch",
            )

    @property
    def good(self) -> Candidate:
        """The good revision."""
        return self._good

    @property
    def bad(self) -> Candidate:
        """The bad revision."""
        return self._bad

    def proposal(self) -> Candidate | None:
        """git's choice; first of all the commit where good and bad parted, when good is not older than bad."""
        # Without a choice BISECT_HEAD stays as it was.
        if not _CHOSEN.search(self._said):
            return None
        head = self._run("rev-parse", "--verify", "--quiet", "BISECT_HEAD").stdout.strip()
        return self._candidate(head) if head else None

    def learn(self, candidate: Candidate, judgement: Judgement) -> None:
        """Tell git. Raises KernrigError when it makes no sense: what broke it was mended where good is."""
        self._learn(candidate.id, judgement)

    def _learn(self, commit: str, judgement: Judgement) -> None:
        self._said = self._bisect(judgement.value, commit)
        if re.search(r"^The merge base .* is bad\.", self._said, re.MULTILINE):
            title = self._candidate(commit).title
            raise KernrigError(
                f"{title}, where good and bad parted, is bad: what broke it is older, and was mended on the side "
                "of the good revision",
                hint="look for the mending there, or name an older good revision",
            )

    def left(self) -> int:
        """git's own estimate."""
        found = _STEPS.search(self._said)
        return int(found[1]) + 1 if found else 1

    def answer(self) -> Answer:
        """The first bad commit with its message and the files that it touched.

        Raises KernrigError when nothing is left that could be it.
        """
        found = _FIRST_BAD.search(self._said)
        ids = [found[1]] if found else _ALONE.findall(self._said)
        if not ids:
            where = f" that touches {', '.join(self._paths)}" if self._paths else ""
            raise KernrigError(
                f"no commit between the ends{where} broke it; git says:\n{self._said.strip()}",
                hint="name other paths, or none",
            )
        files = ["--stat=100"] if len(ids) <= _WITH_FILES else ["--no-patch"]
        detail = "\n\n".join(self._git("show", *files, "--format=medium", each).strip() for each in ids)
        return Answer(tuple(self._candidate(each) for each in ids), detail, self.log())

    def log(self) -> str:
        """git's own log, for `git bisect replay` in a checkout."""
        return self._run("bisect", "log").stdout.replace(" '--no-checkout'", "")

    def _candidate(self, commit: str) -> Candidate:
        title = self._git("log", "-1", "--format=%h %s", commit).strip()
        return Candidate(commit, f"tree:{self._tree}@{commit}{self._suffix}", title)

    def _bisect(self, *words: str) -> str:
        """What git said; its status is not 0 when only skipped commits are left, or a merge base is bad."""
        done = self._run("bisect", *words)
        return done.stdout + done.stderr

    def _git(self, *words: str) -> str:
        done = self._run(*words)
        if done.returncode:
            raise KernrigError(f"git {words[0]} failed in the search's repository: {done.stderr.strip()}")
        return done.stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _git(words, self._repository)


def _git(words: Sequence[str], repository: Path | None) -> subprocess.CompletedProcess[str]:
    """git, in `repository` without the user's settings, which may change what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["LC_ALL"] = "C.UTF-8"
    if repository is not None:
        environment |= {
            "GIT_DIR": str(repository),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
    try:
        return subprocess.run(
            ["git", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError("bisecting commits needs git", hint="apt-get install git") from error
