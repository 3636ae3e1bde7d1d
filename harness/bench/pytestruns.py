# SPDX-License-Identifier: MIT
"""pytest as a user starts it, on one of the workbench's projects."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.bench.program import Program
from harness.bench.workbench import Workbench
from harness.cache import Cache
from harness.deadline import Deadline
from harness.errors import KernrigError

FIRST_VERDICT_SECONDS = 180.0
_END_SECONDS = 60.0
_LAST_LINES = 15

# As pytest -v writes them: NODEID OUTCOME, or with xdist [gwN] [ P%] OUTCOME NODEID.
VERDICT = re.compile(
    r"^(?:\S+::.* |\[gw\d+\] \[ *\d+%\] )(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE
)


def run_pytest(
    bench: Workbench,
    project: Path,
    *words: str,
    kernel: str | None = None,
    cache: Cache | None = None,
    scenarios: str | None = None,
) -> Program:
    """pytest on the scenarios of a project: all of the directory, or those named; on the workbench's kernel and with
    its warm cache if no others are given."""
    settings = bench.rig.settings
    fixed = [
        f"--kr-kernel={kernel or bench.kernel}",
        *([f"--kr-modules={settings.modules}"] if settings.modules and kernel is None else []),
        "--kr-isolation=clone",
        "--color=no",
    ]
    command = [sys.executable, "-m", "pytest", *words, *fixed, scenarios or settings.scenarios]
    return Program(command, cwd=project, environment=environment(cache or bench.warm))


def environment(cache: Cache) -> dict[str, str]:
    """This process's environment, with that cache, and without what a pytest around us has put there."""
    unwanted = ("PYTEST_", "KERNRIG_RUN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"KERNRIG_CACHE": str(cache.root)}


def first_verdict(
    bench: Workbench,
    project: Path,
    options: Sequence[str] = (),
    *,
    kernel: str | None = None,
    cache: Cache | None = None,
    scenarios: str | None = None,
    seconds: float = FIRST_VERDICT_SECONDS,
) -> float:
    """Seconds from pytest's start to the first verdict on its output; it is interrupted then.

    Raises KernrigError when there is none, DeadlineError when none came within `seconds`.
    """
    with run_pytest(
        bench, project, "-v", *options, kernel=kernel, cache=cache, scenarios=scenarios
    ) as program:
        seen = program.until(VERDICT, Deadline.after(seconds, "pytest's first verdict"))
        if seen is None:
            raise unexpected(program, "pytest ended without a verdict")
        program.interrupt()
        program.finish(Deadline.after(_END_SECONDS, "pytest to end"))
        return seen - program.started


def unexpected(program: Program, what: str) -> KernrigError:
    """An error that says `what` happened, with the end of the program's output."""
    tail = "\n  ".join(program.output().strip().splitlines()[-_LAST_LINES:])
    return KernrigError(f"{what}; the end of its output:\n  {tail}")
