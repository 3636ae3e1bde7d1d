# SPDX-License-Identifier: MIT
"""The command line, run as a user does, with a log of searches under .kernrig/slow."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.vm.project import users_environment

ROOT = Path(__file__).parents[2]
LOGS = ROOT / ".kernrig/slow"
_KERNRIG = str(Path(sys.executable).with_name("kernrig"))


def kernrig(*words: str) -> str:
    """What the command prints."""
    ran = subprocess.run([_KERNRIG, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def search(name: str, ends: Sequence[str], scenario: str, output: Path) -> str:
    """What `kernrig bisect` says, with the time in front of each line. It is kept in a log, with the reports."""
    began = time.monotonic()
    lines = []
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        (LOGS / f"bisect-{name}.log").open("w") as log,
        subprocess.Popen(
            [_KERNRIG, "bisect", "--again", *ends, "--output", str(output), "--", scenario],
            cwd=ROOT,
            env=users_environment() | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as program,
    ):
        assert program.stdout is not None
        for line in program.stdout:
            lines.append(f"{time.monotonic() - began:7.1f} s  {line}")
            print(lines[-1], end="", file=log, flush=True)
    said = "".join(lines)
    assert program.returncode == 0, said
    for report in output.glob("bisect.*"):
        (LOGS / f"bisect-{name}.report{report.suffix}").write_text(report.read_text())
    return said
