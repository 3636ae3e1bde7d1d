# SPDX-License-Identifier: MIT
"""Coverage in a pytest run: xdist's workers send their sums, whoever has all of them reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.coverage import report
from harness.coverage.collector import Collector
from harness.coverage.lines import read
from harness.errors import KernrigError

FOLDER = Path(".kernrig/coverage")
SHOWN_LINES = 100
_KEY = "kernrig_coverage"


class CoverageSession:
    """A plugin object of each pytest process that was asked for coverage."""

    def __init__(self, config: pytest.Config, collector: Collector) -> None:
        self._config = config
        self._collector = collector

    def pytest_sessionfinish(self) -> None:
        """In a worker: leave the sums for the controller."""
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_KEY] = self._collector.sums.pack()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controller: a worker is done. One that died has left nothing."""
        packed = getattr(node, "workeroutput", {}).get(_KEY)
        if packed is not None:
            self._collector.sums.add_packed(packed)
        else:
            self._collector.sums.lost.append("a worker died")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, the lines that were not reached, and where the files are."""
        sums = self._collector.sums
        if not sums.machines and not sums.lost:
            return
        terminalreporter.section("kernel coverage")
        try:
            for line in self._report():
                terminalreporter.write_line(line)
        except KernrigError as error:
            terminalreporter.write_line(f"kernel coverage could not be told: {error}", red=True)

    def _report(self) -> list[str]:
        sums, profiled = self._collector.sums, self._collector.profiled()
        sources = read(profiled, self._collector.files, sums.scenarios, sums.before)
        title = f"{profiled.kernel}: what the scenarios on {sums.machines} machines reached"
        said = [title]
        if sums.lost:
            said.append(f"nothing is known of {len(sums.lost)} others ({sums.lost[0]})")
        if sums.machines and not sums.scenarios:
            said.append("no machine showed counters of these files in debugfs")
        said += ["", *report.table(sources), ""]
        # Of a directory the table must do here.
        named = [each for each in sources if each.path in self._collector.asked]
        for lines in filter(None, map(report.unreached, named)):
            said += lines[:SHOWN_LINES]
            if len(lines) > SHOWN_LINES:
                said.append(f"    ... and {len(lines) - SHOWN_LINES} more lines, see {FOLDER / report.LIST}")
        if named:
            said += ["", report.LEGEND]
        report.write(self._config.rootpath / FOLDER, sources, profiled.sources, title)
        return [*said, *(f"{FOLDER / name}" for name in (report.HTML, report.LCOV, report.LIST))]
