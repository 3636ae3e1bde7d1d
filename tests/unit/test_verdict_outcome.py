# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from harness.errors import KernrigError
from harness.verdict import (
    End,
    ExpectedSplat,
    Kind,
    Leak,
    MachineEnd,
    Outcome,
    PhaseReport,
    Splat,
    Verdict,
    end_of_qemu,
    excerpt,
    explain,
    judge,
    match_expected,
)

PASSED = tuple(PhaseReport(when, "passed") for when in ("setup", "call", "teardown"))
FAILED = (PASSED[0], PhaseReport("call", "failed", "assert 3 == 4"), PASSED[2])
SKIPPED = (PhaseReport("setup", "skipped", "no tcx"), PASSED[2])
XFAILED = (PASSED[0], PhaseReport("call", "skipped", "known", xfailed=True), PASSED[2])


def splat(title: str = "WARNING: a.c:1 at f", kind: Kind = Kind.WARNING, *, fatal: bool = False) -> Splat:
    lines = (title, *(f" frame_{number}+0x1/0x2" for number in range(60)))
    return Splat(kind, title, lines, ("f",), f"{kind.value}:{title}", fatal, 0, 61, 21_304_117)


PANIC = splat("Kernel panic - not syncing: sysrq triggered crash", Kind.PANIC, fatal=True)
OOM = splat("test invoked oom-killer", Kind.OOM)
EXPECT_WARNING = ExpectedSplat("WARNING: a", "the module asks for it")
EXPECT_PANIC = ExpectedSplat("sysrq triggered", "the scenario crashes the kernel")
LEAK = Leak("prog", 12, "sched_cls")
W, O, D = 512, 4096, 128  # noqa: E741


def end(how: End) -> MachineEnd:
    return MachineEnd(how)


@pytest.mark.parametrize(
    ("outcome", "facts"),
    [
        (Outcome.PASSED, {}),
        (Outcome.SKIPPED, {"reports": SKIPPED}),
        (Outcome.XFAILED, {"reports": XFAILED}),
        (Outcome.TEST, {"reports": FAILED}),
        (Outcome.TEST, {"leaks": (LEAK,)}),
        (Outcome.TEST, {"expected": (EXPECT_WARNING,)}),
        (Outcome.TEST, {"reports": PASSED[:1], "end": end(End.DEADLINE)}),
        (Outcome.KERNEL, {"splats": (splat(),)}),
        (Outcome.KERNEL, {"taint_after": D}),
        (Outcome.PASSED, {"taint_after": O}),
        (Outcome.INFRA, {"reports": ()}),
        (Outcome.INFRA, {"reports": PASSED[:1]}),
        (Outcome.INFRA, {"reports": PASSED[:2]}),
        *(
            (Outcome.KERNEL, {"reports": PASSED[:1], "end": end(how)})
            for how in (End.PANIC, End.HANG, End.HALT, End.RESET, End.AGENT_KILLED, End.TASK_STUCK)
        ),
        *(
            (Outcome.INFRA, {"reports": PASSED[:1], "end": end(how)})
            for how in (
                End.QEMU_ABORTED,
                End.QEMU_KILLED,
                End.QEMU_FAILED,
                End.CONNECTION,
                End.HARNESS,
                End.TEMPLATE,
            )
        ),
    ],
)
def test_one_fact_decides(outcome: Outcome, facts: dict[str, Any]) -> None:
    assert judge(**{"reports": PASSED, **facts}).outcome is outcome


