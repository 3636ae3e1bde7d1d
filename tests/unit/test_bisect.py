# SPDX-License-Identifier: MIT
"""The search for what broke a scenario, on kernels that are numbers."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisect import report
from harness.bisect.commits import Commits
from harness.bisect.options import Options, differences, mixture
from harness.bisect.packages import Packages, between
from harness.bisect.search import Journal, Plan, Result, search
from harness.bisect.space import Candidate, Line, Space
from harness.bisect.trial import (
    Judgement,
    Sought,
    Trial,
    evaluate,
    failure_rate,
    missed,
    repeats,
)
from harness.errors import KernrigError
from harness.kernels import AvailableKernel
from harness.kernels.config import KernelConfig

FAULT = "TEST:test_x.py:7:AssertionError"


@dataclass
class Bench:
    """A laboratory in which `rate(kernel)` of the runs fail as sought; kernels in `broken` do not build, those
    in `other` fail in another way."""

    rate: Callable[[str], float]
    broken: frozenset[str] = frozenset()
    other: frozenset[str] = frozenset()
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    asked: list[tuple[str, int]] = field(default_factory=list)

    def try_out(self, kernel: str, runs: int, sought: Sought) -> Trial:
        self.asked.append((kernel, runs))
        if kernel in self.broken:
            return Trial(kernel, broken="no rule to make target")
        if kernel in self.other:
            ends = [{"outcome": "failed", "fingerprint": "KERNEL:other", "text": ""}] * runs
        else:
            ends = [
                {"outcome": "failed", "fingerprint": FAULT, "text": "assert 1 == 2"}
                if self.dice.random() < self.rate(kernel)
                else {"outcome": "passed", "fingerprint": "", "text": ""}
                for _ in range(runs)
            ]
        return evaluate(kernel, ends, sought, 1.0)


class Row(Line):
    """Numbered kernels; the answer's detail says which are left."""

    def answer(self):  # type: ignore[no-untyped-def]
        from harness.bisect.space import Answer

        return Answer(self.between(), "row")


def row(length: int) -> Row:
    return Row([Candidate(str(number), str(number), f"kernel {number}") for number in range(length)])


def find(space: Space, bench: Bench, folder: Path, plan: Plan | None = None) -> Result:
    journal = Journal.open(folder / "journal.json", {"q": 1})
    return search(space, bench, journal, plan or Plan(), lambda _: None)


def broken_from(first: int, rate: float = 1.0) -> Callable[[str], float]:
    return lambda kernel: rate if int(kernel) >= first else 0.0


@given(st.integers(2, 200), st.data())
def test_first_bad_one_is_found_in_as_many_steps_as_halving_takes(
    tmp_path_factory: pytest.TempPathFactory, length: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, length - 1))
    bench = Bench(broken_from(first))
    result = find(row(length), bench, tmp_path_factory.mktemp("bisect"))
    assert [each.id for each in result.answer.culprits] == [str(first)]
    assert len(bench.asked) - 2 <= (length - 1).bit_length()


@given(st.data())
def test_kernels_that_cannot_be_tested_are_named_as_suspects_only_where_they_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    length, first = 30, data.draw(st.integers(1, 29))
    inside = st.integers(1, 28).map(str)
    broken = data.draw(st.frozensets(inside, max_size=12))
    other = data.draw(st.frozensets(inside, max_size=4))
    bench = Bench(broken_from(first), broken, other)
    result = find(row(length), bench, tmp_path_factory.mktemp("bisect"))
    found = [int(each.id) for each in result.answer.culprits]
    assert first in found
    assert all(str(each) in broken | other for each in found[:-1])
    assert found[-1] == next(n for n in range(first, 30) if n == 29 or str(n) not in broken | other)


@pytest.mark.parametrize("seed", range(5))
def test_unreliable_scenario_is_repeated_until_the_answer_is_sure(tmp_path: Path, seed: int) -> None:
    bench = Bench(broken_from(11, rate=0.33), dice=random.Random(seed))
    result = find(row(17), bench, tmp_path, Plan(end_runs=40))
    assert [each.id for each in result.answer.culprits] == ["11"]
    assert result.confidence > 0.98
    assert all(runs >= 12 for _, runs in bench.asked)


