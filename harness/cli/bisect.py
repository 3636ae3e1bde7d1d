# SPDX-License-Identifier: MIT
"""`kernrig bisect`: which commit, package or option broke a scenario."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.failure import say
from harness.errors import KernrigError

if TYPE_CHECKING:
    from harness.bisect.space import Space
    from harness.cache import Cache

_REPORTS = ("bisect.txt", "bisect.json", "bisect.md")


@click.command(
    short_help="find the commit, package or option that broke a scenario",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--good", required=True, metavar="KERNEL", help="where the scenario passes")
@click.option("--bad", required=True, metavar="KERNEL", help="where it fails")
@click.option(
    "--tree", type=click.Path(path_type=Path), help="the kernel tree whose revisions --good and --bad are"
)
@click.option("--flavour", "flavours", multiple=True, help="build with this flavour; repeatable")
@click.option("--first-parent", is_flag=True, help="follow the first parent of merges only")
@click.option("--path", "paths", multiple=True, help="only commits that touch this path; repeatable")
@click.option("--skip", "skipped", multiple=True, help="a revision that is not to be tried; repeatable")
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
@click.option("--again", is_flag=True, help="forget what an interrupted search found out")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(".kernrig"),
    show_default=True,
    help="where bisect.txt, bisect.json and bisect.md are written",
)
@click.argument("tests", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] TEST...")
def bisect(tests: tuple[str, ...], **given: Any) -> None:
    """Narrow down where TEST (as pytest takes it) began to fail.

    With --tree, --good and --bad are revisions of it, or two files with configurations of it. Without, they are
    packaged kernels, debian:VERSION each. Both ends are verified first. Interrupted, the same command goes on
    where it was.
    """
    from harness.bisect import report
    from harness.bisect.search import Journal, Plan, search
    from harness.bisect.trial import Pytest
    from harness.cache import Cache, digest

    cache = Cache.default()
    question = {"tests": list(tests)} | {
        name: [str(each) for each in value] if isinstance(value, tuple) else str(value)
        for name, value in given.items()
        if name not in ("again", "output", "jobs")
    }
    key = digest(*(f"{name}={value}" for name, value in sorted(question.items())))
    with cache.state(f"bisect-{key}", say=say) as home:
        journal = Journal.open(home / "journal.json", question)
        if given["again"]:
            journal.steps.clear()
        space = _space(given, cache, home)
        laboratory = Pytest(tests, given["jobs"], Path.cwd(), ("--runxfail",))
        plan = Plan(given["end_runs"], given["runs"] or 0, given["miss"])
        result = search(space, laboratory, journal, plan, say)
    names = shlex.join(tests)
    folder: Path = given["output"]
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["kernrig", *sys.argv[1:]])
    texts = (
        report.text(result, names),
        report.as_json(result, names),
        report.markdown(result, names, command),
    )
    for name, text in zip(_REPORTS, texts, strict=True):
        (folder / name).write_text(text + "\n")
    click.echo(texts[0])
    say(f"reports: {', '.join(str(folder / name) for name in _REPORTS)}")


def _space(given: dict[str, Any], cache: Cache, home: Path) -> Space:
    """What is searched, by the form of --good and --bad."""
    good, bad, tree = given["good"], given["bad"], given["tree"]
    if tree is None:
        return _packages(good, bad, cache)
    if Path(good).is_file() and Path(bad).is_file():
        return _options(Path(good), Path(bad), tree, home)
    from harness.bisect.commits import Commits

    return Commits(
        tree.resolve(),
        good,
        bad,
        repository=home / "repository",
        flavours=given["flavours"],
        first_parent=given["first_parent"],
        paths=given["paths"],
        skip=given["skipped"],
    )


def _packages(good: str, bad: str, cache: Cache) -> Space:
    from harness import kernels
    from harness.bisect.packages import Packages, between
    from harness.kernels import debian

    versions = []
    for name in (good, bad):
        if not debian.is_name(name):
            raise KernrigError(
                f"{name!r} is no packaged kernel, and no --tree was given",
                hint="name packaged kernels (debian:6.12.95-1), or revisions together with --tree PATH",
            )
        versions.append(debian.version_of(name, cache=cache, say=say))
    candidates = between(kernels.available(cache, say), versions[0], versions[1])
    return Packages(
        candidates, lambda older, newer: debian.changelog(older.id, newer.id, cache=cache, say=say)
    )


def _options(good: Path, bad: Path, tree: Path, home: Path) -> Space:
    from harness.bisect.options import Options, differences, mixture
    from harness.kernels.config import KernelConfig

    found = differences(KernelConfig.read(good), KernelConfig.read(bad))
    return Options(found, lambda part: f"tree:{tree.resolve()}+config={mixture(good, part, home)}")
