# SPDX-License-Identifier: MIT
"""How fast `kernrig bisect` is, by its own account of each kernel that it tried."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import kernels
from harness.bench.caches import STATE, TEMPLATE_KINDS, empty, private_cache
from harness.bench.figures import Values
from harness.bench.linuxtree import BASE as PACKAGE
from harness.bench.program import Program
from harness.bench.pytestruns import environment, unexpected
from harness.bench.sources import BASE, FAULTY
from harness.bench.workbench import Workbench
from harness.cache import Cache
from harness.deadline import Deadline
from harness.errors import KernrigError
from harness.kernels import AvailableKernel

PACKAGES = 16
"""So many of Debian's newest kernels are searched: after the two ends there are four steps."""
SEARCH_SECONDS = 3 * 3600.0
ORDER = "scenarios/mprog/test_order.py::test_without_an_anchor_before_means_first_and_after_means_last"
RELEASE = "scenarios/test_release.py::test_the_kernel_is_old"
_SERIES = re.compile(r"(\d+)\.(\d+)")
_PROJECT = """\
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib"]
"""
_SCENARIO = """\
import os
import re


def test_the_kernel_is_old() -> None:
    found = re.match(r"(\\d+)\\.(\\d+)", os.uname().release)
    assert (int(found[1]), int(found[2])) <= {last_good}
"""


def commits(bench: Workbench) -> Values:
    """The steps between the ends of a history, of which each changes one file of the kernel before; both ends count.

    What is built for the first time there has been built before.
    """
    sources, output = bench.sources, bench.folder / "commits"
    sources.build(BASE)
    ends = ["--tree", str(sources.tree), "--good", PACKAGE, "--bad", FAULTY]
    seconds = search(bench.project(), ends, ORDER, sources.cache(BASE), output, culprit=sources.culprit())
    sources.forget(BASE)
    return {"bisect-commit": seconds}


def packages(bench: Workbench) -> Values:
    """The steps of a search among Debian's kernels when all have been fetched; both ends count."""
    offered = [each for each in kernels.available(bench.base, bench.rig.say) if not each.incomplete]
    row = offered[-PACKAGES:]
    culprit = first_bad(row)
    project, output = bench.folder / "release", bench.folder / "packages"
    make_project(project, last_good=series(row[culprit - 1]))
    cache = private_cache(bench.base, bench.folder / "packages-cache", (*TEMPLATE_KINDS, STATE))
    ends = ["--good", row[0].name, "--bad", row[-1].name]
    try:
        for _ in range(2):
            # The first one fetches kernels and makes images.
            for kind in TEMPLATE_KINDS:
                empty(cache, kind)
            seconds = search(project, ends, RELEASE, cache, output, culprit=row[culprit].version)
    finally:
        shutil.rmtree(cache.root)
        shutil.rmtree(project)
    return {"bisect-package": seconds}


def first_bad(row: Sequence[AvailableKernel]) -> int:
    """The place of the first kernel of a series that begins in the row, the one nearest to its middle.

    Raises KernrigError when there is none.
    """
    begins = [place for place in range(1, len(row)) if series(row[place - 1]) < series(row[place])]
    if not begins:
        raise KernrigError(
            f"Debian's suites have kernels of fewer than two series: {', '.join(each.name for each in row) or 'none'}."
        )
    return min(begins, key=lambda place: abs(place - len(row) / 2))


def series(kernel: AvailableKernel) -> tuple[int, int]:
    """The numbers that its release begins with."""
    found = _SERIES.match(kernel.release)
    if found is None:
        raise KernrigError(f"{kernel.name} has a release without a number: {kernel.release}")
    return int(found[1]), int(found[2])


def make_project(root: Path, *, last_good: tuple[int, int]) -> None:
    """A project whose scenario RELEASE fails on kernels of a later series than that."""
    file = root / RELEASE.partition("::")[0]
    file.parent.mkdir(parents=True)
    (root / "pyproject.toml").write_text(_PROJECT)
    file.write_text(_SCENARIO.format(last_good=last_good))


def search(
    project: Path, ends: Sequence[str], scenario: str, cache: Cache, output: Path, *, culprit: str
) -> list[float]:
    """The seconds of each step of a search, run anew. Raises KernrigError when it fails, or finds something else than
    `culprit`."""
    kernrig = Path(sys.executable).with_name("kernrig")
    command = [str(kernrig), "bisect", "--again", *ends, "--output", str(output), "--", scenario]
    settings = environment(cache) | {"KERNRIG_ISOLATION": "clone"}
    with Program(command, cwd=project, environment=settings) as program:
        status, _ = program.finish(Deadline.after(SEARCH_SECONDS, "kernrig bisect"))
    if status != 0:
        raise unexpected(program, f"kernrig bisect ended with status {status}")
    return step_seconds(output / "bisect.json", culprit)


def step_seconds(report: Path, culprit: str) -> list[float]:
    """What the report of a search says of the time that each kernel took, the ends included.

    Raises KernrigError when a kernel could not be tried, or something else than `culprit` was found.
    """
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        found = [each["id"] for each in told["answer"]["culprits"]]
        trials = [each["trial"] for each in told["steps"]]
        broken = [each["kernel"] for each in trials if each["broken"]]
        seconds = [float(each["seconds"]) for each in trials]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernrigError(
            f"{report} is not what `kernrig bisect` writes: {type(error).__name__}: {error}"
        ) from error
    if broken:
        raise KernrigError(f"kernrig bisect could not try {', '.join(broken)}.")
    if found != [culprit]:
        raise KernrigError(f"kernrig bisect found {', '.join(found)} instead of {culprit}.")
    return seconds
