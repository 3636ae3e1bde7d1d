# SPDX-License-Identifier: MIT
"""`kernrig bisect`: which commit, package or option broke a scenario."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.failure import say
from harness.errors import KernrigError

if TYPE_CHECKING:
    from harness.bisect.gitlog import BisectLog
    from harness.bisect.options import Mix
    from harness.bisect.space import Space
    from harness.cache import Cache

_REPORTS = ("bisect.txt", "bisect.json", "bisect.md")
_LOG = "bisect.log"


@click.command(
    short_help="find the commit, package or option that broke a scenario",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--good", metavar="KERNEL", help="where the scenario passes")
@click.option("--bad", metavar="KERNEL", help="where it fails")
@click.option(
    "--tree",
    type=click.Path(path_type=Path),
    help="the kernel tree of which --good and --bad are revisions or configurations",
)
@click.option("--flavour", "flavours", multiple=True, help="build with this flavour; repeatable")
@click.option("--first-parent", is_flag=True, help="follow the first parent of merges only")
@click.option("--path", "paths", multiple=True, help="only commits that touch this path; repeatable")
@click.option(
    "--skip",
    "skipped",
    multiple=True,
    metavar="KERNEL",
    help="one that is not to be tried (of commits also A..B); repeatable",
)
@click.option(
    "--skip-list",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a file that names one more on each line",
)
@click.option(
    "--log",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="go on where this `git bisect log` ends, instead of --good and --bad",
)
@click.option(
    "--failure", default="", metavar="TEXT", help="look for failures with TEXT in test or fingerprint only"
)
@click.option(
    "--runs", type=click.IntRange(min=1), help="runs on each kernel; default: as the failure rate asks"
)
@click.option(
    "--end-runs", type=click.IntRange(min=1), default=8, show_default=True, help="runs on both ends"
)
@click.option(
    "--miss",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="probability of a wrong answer that is allowed",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="clones at once",
)
@click.option("--again", is_flag=True, help="forget what was found out before")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".kernrig"),
    show_default=True,
    help="where bisect.txt, bisect.json, bisect.md and bisect.log are written",
)
@click.argument("tests", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] TEST...")
def bisect(tests: tuple[str, ...], **given: Any) -> None:
    """Narrow down where TEST (as pytest takes it) began to fail.

    With --tree, --good and --bad are revisions of it, or two files with configurations for it. Without, they are
    packaged kernels, debian:VERSION each. Both ends are verified first; the failure that the bad one shows most
    often is the one that is looked for. Interrupted, the same command goes on where it was.
    """
    from harness.bisect import report
    from harness.bisect.commits import Commits
    from harness.bisect.journal import Journal
    from harness.bisect.laboratory import Pytest
    from harness.bisect.search import Plan, search
    from harness.cache import Cache, digest

    cache = Cache.default()
    target = _target(given, cache)
    # A journal is of use only while all of this is as it was.
    question = {
        "target": target.question,
        "tests": list(tests),
        "files": _content(tests, Path.cwd()),
        "plan": [given["end_runs"], given["runs"], given["miss"], given["failure"]],
    }
    output: Path = given["output"]
    output.mkdir(parents=True, exist_ok=True)
    with cache.state(f"bisect-{digest(repr(question))}", say=say) as home:
        journal = Journal.open(home / "journal.json", question)
        if given["again"]:
            journal.forget()
        space = target.space(home)
        laboratory = Pytest(tests, given["jobs"], Path.cwd(), say)
        plan = Plan(given["end_runs"], given["runs"] or 0, given["miss"], given["failure"])
        try:
            result = search(space, laboratory, journal, plan, say)
        except (KeyboardInterrupt, SystemExit):
            if isinstance(space, Commits):
                (output / _LOG).write_text(space.log())
            say(f"{len(journal.steps)} steps are kept: the same command goes on from there")
            raise
    asked = report.Question(shlex.join(tests), target.kind, shlex.join(["kernrig", *sys.argv[1:]]))
    texts = (report.text(result, asked), report.as_json(result, asked), report.markdown(result, asked))
    written = dict(zip(_REPORTS, texts, strict=True))
    if result.answer.log:
        written[_LOG] = result.answer.log.rstrip("\n")
    for name, text in written.items():
        (output / name).write_text(text + "\n")
    click.echo(texts[0])
    say(f"reports: {', '.join(str(output / name) for name in written)}")


@dataclass(frozen=True)
class _Commits:
    """Revisions of a tree."""

    tree: Path
    good: str
    bad: str
    flavours: tuple[str, ...]
    first_parent: bool
    paths: tuple[str, ...]
    skip: tuple[str, ...]
    log: BisectLog | None
    kind: str = "commit"

    @property
    def question(self) -> list[str]:
        from harness.bisect.commits import Repository
        from harness.cache import digest
        from harness.kernels.source.kconfig import FRAGMENTS

        source = Repository(self.tree)
        ends = [source.commit(self.good), source.commit(self.bad)]
        known = [repr(self.log), str(self.first_parent), *self.paths, *self.skip]
        return [str(self.tree), *ends, *self.flavours, digest(FRAGMENTS), *known]

    def space(self, home: Path) -> Space:
        from harness.bisect.commits import Commits

        return Commits(
            self.tree,
            self.good,
            self.bad,
            repository=home / "repository",
            flavours=self.flavours,
            first_parent=self.first_parent,
            paths=self.paths,
            skip=self.skip,
            log=self.log,
        )


@dataclass(frozen=True)
class _Options:
    """Two configurations of a tree."""

    tree: Path
    good: Path
    bad: Path
    cache: Cache
    kind: str = "option"

    @property
    def question(self) -> list[str]:
        from harness.cache import digest
        from harness.kernels import source

        content = source.plan(f"tree:{self.tree}", cache=self.cache, say=say).snapshot.content
        return [str(self.tree), content, digest(self.good, self.bad)]

    def space(self, home: Path) -> Space:
        from harness.bisect.options import Options, differences
        from harness.kernels.config import KernelConfig

        found = differences(KernelConfig.read(self.good), KernelConfig.read(self.bad))
        return Options(found, self._mix(home / "configurations"))

    def _mix(self, folder: Path) -> Mix:
        from harness.bisect.options import Difference, Mixed, differences, keep, mixture
        from harness.kernels import source
        from harness.kernels.config import KernelConfig

        def settled(part: Sequence[Difference]) -> Path:
            wanted = mixture(self.good, part, folder)
            return keep(
                source.settled(f"tree:{self.tree}+config={wanted}", cache=self.cache, say=say), folder
            )

        def mix(part: Sequence[Difference]) -> Mixed:
            path = settled(part)
            changed = differences(good, KernelConfig.read(path))
            return Mixed(path.stem, f"tree:{self.tree}+config={path}", tuple(changed))

        good = KernelConfig.read(settled(()))
        return mix


@dataclass(frozen=True)
class _Packages:
    """Versions of Debian's kernel."""

    good: str
    bad: str
    skip: tuple[str, ...]
    cache: Cache
    kind: str = "package"

    @property
    def question(self) -> list[str]:
        return [self.good, self.bad, *self.skip]

    def space(self, _home: Path) -> Space:
        from harness import kernels
        from harness.bisect.packages import Packages, between
        from harness.kernels import debian

        return Packages(
            between(kernels.available(self.cache, say), self.good, self.bad),
            lambda older, newer: debian.changelog(older.id, newer.id, cache=self.cache, say=say),
            self.skip,
        )