@pytest.mark.parametrize(
    ("outcome", "facts"),
    [
        (Outcome.KERNEL, {"reports": FAILED, "splats": (splat(),)}),
        (Outcome.KERNEL, {"reports": SKIPPED, "splats": (splat(),)}),
        (Outcome.KERNEL, {"reports": XFAILED, "splats": (splat(),)}),
        (Outcome.KERNEL, {"reports": FAILED, "taint_after": W}),
        (Outcome.KERNEL, {"splats": (splat(),), "end": end(End.QEMU_ABORTED)}),
        (Outcome.KERNEL, {"reports": (), "splats": (PANIC,), "end": end(End.CONNECTION)}),
        (Outcome.INFRA, {"reports": (), "splats": (PANIC,), "end": end(End.TEMPLATE)}),
        (Outcome.TEST, {"reports": FAILED, "end": end(End.QEMU_KILLED)}),
        (Outcome.TEST, {"reports": FAILED, "leaks": (LEAK,)}),
        (Outcome.INFRA, {"reports": PASSED[:1], "expected": (EXPECT_WARNING,), "end": end(End.QEMU_KILLED)}),
        (Outcome.SKIPPED, {"reports": SKIPPED, "expected": (EXPECT_WARNING,)}),
    ],
)
def test_precedence(outcome: Outcome, facts: dict[str, Any]) -> None:
    assert judge(**{"reports": PASSED, **facts}).outcome is outcome


def test_an_expected_splat_passes_and_explains_the_taint_it_sets() -> None:
    verdict = judge(reports=PASSED, splats=(splat(),), expected=(EXPECT_WARNING,), taint_after=W)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.dirty


def test_an_expected_warning_does_not_explain_an_oops_taint() -> None:
    verdict = judge(reports=PASSED, splats=(splat(),), expected=(EXPECT_WARNING,), taint_after=W | D)
    assert verdict.outcome is Outcome.KERNEL
    assert "D (" in verdict.reason


@pytest.mark.parametrize("how", [End.PANIC, End.HANG, End.RESET])
def test_an_expected_panic_explains_the_end_of_the_machine(how: End) -> None:
    verdict = judge(reports=PASSED[:1], splats=(PANIC,), expected=(EXPECT_PANIC,), end=end(how))
    assert verdict.outcome is Outcome.PASSED


def test_an_expected_panic_does_not_explain_that_qemu_aborted() -> None:
    facts = {"splats": (PANIC,), "expected": (EXPECT_PANIC,), "end": end(End.QEMU_ABORTED)}
    assert judge(reports=PASSED[:1], **facts).outcome is Outcome.INFRA  # type: ignore[arg-type]


def test_an_expected_oom_kill_explains_the_end_of_the_agent() -> None:
    expected = (ExpectedSplat("oom-killer", "the scenario eats all memory"),)
    assert (
        judge(reports=(), splats=(OOM,), expected=expected, end=end(End.AGENT_KILLED)).outcome
        is Outcome.PASSED
    )


def test_a_splat_that_could_not_occur_any_more_is_not_held_against_the_scenario() -> None:
    verdict = judge(reports=PASSED[:1], expected=(EXPECT_WARNING,), end=end(End.QEMU_KILLED))
    assert (verdict.outcome, verdict.also) == (Outcome.INFRA, ())


def test_taint_that_was_there_before_is_not_the_scenarios() -> None:
    assert judge(reports=PASSED, taint_before=W, taint_after=W).outcome is Outcome.PASSED


def test_only_an_untouched_machine_is_clean() -> None:
    assert not judge(reports=PASSED).dirty
    assert not judge(reports=FAILED).dirty
    for facts in ({"leaks": (LEAK,)}, {"taint_after": W}, {"splats": (splat(),)}, {"end": end(End.HANG)}):
        assert judge(reports=PASSED, **facts).dirty


@pytest.mark.parametrize(
    ("status", "facts", "how"),
    [
        (134, {}, End.QEMU_ABORTED),
        (-6, {}, End.QEMU_ABORTED),
        (-11, {}, End.QEMU_ABORTED),
        (-9, {}, End.QEMU_KILLED),
        (137, {}, End.QEMU_KILLED),
        (-15, {}, End.QEMU_KILLED),
        (1, {}, End.QEMU_FAILED),
        (0, {}, End.HALT),
        (0, {"reset": True}, End.RESET),
        (0, {"panicked": True}, End.PANIC),
        (-9, {"panicked": True}, End.QEMU_KILLED),
    ],
)
def test_the_end_of_qemu(status: int, facts: dict[str, bool], how: End) -> None:
    assert end_of_qemu(status, **facts).how is how


def test_splats_are_sorted_by_the_patterns() -> None:
    warning, other = splat(), splat("BUG: b", Kind.BUG)
    never = ExpectedSplat("never", "nothing")
    unexpected, matched, missing = match_expected((warning, other, warning), (EXPECT_WARNING, never))
    assert unexpected == (other,)
    assert matched == ((EXPECT_WARNING, warning), (EXPECT_WARNING, warning))
    assert missing == (never,)


