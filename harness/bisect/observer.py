# SPDX-License-Identifier: MIT
"""A pytest plugin for a run that somebody evaluates: writes each test's end to the file that KERNRIG_OBSERVE
names, one JSON object a line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "KERNRIG_OBSERVE"


class Observer:
    """Collects the reports of each test in the process that gets them all (xdist's controller)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._worst: dict[tuple[str, str], dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what decides a test: the first report that failed, else the one of the call, else a skip."""
        # Repetitions have the same node id; xdist's workers run one test at a time.
        worker = getattr(report, "worker_id", "")
        known = self._worst.setdefault((worker, report.nodeid), {"outcome": "passed", "text": ""})
        properties = dict(report.user_properties)
        known["kernrig"] = properties.get("kernrig_outcome", known.get("kernrig", ""))
        known["fingerprint"] = properties.get("kernrig_fingerprint", known.get("fingerprint", ""))
        if report.failed and known["outcome"] != "failed":
            known |= {"outcome": "failed", "text": report.longreprtext}
        elif report.skipped and known["outcome"] == "passed":
            expected = hasattr(report, "wasxfail")
            known |= {"outcome": "xfailed" if expected else "skipped", "text": report.longreprtext}
        if report.when == "teardown":
            line = {"nodeid": report.nodeid} | self._worst.pop((worker, report.nodeid))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Register where reports come together."""
    if not hasattr(config, "workerinput") and (name := os.environ.get(VARIABLE)):
        config.pluginmanager.register(Observer(Path(name)), "kernrig-observer")
