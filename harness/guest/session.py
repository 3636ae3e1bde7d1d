# SPDX-License-Identifier: MIT
"""A pytest session that is configured and collected once, and whose items run later, each in a forked child."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import _prepareconfig

REHEARSAL = "harness/guest/rehearsal.py::test_rehearsal"

Send = Callable[[dict[str, Any]], None]

_NOT_HERE = ("cacheprovider", "pastebin", "faulthandler", "stepwise", "debugging")
MARKERS = (
    "vm(cpus=, memory=, append=, timeout=): the shape of the scenario's machine, and its deadline in seconds",
    "expect_splat(regex, *, reason): the kernel is to complain like this, and why that is right",
    "known_issue(finding, *, reason, splat=None, spared=()): the kernel, unless spared, misbehaves as FINDINGS.md says",
)


def _nobody(message: dict[str, Any]) -> None:
    """Reports go nowhere until somebody asks for them."""


class _Collector:
    """Keeps the reports of what could not be collected."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append({"nodeid": report.nodeid, "text": report.longreprtext})


class _Reporter:
    """Sends reports and warnings of one item as they happen."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.send: Send = _nobody

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self.send({"type": "report", "report": data})

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self.send(
            {
                "type": "warning",
                "text": str(warning_message.message),
                "category": warning_message.category.__name__,
                "filename": warning_message.filename,
                "lineno": warning_message.lineno,
                "when": when,
                "nodeid": nodeid,
                "location": location,
            }
        )


class WarmSession:
    """`items` can be run any number of times, each time in a child of its own.

    `root` is pytest's rootdir (node ids are relative to it), `paths` what to collect below it, `options` further
    command-line words. `errors` tells which files could not be collected, and why.
    """

    def __init__(self, root: Path, paths: list[str], options: list[str]) -> None:
        os.chdir(root)
        words = [word for name in _NOT_HERE for word in ("-p", f"no:{name}")]
        words += ["-c", os.devnull, f"--rootdir={root}", "--continue-on-collection-errors", "-q"]
        self.config = _prepareconfig([*words, *options, *paths, REHEARSAL], [collector := _Collector()])
        for line in MARKERS:
            self.config.addinivalue_line("markers", line)
        self.config._do_configure()
        # What it would print belongs to the host; its options (verbosity, traceback style) are needed here.
        self.config.pluginmanager.unregister(name="terminalreporter")
        self._session = pytest.Session.from_config(self.config)
        self.config.hook.pytest_sessionstart(session=self._session)
        self.config.hook.pytest_collection(session=self._session)
        by_id = {item.nodeid: item for item in self._session.items}
        self._rehearsal = by_id.pop(REHEARSAL)
        self.items: list[pytest.Item] = list(by_id.values())
        self.errors = collector.errors
        self._by_id = by_id
        self._reporter = _Reporter(self.config)
        self.config.pluginmanager.register(self._reporter, "kernrig-reporter")

    def stop_capturing(self) -> None:
        """Give the process its standard output and error back (pytest's -s)."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        assert capture is not None
        capture.stop_global_capturing()
        capture._method = "no"  # -s is a way of capturing, too: fixtures such as capsys go on working
        capture.start_global_capturing()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def rehearse(self, send: Send) -> None:
        """Run the trivial test that is collected along with the scenarios."""
        self._reporter.send = send
        self.config.hook.pytest_runtest_protocol(item=self._rehearsal, nextitem=None)
        self._reporter.send = _nobody

    def run(self, nodeid: str, options: dict[str, Any], send: Send) -> None:
        """Run one item's set-up, call and tear-down, sending its reports. Ends the process's use of the session."""
        item = self._by_id.get(nodeid)
        if item is None:
            send({"type": "missing", "errors": self.errors})
            return
        for name, value in options.items():
            setattr(self.config.option, name, value)
        self._reporter.send = send
        self.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