def test_a_splat_that_two_patterns_match_leaves_neither_missing() -> None:
    both = (EXPECT_WARNING, ExpectedSplat("a.c:1", "the same one"))
    assert match_expected((splat(),), both).missing == ()


def test_patterns_see_single_lines_of_the_splat() -> None:
    assert ExpectedSplat(r"^ frame_59\+0x1/0x2$", "deep inside").matches(splat())


@pytest.mark.parametrize(("regex", "reason"), [("(", "x"), ("", "x"), ("x", " ")])
def test_a_bad_expectation_is_refused(regex: str, reason: str) -> None:
    with pytest.raises(KernrigError, match="expect_splat"):
        ExpectedSplat(regex, reason)


def full_verdict() -> Verdict:
    return judge(
        reports=FAILED,
        splats=(splat("WARNING: b.c:2 at g"), splat("WARNING: b.c:2 at g"), PANIC),
        expected=(ExpectedSplat("never", "a reason"),),
        taint_after=W,
        leaks=(LEAK,),
        end=MachineEnd(End.PANIC, "GUEST_PANICKED", 0),
        console_tail=[f"console line {number}" for number in range(50)],
        lost_records=3,
        evidence="results/1/test_x",
        rerun="pytest scenarios/test_x.py::test_x",
    )


@pytest.mark.parametrize(
    "text",
    [
        "KERNEL: the kernel panicked: Kernel panic - not syncing: sysrq triggered crash (and 2 more)\n",
        "also: the scenario failed in its call: assert 3 == 4\n",
        "kernel log, 21.304117 s after boot [panic:",
        "another splat: WARNING: b.c:2 at g (2 times)\n",
        "3 records were overwritten",
        "machine: the guest's kernel panicked (exit status 0): GUEST_PANICKED\n",
        "new taint: W: kernel issued a warning\n",
        "left behind:\n    prog 12 'sched_cls'\n",
        "evidence: results/1/test_x\n",
        "rerun: pytest scenarios/test_x.py::test_x",
    ],
)
def test_the_explanation_tells_everything(text: str) -> None:
    assert text in explain(full_verdict()) + "\n"


def test_the_explanation_of_a_splat_after_a_clean_test_says_so() -> None:
    verdict = judge(reports=PASSED, splats=(splat(),))
    assert explain(verdict).startswith(
        "KERNEL: the kernel complained: WARNING: a.c:1 at f, though every assert passed\n"
    )


def test_the_console_tail_is_short_and_stands_where_no_splat_does() -> None:
    verdict = judge(reports=(), end=MachineEnd(End.HANG), console_tail=[f"line {n}" for n in range(50)])
    assert "    line 49" in explain(verdict)
    assert "line 29" not in explain(verdict)
    assert "console line" not in explain(full_verdict())


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(Kind.BUG, Outcome.PASSED), (Kind.OOM, Outcome.PASSED), (Kind.WARNING, Outcome.TEST)],
)
def test_an_announced_splat_that_kills_its_task_explains_the_end_of_the_process(
    kind: Kind, outcome: Outcome
) -> None:
    verdict = judge(
        reports=PASSED[:1], splats=(splat(kind=kind),), expected=(EXPECT_WARNING,), end=end(End.PROCESS)
    )
    assert verdict.outcome is outcome


def test_an_excerpt_has_forty_lines_beginning_and_end() -> None:
    lines = excerpt(splat())
    assert len(lines) == 40
    assert lines[0] == "WARNING: a.c:1 at f"
    assert lines[-1] == " frame_59+0x1/0x2"
    assert "... 22 lines left out ..." in lines


def test_a_short_splat_is_shown_whole() -> None:
    assert excerpt(splat(), limit=61) == splat().lines


def test_many_kinds_of_splat_are_summed_up() -> None:
    verdict = judge(reports=PASSED, splats=[splat(f"WARNING: f.c:{number} at f") for number in range(50)])
    assert "and 39 further kinds of splat" in explain(verdict)