def _target(given: dict[str, Any], cache: Cache) -> _Commits | _Options | _Packages:
    """What is searched, by the form of --good and --bad. Raises UsageError for options that do not go together."""
    good, bad, tree = given["good"], given["bad"], given["tree"]
    if given["log"] is None and not (good and bad):
        raise click.UsageError("--good and --bad are both needed, or --log")
    if given["log"] is not None and (good or bad):
        raise click.UsageError("--log brings both ends with it: leave out --good and --bad")
    skip = (*given["skipped"], *_lines(given["skip_list"]))
    if tree is None:
        _refuse(given, ("flavours", "first_parent", "paths", "log"), "goes with --tree only")
        return _Packages(_version(good, cache), _version(bad, cache), _versions(skip, cache), cache)
    tree = tree.expanduser().resolve()
    if good and bad and Path(good).is_file() and Path(bad).is_file():
        _refuse(
            given,
            ("flavours", "first_parent", "paths", "skipped", "skip_list"),
            "means nothing for configurations",
        )
        return _Options(tree, Path(good).resolve(), Path(bad).resolve(), cache)
    log = None
    paths, first_parent = given["paths"], given["first_parent"]
    if given["log"] is not None:
        from harness.bisect.commits import Repository
        from harness.bisect.trial import Judgement

        log = Repository(tree).read_log(given["log"])
        good, bad = log.last(Judgement.GOOD), log.last(Judgement.BAD)
        if good is None or bad is None:
            raise KernrigError(
                f"{given['log']} does not name a good and a bad revision", hint="give --good and --bad"
            )
        paths, first_parent = paths or log.paths, first_parent or log.first_parent
    return _Commits(tree, good, bad, given["flavours"], first_parent, paths, skip, log)


def _refuse(given: dict[str, Any], names: Sequence[str], why: str) -> None:
    spelled = {"flavours": "flavour", "paths": "path", "skipped": "skip"}
    for name in names:
        if given[name]:
            raise click.UsageError(f"--{spelled.get(name, name).replace('_', '-')} {why}")


def _version(name: str, cache: Cache) -> str:
    """The exact version of a packaged kernel."""
    from harness.kernels import debian

    if not debian.is_name(name):
        raise KernrigError(
            f"{name!r} is no packaged kernel, and no --tree was given",
            hint="name packaged kernels (debian:6.12.95-1), or revisions together with --tree PATH",
        )
    return debian.version_of(name, cache=cache, say=say)


def _versions(names: Sequence[str], cache: Cache) -> tuple[str, ...]:
    return tuple(_version(name if ":" in name else f"debian:{name}", cache) for name in names)


def _lines(path: Path | None) -> list[str]:
    """What a file lists, one a line; `#` begins a comment."""
    if path is None:
        return []
    words = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [word for word in words if word]


def _content(tests: Sequence[str], rootdir: Path) -> str:
    """A digest of the tests that are named, with the conftest.py files above them, and of what makes the fingerprints:
    with any of them changed it is another question."""
    import harness
    from harness.cache import digest

    package = Path(harness.__file__).parent
    found = {*(package / "verdict").glob("*.py"), package / "scenario.py"}
    for test in tests:
        path = rootdir / test.partition("::")[0]
        if test.startswith("-") or not path.exists():
            continue
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
        found |= {
            folder / "conftest.py" for folder in (path, *path.parents) if rootdir in (folder, *folder.parents)
        }
    return digest(*(each for each in sorted(found) if each.is_file()))