def test_ends_that_are_not_what_they_are_said_to_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="the bad end is good: kernel 9: 8 passed"):
        find(row(10), Bench(broken_from(10)), tmp_path / "a")
    with pytest.raises(KernrigError, match=r"the good end is bad: kernel 0.*\n.*assert 1 == 2"):
        find(row(10), Bench(broken_from(0)), tmp_path / "b")
    with pytest.raises(KernrigError, match=r"the bad end cannot be judged: kernel 9.*\n.*no rule"):
        find(row(10), Bench(broken_from(5), frozenset({"9"})), tmp_path / "c")


def test_interrupted_search_goes_on_with_what_it_knows(tmp_path: Path) -> None:
    class Interrupted(Bench):
        def try_out(self, kernel: str, runs: int, sought: Sought) -> Trial:
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().try_out(kernel, runs, sought)

    with pytest.raises(KeyboardInterrupt):
        find(row(100), Interrupted(broken_from(77)), tmp_path)
    bench = Bench(broken_from(77))
    result = find(row(100), bench, tmp_path)
    assert [each.id for each in result.answer.culprits] == ["77"]
    whole = Bench(broken_from(77))
    find(row(100), whole, tmp_path / "whole")
    assert bench.asked == whole.asked[4:]
    assert Journal.open(tmp_path / "journal.json", {"q": 2}).steps == []


def test_runs_are_judged_by_the_failure_that_is_sought() -> None:
    ends = [
        {"outcome": "passed", "text": ""},
        {"outcome": "failed", "fingerprint": FAULT, "kernrig": "TEST", "text": "this one"},
        {"outcome": "failed", "fingerprint": "KERNEL:else", "kernrig": "KERNEL", "text": "that one"},
        {"outcome": "failed", "fingerprint": "INFRA:x", "kernrig": "INFRA", "text": ""},
        {"outcome": "skipped", "text": ""},
    ]
    trial = evaluate("k", ends, Sought(frozenset({FAULT})), 2.0)
    assert (trial.passed, trial.failed, trial.other, trial.void) == (1, 1, 1, 2)
    assert trial.judgement is Judgement.BAD
    assert trial.evidence == "this one"
    assert str(trial) == "1 passed, 1 failed, 1 failed otherwise, 2 told nothing"
    assert evaluate("k", ends[2:], Sought(frozenset({FAULT})), 2.0).judgement is Judgement.SKIP
    assert evaluate("k", ends[:1], Sought(frozenset({FAULT})), 2.0).judgement is Judgement.GOOD


@given(st.integers(1, 60), st.data())
def test_repeats_keep_the_promise_about_missing_a_failure(runs: int, data: st.DataObject) -> None:
    failed = data.draw(st.integers(1, runs))
    rate = failure_rate(Trial("k", passed=runs - failed, failed=failed))
    assert 0 < rate < failed / runs + 1e-9
    assert missed(rate, repeats(rate, 0.01)) <= 0.01


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
    assert space.answer().detail == "6.12.43-1~bpo12+1 to 6.12.107-1"


@given(st.integers(1, 60), st.data())
def test_options_that_make_the_difference_are_found_alone_or_together(
    count: int, data: st.DataObject
) -> None:
    names = [f"CONFIG_{number}" for number in range(count)]
    guilty = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    found = differences(dict.fromkeys(names[::2], "m"), dict.fromkeys(names, "y"))
    space = Options(found, lambda part: ",".join(each.option for each in part))
    tries = 0
    while (candidate := space.proposal()) is not None:
        tries += 1
        has = set(candidate.kernel.split(","))
        space.learn(candidate, Judgement.BAD if guilty <= has else Judgement.GOOD)
    assert set(space.answer().culprits[0].id.split("+")) == guilty
    if len(guilty) == 1:
        assert tries <= 2 * max(1, (count - 1).bit_length())


