# SPDX-License-Identifier: MIT
"""`kernrig bisect` for real: kernels are built, booted and cloned for each step. Takes the better part of an hour."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cache import Cache
from tests.slow.linux_history import PLOTS, History, histories
from tests.slow.search import search

pytestmark = pytest.mark.slow

SCENARIO = "scenarios/mprog/test_order.py::test_without_an_anchor_before_means_first_and_after_means_last"


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, History]]:
    with histories(Cache.default()) as found:
        yield found


@pytest.mark.parametrize("name", PLOTS)
def test_planted_commit_is_found(made: dict[str, History], tmp_path: Path, name: str) -> None:
    history = made[name]
    ends = ["--tree", str(history.tree), "--good", "base", "--bad", history.name]
    said = search(history.name, ends, SCENARIO, tmp_path)
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
