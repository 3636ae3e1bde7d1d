# SPDX-License-Identifier: MIT
"""The search for what broke a scenario, on kernels that are numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisect.journal import Journal
from harness.bisect.odds import confidence, failure_rate, missed, repeats
from harness.bisect.packages import Packages, between
from harness.bisect.search import Plan, Result
from harness.bisect.space import Candidate
from harness.bisect.trial import (
    End,
    Failure,
    Judgement,
    Outcome,
    Record,
    Sought,
    choose,
    evaluate,
)
from harness.errors import KernrigError
from harness.kernels import AvailableKernel
from tests.unit.bisecting import ELSE, FAULT, TEST, Bench, Row, failed, find, passed

SOUGHT = Sought(frozenset({Failure(TEST, FAULT)}))


def row(length: int) -> Row:
    return Row([Candidate(str(number), str(number), f"kernel {number}") for number in range(length)])


def bad_from(first: int, rate: float = 1.0) -> Callable[[str], float]:
    return lambda kernel: rate if int(kernel) >= first else 0.0


def one_of(numbers: frozenset[str], text: str) -> Callable[[str], str]:
    return lambda kernel: text if kernel in numbers else ""


def culprits(result: Result) -> list[str]:
    return [each.id for each in result.answer.culprits]


@given(st.integers(2, 200), st.data())
def test_first_bad_one_is_found_in_as_many_steps_as_halving_takes(
    tmp_path_factory: pytest.TempPathFactory, length: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, length - 1))
    bench = Bench(bad_from(first))
    result = find(row(length), bench, tmp_path_factory.mktemp("bisect"))
    assert culprits(result) == [str(first)]
    assert len(bench.asked) - 2 <= (length - 1).bit_length()


@given(st.data())
def test_kernels_that_cannot_be_tested_are_named_as_suspects_only_where_they_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, 29))
    inside = st.integers(1, 28).map(str)
    broken = data.draw(st.frozensets(inside, max_size=12))
    other = data.draw(st.frozensets(inside, max_size=4))
    bench = Bench(
        lambda kernel: 0.0 if kernel in other else bad_from(first)(kernel),
        one_of(broken, "no rule to make target"),
        lambda kernel: 1.0 if kernel in other else 0.0,
    )
    found = [int(each) for each in culprits(find(row(30), bench, tmp_path_factory.mktemp("bisect")))]
    assert first in found
    assert all(str(each) in broken | other for each in found[:-1])
    assert found[-1] == next(n for n in range(first, 30) if n == 29 or str(n) not in broken | other)


@pytest.mark.parametrize("seed", range(5))
def test_unreliable_scenario_is_repeated_until_the_answer_is_sure(tmp_path: Path, seed: int) -> None:
    bench = Bench(bad_from(11, rate=1 / 3), dice=random.Random(seed))
    result = find(row(17), bench, tmp_path)
    assert culprits(result) == ["11"]
    at_bad = result.steps[0].trial
    assert at_bad.failed >= 8
    assert result.confidence >= 0.99
    clean = [each.trial.passed for each in result.steps if each.judgement is Judgement.GOOD]
    assert clean and min(clean) >= result.runs >= 12
    assert math.isclose(result.confidence, 1 - sum((1 - result.rate) ** runs for runs in clean))


def test_a_step_ends_with_the_first_failure(tmp_path: Path) -> None:
    bench = Bench(bad_from(1))
    steps = find(row(5), bench, tmp_path).steps
    assert {each.trial.runs for each in steps if each.role == "step"} == {1}
    assert steps[0].trial.runs == 8


def test_ends_that_are_not_what_they_are_said_to_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="the bad end is good: kernel 9: 32 passed"):
        find(row(10), Bench(bad_from(10)), tmp_path / "a")
    with pytest.raises(KernrigError, match=r"the good end is bad: kernel 0.*\n.*assert 1 == 2"):
        find(row(10), Bench(bad_from(0)), tmp_path / "b")
    with pytest.raises(KernrigError, match=r"the bad end cannot be judged: kernel 9(?s:.*)no rule"):
        find(row(10), Bench(bad_from(5), one_of(frozenset({"9"}), "why:\nno rule")), tmp_path / "c")
    with pytest.raises(KernrigError, match=r"the good end cannot be judged: kernel 0.*otherwise"):
        strange = Bench(bad_from(5), otherwise=lambda kernel: float(kernel == "0"))
        find(row(10), strange, tmp_path / "d")
    # An end that was refused is tried again.
    assert culprits(find(row(10), Bench(bad_from(5)), tmp_path / "d")) == ["5"]


class Interrupted(Bench):
    """Ctrl-C in the run with that number."""

    left = 0

    def run(self, kernel: str, rounds: int, sought: Sought | None = None, *, stop: bool = False) -> Record:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().run(kernel, rounds, sought, stop=stop)


def test_search_interrupted_in_any_step_goes_on_with_what_it_knows(tmp_path: Path) -> None:
    whole = Bench(bad_from(77))
    expected = find(row(100), whole, tmp_path / "whole")
    for number in range(len(whole.asked)):
        folder = tmp_path / str(number)
        before = Interrupted(bad_from(77))
        before.left = number
        with pytest.raises(KeyboardInterrupt):
            find(row(100), before, folder)
        after = Bench(bad_from(77))
        assert find(row(100), after, folder) == expected
        assert before.asked + after.asked == whole.asked


def test_search_interrupted_whenever_it_says_something_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    expected = find(row(40), Bench(bad_from(9)), tmp_path / "whole", say=said.append)
    for number in range(len(said)):
        left = number

        def say(text: str) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1

        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            find(row(40), Bench(bad_from(9)), folder, say=say)
        assert find(row(40), Bench(bad_from(9)), folder) == expected


def test_finished_search_is_answered_from_its_journal_until_it_is_forgotten(tmp_path: Path) -> None:
    expected = find(row(10), Bench(bad_from(4)), tmp_path)
    bench = Bench(bad_from(4))
    assert find(row(10), bench, tmp_path) == expected
    assert not bench.asked
    Journal.open(tmp_path / "journal.json", {"q": 1}).forget()
    find(row(10), bench, tmp_path)
    assert bench.asked


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"question": {"q": 2}}',
        '{"question": {"q": 1}}',
        '{"question": {"q": 1}, "steps": [{}]}',
    ],
)
def test_journal_that_is_damaged_or_of_another_question_is_none(tmp_path: Path, content: str) -> None:
    find(row(10), Bench(bad_from(4)), tmp_path)
    path = tmp_path / "journal.json"
    assert Journal.open(path, {"q": 1}).steps
    assert not Journal.open(path, {"q": 2}).steps
    path.write_text(content)
    assert not Journal.open(path, {"q": 1}).steps
    assert culprits(find(row(10), Bench(bad_from(4)), tmp_path)) == ["4"]


def test_runs_are_judged_by_the_failure_that_is_sought() -> None:
    ends = (
        passed(),
        failed(text="this one"),
        failed(ELSE, text="that one"),
        failed(FAULT, "scenarios/test_x.py::test_other"),
        End(TEST, Outcome.INFRA, "INFRA:x", "the host"),
        End(TEST, Outcome.SKIPPED, "", "no tcx"),
    )
    trial = evaluate(Record("k", ends), SOUGHT)
    assert (trial.passed, trial.failed, trial.other, trial.void) == (1, 1, 1, 2)
    assert trial.judge(1) is Judgement.BAD
    assert (trial.evidence, trial.remark) == ("this one", "that one")
    assert str(trial) == "1 passed, 1 failed, 1 failed otherwise, 2 told nothing"
    without = evaluate(Record("k", ends[:1] + ends[2:]), SOUGHT)
    assert (without.judge(1), without.judge(2)) == (Judgement.GOOD, Judgement.SKIP)
    assert evaluate(Record("k", ends[2:]), SOUGHT).judge(1) is Judgement.SKIP


def test_failure_seen_most_often_is_sought_unless_another_is_named() -> None:
    rare = failed(ELSE)
    record = Record("k", (rare, failed(), failed(), passed(), failed(ELSE, "t2"), failed(ELSE, "t3")))
    assert choose(record) == SOUGHT
    assert {each.test for each in choose(record, "elsewhere").failures} == {TEST, "t2", "t3"}
    with pytest.raises(KernrigError, match=r"'nothing' in its test.*\n.*test_x.py:7: \(2 times\)"):
        choose(record, "nothing")


def test_failures_otherwise_make_a_step_repeat_and_then_no_verdict(tmp_path: Path) -> None:
    # Half of the runs are lost to another fault: more are made until enough have passed.
    bench = Bench(bad_from(6), otherwise=lambda kernel: 0.4 if kernel in ("3", "4") else 0.0)
    result = find(row(9), bench, tmp_path / "a")
    assert culprits(result) == ["6"]
    step = next(each for each in result.steps if each.candidate.id == "4")
    assert step.trial.passed >= result.runs and step.trial.other
    bench = Bench(bad_from(6), otherwise=lambda kernel: 1.0 if kernel == "5" else 0.0)
    assert culprits(find(row(9), bench, tmp_path / "b")) == ["5", "6"]


@given(st.integers(1, 60), st.data())
def test_repeats_keep_the_promise_about_missing_a_failure(runs: int, data: st.DataObject) -> None:
    seen = data.draw(st.integers(1, runs))
    rate = failure_rate(seen, runs)
    assert 0 < rate < seen / runs
    assert missed(rate, repeats(rate, 0.01)) <= 0.01 < missed(rate, repeats(rate, 0.01) - 1) + 1e-12


def test_confidence_takes_off_what_each_good_step_may_have_missed() -> None:
    assert math.isclose(confidence(1 / 3, [10, 12]), 1 - (2 / 3) ** 10 - (2 / 3) ** 12)
    assert confidence(0.01, [1, 1]) == 0.0
    assert confidence(1.0, [1]) == confidence(0.5, []) == 1.0


def test_answers_are_as_often_right_as_the_confidence_says(tmp_path: Path) -> None:
    wrong = 0
    for seed in range(60):
        bench = Bench(bad_from(11, rate=1 / 3), dice=random.Random(seed))
        wrong += culprits(find(row(17), bench, tmp_path / str(seed), Plan(miss=0.1))) != ["11"]
    assert wrong <= 6


def packaged(version: str, incomplete: str | None = None) -> AvailableKernel:
    return AvailableKernel(f"debian:{version}", f"{version}-amd64", version, ("trixie",), incomplete, False)


def test_packages_between_two_versions_in_the_order_of_the_search() -> None:
    offered = [packaged(each) for each in ("6.12.9-1", "6.12.107-1", "6.12.43-1~bpo12+1", "6.16.3-1")]
    offered.append(packaged("6.12.50-1", "no modules"))
    row_ = between(offered, "6.12.9-1", "6.16.3-1")
    assert [each.id for each in row_] == ["6.12.9-1", "6.12.43-1~bpo12+1", "6.12.107-1", "6.16.3-1"]
    assert between(offered, "6.16.3-1", "6.12.9-1") == row_[::-1]
    for wrong in ("6.12.50-1", "5.10.1-1"):
        with pytest.raises(KernrigError, match="no usable kernel of version"):
            between(offered, wrong, "6.16.3-1")
    space = Packages(row_, lambda older, newer: f"{older.id} to {newer.id}")
    space.learn(row_[1], Judgement.GOOD)
    space.learn(row_[2], Judgement.BAD)
    assert space.proposal() is None
    last = f"The last good one is {row_[1].title}."
    assert space.answer().detail == f"{last}\n\n6.12.43-1~bpo12+1 to 6.12.107-1"


def test_package_that_is_to_be_skipped_is_not_tried(tmp_path: Path) -> None:
    candidates = row(5).candidates
    bench = Bench(bad_from(3))
    result = find(Packages(candidates, lambda older, newer: "", skip=("2", "3")), bench, tmp_path)
    assert culprits(result) == ["2", "3", "4"]
    assert not {"2", "3"} & set(bench.kernels)
    with pytest.raises(KernrigError, match="9 is not between the ends"):
        Packages(candidates, lambda older, newer: "", skip=("9",))


def test_journal_on_disk_tells_the_steps(tmp_path: Path) -> None:
    find(row(4), Bench(bad_from(2)), tmp_path)
    told = json.loads((tmp_path / "journal.json").read_text())
    assert told["sought"] == [{"test": TEST, "fingerprint": FAULT}]
    assert [each["role"] for each in told["steps"]] == ["bad end", "good end", "step", "step"]
    assert not list(tmp_path.glob("*.new"))
