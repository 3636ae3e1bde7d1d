# SPDX-License-Identifier: MIT
"""The guest's reports become pytest's, with the verdict in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from _pytest._code.code import (
    ExceptionChainRepr,
    ExceptionRepr,
    ReprEntryNative,
    ReprFileLocation,
    ReprTraceback,
)

from harness.verdict import KnownIssue, Outcome, Verdict

CALL_FAILED = pytest.StashKey[bool]()
"""Set on a host-side test whose call failed, for the tear-down of its machine."""


def from_guest(
    item: pytest.Function, data: dict[str, Any], to_host: Callable[[str], str]
) -> pytest.TestReport:
    """The guest's report as if it had been made here: this item's node id and keywords, texts put through `to_host`."""
    data = _map_text(data, to_host)
    data["nodeid"] = item.nodeid
    data["location"] = item.location
    data["keywords"] = dict.fromkeys(item.keywords, 1)
    if isinstance(data.get("longrepr"), list):
        data["longrepr"] = tuple(data["longrepr"])
    data["user_properties"] = [tuple(pair) for pair in data.get("user_properties", [])]
    data["sections"] = [tuple(pair) for pair in data.get("sections", [])]
    report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    assert isinstance(report, pytest.TestReport)
    return report


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same JSON value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    return value


def conclude(
    item: pytest.Item, reports: list[pytest.TestReport], verdict: Verdict, text: str
) -> list[pytest.TestReport]:
    """The reports that are still to be made, with the verdict in them.

    A passed set-up was reported when it came. A failed verdict stands in the report that failed, else in the one of
    the call, which is made up when it is missing; so is the one of the tear-down, with which an item ends (and from
    which --junitxml takes the properties).
    """
    left = _with_verdict(item, reports, verdict, text)
    for report in left:
        report.user_properties.append(("kernrig_outcome", verdict.outcome.value))
        if verdict.fingerprint:
            report.user_properties.append(("kernrig_fingerprint", verdict.fingerprint))
    return left


def _with_verdict(
    item: pytest.Item, reports: list[pytest.TestReport], verdict: Verdict, text: str
) -> list[pytest.TestReport]:
    left = [report for report in reports if not (report.when == "setup" and report.passed)]
    had_setup = len(left) < len(reports)
    if not any(report.when == "teardown" for report in left):
        left.append(_made_up_report(item, "teardown", "passed"))
    if not verdict.outcome.failed:
        if verdict.end is not None and not any(report.when == "call" for report in left):
            # The machine ended as announced, and took the rest of the scenario with it.
            left.insert(0, _made_up_report(item, "call", "passed"))
        return left
    failed = next((report for report in left if report.failed), None)
    if failed is not None:
        # A report's own sections are not in --junitxml.
        if isinstance(failed.longrepr, ExceptionRepr):
            failed.longrepr.addsection("kernrig", text)
        else:
            failed.sections.append(("kernrig", text))
        if verdict.outcome is not Outcome.TEST:
            _retitle(failed, verdict)
        return left
    call = next((report for report in left if report.when == "call"), None)
    if call is None:
        call = _made_up_report(item, "call" if had_setup else "setup", "failed")
        left.insert(0, call)
    call.outcome = "failed"
    call.longrepr = _longrepr(item, verdict, text)
    if hasattr(call, "wasxfail"):
        del call.wasxfail
    return left


def excuse(issue: KnownIssue, reports: list[pytest.TestReport], verdict: Verdict) -> None:
    """A scenario with a known issue is expected to fail, whatever way the kernel misbehaves: pytest's xfail. When it
    passes, it is shown as XPASS. A fault of harness or host (INFRA), or of the scenario's own set-up, is no excuse,
    nor is a failure without the splat that is known."""
    if verdict.outcome is Outcome.INFRA or (verdict.outcome.failed and not issue.fits(verdict.unexpected)):
        return
    text = f"known issue {issue.finding}: {issue.reason}"
    for report in reports:
        if report.failed and (report.when == "call" or verdict.outcome is Outcome.KERNEL):
            report.outcome = "skipped"
            report.wasxfail = text
        elif report.when == "call" and report.passed and verdict.outcome is Outcome.PASSED:
            report.wasxfail = text


def _retitle(report: pytest.TestReport, verdict: Verdict) -> None:
    """Put the outcome class in front of what pytest's summary line says."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = f"{verdict.outcome.value}: {verdict.reason}"


def _made_up_report(
    item: pytest.Item, when: Literal["setup", "call", "teardown"], outcome: Literal["passed", "failed"]
) -> pytest.TestReport:
    """A report that the guest did not live to make."""
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=None,
        when=when,
    )


def _longrepr(item: pytest.Item, verdict: Verdict, text: str) -> ExceptionChainRepr:
    path, line, _ = item.location
    trace = ReprTraceback([ReprEntryNative([text + "\n"])], None, "native")
    crash = ReprFileLocation(path, (line or 0) + 1, f"{verdict.outcome.value}: {verdict.reason}")
    return ExceptionChainRepr([(trace, crash, None)])
