# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import pytest

from harness.errors import KernrigError
from harness.reports import conclude, excuse
from harness.runner import expected_splats, known_issue
from harness.verdict import End, ExpectedSplat, Kind, KnownIssue, MachineEnd, Outcome, Splat, Verdict

TEXT = "the whole explanation"


class Item:
    """As much of pytest's item as is looked at here."""

    nodeid = "scenarios/test_x.py::test_x"
    location = ("scenarios/test_x.py", 6, "test_x")

    def __init__(self, *markers: pytest.Mark) -> None:
        self._markers = markers
        self.keywords = {"test_x": 1}

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [marker for marker in self._markers if marker.name == name]

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next(iter(self.iter_markers(name)), None)


def item(*decorators: pytest.MarkDecorator) -> pytest.Item:
    return cast(pytest.Item, Item(*(decorator.mark for decorator in decorators)))


When = Literal["setup", "call", "teardown"]
How = Literal["passed", "failed", "skipped"]


def report(when: When, outcome: How = "passed", *, xfail: str | None = None) -> pytest.TestReport:
    longrepr = None if outcome == "passed" else "why"
    made = pytest.TestReport(Item.nodeid, Item.location, {}, outcome, longrepr, when)
    if xfail is not None:
        made.wasxfail = xfail
    return made


def verdict(outcome: Outcome, end: MachineEnd | None = None) -> Verdict:
    return Verdict(outcome, "the reason", end=end)


def splat(title: str) -> Splat:
    return Splat(Kind.OOPS, title, (title,), (), "oops", False, 0, 1, 0)


PANIC = MachineEnd(End.PANIC)


@pytest.mark.parametrize(
    ("reports", "outcome", "end", "expected"),
    [
        # What was reported as it came (a passed set-up) is not reported again.
        ([report("setup"), report("call"), report("teardown")], Outcome.PASSED, None, "call+ teardown+"),
        ([report("setup", "skipped"), report("teardown")], Outcome.SKIPPED, None, "setup~ teardown+"),
        (
            [report("setup"), report("call", "failed"), report("teardown")],
            Outcome.TEST,
            None,
            "call- teardown+",
        ),
        ([report("setup", "failed"), report("teardown")], Outcome.TEST, None, "setup- teardown+"),
        # The kernel complained though all asserts passed, or though a failure was expected.
        ([report("setup"), report("call"), report("teardown")], Outcome.KERNEL, None, "call- teardown+"),
        (
            [report("setup"), report("call", "skipped", xfail="known"), report("teardown")],
            *(Outcome.KERNEL, None, "call- teardown+"),
        ),
        # A machine that is gone takes reports with it.
        ([report("setup")], Outcome.KERNEL, PANIC, "call- teardown+"),
        ([], Outcome.KERNEL, PANIC, "setup- teardown+"),
        ([], Outcome.INFRA, MachineEnd(End.TEMPLATE), "setup- teardown+"),
        # So does one that went as announced.
        ([report("setup")], Outcome.PASSED, PANIC, "call+ teardown+"),
        ([report("setup"), report("call")], Outcome.PASSED, PANIC, "call+ teardown+"),
    ],
)
def test_each_item_ends_with_its_reports(
    reports: list[pytest.TestReport], outcome: Outcome, end: MachineEnd | None, expected: str
) -> None:
    concluded = conclude(item(), reports, verdict(outcome, end), TEXT)
    signs = {"passed": "+", "failed": "-", "skipped": "~"}
    assert " ".join(f"{report.when}{signs[report.outcome]}" for report in concluded) == expected
    assert all(("kernrig_outcome", outcome.value) in report.user_properties for report in concluded)
    assert not any(hasattr(report, "wasxfail") and report.failed for report in concluded)
    assert sum(report.failed for report in concluded) == outcome.failed


def test_made_up_failure_has_the_explanation_and_a_summary_line() -> None:
    call, _ = conclude(item(), [report("setup")], verdict(Outcome.KERNEL, PANIC), TEXT)
    assert TEXT in call.longreprtext
    crash = call.longrepr.reprcrash  # type: ignore[union-attr]
    assert (crash.path, crash.lineno, crash.message) == ("scenarios/test_x.py", 7, "KERNEL: the reason")


def test_failed_assert_keeps_its_text_and_gets_the_explanation() -> None:
    call, _ = conclude(
        item(), [report("setup"), report("call", "failed"), report("teardown")], verdict(Outcome.TEST), TEXT
    )
    assert call.longrepr == "why"
    assert call.sections == [("kernrig", TEXT)]


