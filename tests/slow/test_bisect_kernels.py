# SPDX-License-Identifier: MIT
"""`kernrig bisect` for real: kernels are built, booted and cloned for each step. Takes the better part of an hour."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cache import Cache
from tests.slow.linux_history import PLOTS, History, histories

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCENARIO = "scenarios/mprog/test_order.py::test_without_an_anchor_before_means_first_and_after_means_last"
LOGS = ROOT / ".kernrig/slow"


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, History]]:
    with histories(Cache.default()) as found:
        yield found


def bisect(history: History, output: Path, *words: str) -> str:
    """What the command says, with the time in front of each line; kept in a log."""
    kernrig = Path(sys.executable).with_name("kernrig")
    command = [str(kernrig), "bisect", "--again", "--tree", str(history.tree)]
    command += ["--good", "base", "--bad", history.name, "--output", str(output), *words, "--", SCENARIO]
    LOGS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    lines = []
    with (
        (LOGS / f"bisect-{history.name}.log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
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
    text = "".join(lines)
    assert program.returncode == 0, text
    return text


@pytest.mark.parametrize("name", PLOTS)
def test_planted_commit_is_found(made: dict[str, History], tmp_path: Path, name: str) -> None:
    history = made[name]
    said = bisect(history, tmp_path)
    told = json.loads((tmp_path / "bisect.json").read_text())
    found = [each["id"] for each in told["answer"]["culprits"]]
    assert found == [history.ids[history.plot.fault]], said
    assert told["confidence"] >= 0.98
    skipped = {each["candidate"]["id"]: each["trial"]["broken"] for each in told["steps"][2:]}
    assert "tcx_nowhere" in skipped[history.ids[history.plot.unbuildable]]
    assert re.search(r"panic|boot", skipped[history.ids[history.plot.unbootable]])
    at_bad = told["steps"][0]["trial"]
    rate = at_bad["failed"] / (at_bad["passed"] + at_bad["failed"])
    assert rate == 1.0 if name == "steady" else 0.15 < rate < 0.55
    for suffix in ("txt", "md", "json", "log"):
        (LOGS / f"bisect-{name}.report.{suffix}").write_text((tmp_path / f"bisect.{suffix}").read_text())