def test_mixture_takes_options_from_the_bad_side(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text('CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S="x"\nCONFIG_AB=y\n')
    bad = {"CONFIG_B": "y", "CONFIG_S": 'a "b"', "CONFIG_AB": "y"}
    found = differences(KernelConfig.read(good), bad)
    assert [str(each) for each in found] == ["CONFIG_A: y -> n", "CONFIG_B: n -> y", 'CONFIG_S: x -> a "b"']
    assert KernelConfig.read(mixture(good, found, tmp_path))["CONFIG_S"] == 'a "b"'
    mixed = KernelConfig.read(mixture(good, found[:2], tmp_path))
    assert dict(mixed) == {"CONFIG_S": "x", "CONFIG_AB": "y", "CONFIG_A": "n", "CONFIG_B": "y"}


@pytest.fixture
def history(tmp_path: Path) -> tuple[Path, list[str]]:
    """A repository with 16 commits, of which each changes a file or another; returns them, oldest first."""
    tree = tmp_path / "tree"
    tree.mkdir()

    def git(*words: str) -> str:
        command = ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    ids = []
    for number in range(16):
        (tree / ("net.c" if number % 2 else "bpf.c")).write_text(f"{number}\n")
        git("add", "-A")
        git("commit", "-qm", f"change {number}")
        ids.append(git("rev-parse", "HEAD"))
    return tree, ids


def of_commits(ids: Sequence[str], first: int, flaw: Sequence[int] = ()) -> Bench:
    def number(kernel: str) -> int:
        return ids.index(kernel.partition("@")[2].partition("+")[0])

    class OfCommits(Bench):
        def try_out(self, kernel: str, runs: int, sought: Sought) -> Trial:
            if number(kernel) in flaw:
                return Trial(kernel, broken="it does not build")
            return super().try_out(kernel, runs, sought)

    return OfCommits(lambda kernel: 1.0 if number(kernel) >= first else 0.0)


@pytest.mark.parametrize("first", [1, 6, 11, 15])
def test_commit_is_found_past_those_that_do_not_build_or_boot(
    history: tuple[Path, list[str]], tmp_path: Path, first: int
) -> None:
    tree, ids = history
    space = Commits(tree, ids[0], "main", repository=tmp_path / "repo", flavours=("debug",))
    assert space.bad.kernel == f"tree:{tree}@{ids[15]}+debug"
    flaw = [each for each in (7, 8) if each not in (first, first - 1)]
    result = find(space, of_commits(ids, first, flaw), tmp_path)
    assert [each.id for each in result.answer.culprits] == [ids[first]]
    assert f"change {first}" in result.answer.detail


def test_suspects_that_do_not_build_are_all_named(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    tree, ids = history
    space = Commits(tree, ids[0], ids[15], repository=tmp_path / "repo")
    result = find(space, of_commits(ids, 8, (7, 8, 9)), tmp_path)
    assert {each.id for each in result.answer.culprits} == set(ids[7:11])
    assert not result.answer.unique


def test_only_commits_that_touch_a_path_are_tried(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    tree, ids = history
    space = Commits(tree, ids[0], ids[15], repository=tmp_path / "repo", paths=("net.c",), skip=(ids[5],))
    bench = of_commits(ids, 11)
    result = find(space, bench, tmp_path)
    assert [each.id for each in result.answer.culprits] == [ids[11]]
    tried = [ids.index(kernel.partition("@")[2]) for kernel, _ in bench.asked[2:]]
    assert tried and all(number % 2 and number != 5 for number in tried)


def test_revisions_that_make_no_range_are_refused(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    tree, ids = history
    for good, bad, why in ((ids[5], ids[2], "is no ancestor"), ("nothing", ids[2], "no commit 'nothing'")):
        with pytest.raises(KernrigError, match=why):
            Commits(tree, good, bad, repository=tmp_path / "repo")
    assert subprocess.run(
        ["git", "-C", str(tree), "bisect", "log"], check=False, capture_output=True
    ).returncode


def test_reports_tell_the_culprit_the_steps_and_the_evidence(tmp_path: Path) -> None:
    result = find(row(10), Bench(broken_from(4)), tmp_path)
    told = report.text(result, "test_x.py::test_it")
    assert told.splitlines()[:2] == ["test_x.py::test_it: what broke it", "  kernel 4"]
    assert "assert 1 == 2" in told
    assert json.loads(report.as_json(result, "t"))["answer"]["culprits"][0]["id"] == "4"
    page = report.markdown(
        result, "test_x.py::test_it", "kernrig bisect --good 0 --bad 9 -- test_x.py::test_it"
    )
    assert "| kernel 9 | 8 failed | bad |" in page
    assert "Run: `kernrig bisect" in page