@pytest.mark.parametrize(
    ("outcome", "wasxfail"),
    [(Outcome.KERNEL, True), (Outcome.TEST, True), (Outcome.PASSED, True), (Outcome.INFRA, False)],
)
def test_known_issue_excuses_all_but_the_harness(outcome: Outcome, wasxfail: bool) -> None:
    reports = conclude(item(), [report("setup"), report("call"), report("teardown")], verdict(outcome), TEXT)
    excuse(KnownIssue("F7", reason="upstream knows"), reports, verdict(outcome))
    call = reports[0]
    assert hasattr(call, "wasxfail") == wasxfail
    assert call.failed == (not wasxfail)
    if wasxfail:
        assert call.wasxfail == "known issue F7: upstream knows"


@pytest.mark.parametrize(
    ("outcome", "splats", "excused"),
    [
        pytest.param(Outcome.KERNEL, ["BUG: something else", "BUG: in kr_oops"], True, id="the splat"),
        pytest.param(Outcome.KERNEL, ["BUG: something else"], False, id="another splat"),
        pytest.param(Outcome.TEST, [], False, id="no splat"),
        pytest.param(Outcome.PASSED, [], True, id="passed"),
    ],
)
def test_known_issue_with_a_splat_excuses_no_other(
    outcome: Outcome, splats: list[str], excused: bool
) -> None:
    issue = KnownIssue("F7", reason="upstream knows", splat="in kr_o+ps")
    judged = replace(verdict(outcome), unexpected=tuple(splat(title) for title in splats))
    reports = conclude(item(), [report("setup"), report("call"), report("teardown")], judged, TEXT)
    excuse(issue, reports, judged)
    assert hasattr(reports[0], "wasxfail") == excused


@pytest.mark.parametrize(
    ("version", "concerned"),
    [
        ("6.1.192-2", True),
        ("6.12.116-1", True),
        ("6.12.117-1", False),
        ("6.12.120-1~bpo12+1", False),
        ("6.13", True),
        ("7.2.13-1", True),
        ("7.3~rc6-1~exp1", True),
        ("7.3~rc7-1~exp1", False),
        ("7.3.0-rc8-00012-g0123456789ab", False),
        ("7.3-1", False),
        ("7.3.1-1", False),
        ("next-20261120", True),
    ],
)
def test_known_issue_spares_what_behaved_and_what_follows_it_in_its_series(
    version: str, concerned: bool
) -> None:
    issue = KnownIssue("F7", reason="upstream knows", spared=("6.12.117", "7.3-rc7"))
    assert issue.concerns(version) == concerned


@pytest.mark.parametrize(("config", "concerned"), [({"CONFIG_A": "y"}, True), ({}, False), (None, True)])
def test_known_issue_that_an_option_shows_is_none_without_it(
    config: dict[str, str] | None, concerned: bool
) -> None:
    issue = KnownIssue("F7", reason="upstream knows", shown_by="CONFIG_A")
    assert issue.concerns("6.1.192-2", config) == concerned
    hidden = KnownIssue("F7", reason="upstream knows", shown_by="!CONFIG_A")
    assert hidden.concerns("6.1.192-2", config) == (config is None or not concerned)


def test_known_issue_comes_from_the_marker() -> None:
    marker = pytest.mark.known_issue("F7", reason="upstream knows", splat="a", spared=("6.12.117",))
    assert known_issue(item(marker)) == KnownIssue(
        "F7", reason="upstream knows", splat="a", spared=("6.12.117",)
    )
    assert known_issue(item()) is None


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (pytest.mark.known_issue("F7"), "test_x: the marker known_issue takes .*reason"),
        (pytest.mark.known_issue(reason="upstream knows"), "test_x: the marker known_issue takes .*finding"),
        (
            pytest.mark.known_issue("F7", reason="upstream knows", spared=("sid",)),
            "'sid' .* no kernel version",
        ),
        (pytest.mark.known_issue("F7", reason="upstream knows", spared="6.12"), "'6' .* no kernel version"),
        (pytest.mark.known_issue("F7", reason="upstream knows", splat="("), "no regular expression"),
    ],
)
def test_wrong_known_issue_is_explained(marker: pytest.MarkDecorator, said: str) -> None:
    with pytest.raises(KernrigError, match=said) as caught:
        known_issue(item(marker))
    assert caught.value.hint


def test_expected_splats_come_from_all_markers() -> None:
    marked = item(pytest.mark.expect_splat("a", reason="b"), pytest.mark.expect_splat(regex="c", reason="d"))
    assert expected_splats(marked) == (ExpectedSplat("a", "b"), ExpectedSplat("c", "d"))


@pytest.mark.parametrize("wrong", [pytest.mark.expect_splat("a"), pytest.mark.expect_splat("a", why="b")])
def test_wrong_expect_splat_is_explained(wrong: pytest.MarkDecorator) -> None:
    with pytest.raises(
        KernrigError, match=r"test_x: the marker expect_splat takes .*: .*reason|why"
    ) as caught:
        expected_splats(item(wrong))
    assert caught.value.hint
