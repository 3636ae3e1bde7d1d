# SPDX-License-Identifier: MIT
"""A pytest plugin for a run that somebody evaluates: writes each test's end down as a line of JSON, runs only the tests
that are asked for, and stops where it is told to.

The directory that KERNRIG_OBSERVE names has the request (`write_request`) and gets the results (`read_results`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.bisect.trial import End, Failure, Outcome, Sought
from harness.errors import HostError

VARIABLE = "KERNRIG_OBSERVE"
_REQUEST = "request.json"
_RESULTS = "results.jsonl"
_BROKEN = "broken.json"


@dataclass(frozen=True)
class Broken:
    """Why nothing could be run: `by_host` when kernel and scenario have no part in it."""

    text: str
    by_host: bool


def write_request(folder: Path, sought: Sought | None, *, stop: bool) -> None:
    """Ask for the tests of `sought` (None: all), and with `stop` for an end at the first such failure."""
    failures = [[each.test, each.fingerprint] for each in sorted(sought.failures)] if sought else []
    (folder / _REQUEST).write_text(json.dumps({"failures": failures, "stop": stop}))


def read_results(folder: Path) -> tuple[tuple[End, ...], Broken | None]:
    """What the run wrote: how the tests ended, and what was in the way of all of them."""
    results, broken = folder / _RESULTS, folder / _BROKEN
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    ends = []
    for line in lines:
        told = json.loads(line)
        ends.append(End(told["test"], Outcome(told["outcome"]), told["fingerprint"], told["text"]))
    return tuple(ends), Broken(**json.loads(broken.read_text())) if broken.exists() else None


class Collector:
    """Makes one end of the reports of each test."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[pytest.TestReport]] = {}

    def take(self, report: pytest.TestReport) -> End | None:
        """The end of a test with its last report, None before. xdist's workers run one test at a time each."""
        key = (getattr(report, "worker_id", ""), report.nodeid)
        reports = self._known.setdefault(key, [])
        reports.append(report)
        if report.when != "teardown":
            return None
        del self._known[key]
        return end_of(reports)


def end_of(reports: list[pytest.TestReport]) -> End:
    """What the reports of one run of one test say: the first that failed decides, else a skip."""
    properties: dict[str, Any] = {}
    for report in reports:
        properties |= dict(report.user_properties)
    nodeid = reports[-1].nodeid
    failed = next((report for report in reports if report.failed), None)
    if failed is not None:
        # Which of xdist's workers it was, and on which Python, is of no interest.
        text = re.sub(r"\A\[gw\d+\] .*\n\n?", "", failed.longreprtext)
        text += "".join(f"\n{body}" for name, body in failed.sections if name == "kernrig")
        infra = properties.get("kernrig_outcome") == "INFRA"
        fingerprint = str(properties.get("kernrig_fingerprint") or _place(failed))
        return End(nodeid, Outcome.INFRA if infra else Outcome.FAILED, fingerprint, text)
    skipped = next((report for report in reports if report.skipped), None)
    if skipped is not None:
        reason = skipped.longrepr[2] if isinstance(skipped.longrepr, tuple) else skipped.longreprtext
        return End(nodeid, Outcome.SKIPPED, "", str(reason))
    return End(nodeid, Outcome.PASSED)


def _place(report: pytest.TestReport) -> str:
    """A fingerprint for a test of the host, which has no verdict: where it failed and with what."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return str(report.when)
    error = re.match(r"[\w.]+", crash.message)
    return f"{Path(crash.path).name}:{crash.lineno}:{error[0] if error else ''}"


class Observer:
    """Writes ends down, in the process that gets all reports (xdist's controller), and what kept it from starting."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._collector = Collector()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionstart(self) -> Generator[None, None, None]:
        """Kernel, image and templates are made there (harness/runner.py)."""
        try:
            yield
        except pytest.UsageError as error:
            broken = {"text": str(error), "by_host": isinstance(error.__cause__, HostError)}
            (self._folder / _BROKEN).write_text(json.dumps(broken))
            raise

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line for each test that has ended."""
        end = self._collector.take(report)
        if end is not None:
            told = {
                "test": end.test,
                "outcome": end.outcome,
                "fingerprint": end.fingerprint,
                "text": end.text,
            }
            with (self._folder / _RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


class Restriction:
    """In each process that runs tests: leaves out what is not asked for, and stops at a failure that is sought."""

    def __init__(self, failures: frozenset[Failure], *, stop: bool) -> None:
        self._failures = failures
        self._stop = stop
        self._collector = Collector()
        self._session: pytest.Session | None = None

    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Deselect."""
        self._session = session
        tests = {each.test for each in self._failures}
        others = [item for item in items if item.nodeid not in tests]
        if tests and others:
            config.hook.pytest_deselected(items=others)
            items[:] = [item for item in items if item.nodeid in tests]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Ask the session to stop."""
        end = self._collector.take(report)
        if end is None or self._session is None or not self._stop:
            return
        if end.outcome is Outcome.FAILED and Failure(end.test, end.fingerprint) in self._failures:
            self._session.shouldstop = "the failure that is looked for was seen"


def pytest_configure(config: pytest.Config) -> None:
    """Register what this process needs."""
    name = os.environ.get(VARIABLE)
    if not name:
        return
    request = json.loads(Path(name, _REQUEST).read_text())
    failures = frozenset(Failure(test, fingerprint) for test, fingerprint in request["failures"])
    config.pluginmanager.register(Restriction(failures, stop=request["stop"]), "kernrig-restriction")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Observer(Path(name)), "kernrig-observer")
