# SPDX-License-Identifier: MIT
"""The search on real git histories, whose kernels are built by nobody."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.bisect.commits import Commits, Repository
from harness.bisect.gitlog import BisectLog, Verdict, parse
from harness.bisect.search import Result
from harness.bisect.trial import Judgement
from harness.errors import KernrigError
from tests.unit.bisecting import SOURCE, Change, builder, find, git, history, straight


def culprits(result: Result, ids: list[str]) -> list[int]:
    """Numbers of commits, in order."""
    return sorted(ids.index(each.id) for each in result.answer.culprits)


def tried(result: Result, ids: list[str]) -> list[int]:
    return [ids.index(each.candidate.id) for each in result.steps[2:]]


@pytest.mark.parametrize("first", range(1, 16))
def test_planted_fault_is_found_wherever_it_is(tmp_path: Path, first: int) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({first: "faulty"}))
    space = Commits(tree, ids[0], "main", repository=tmp_path / "repo", flavours=("debug",))
    assert space.bad.kernel == f"tree:{tree}@{ids[15]}+debug"
    result = find(space, builder(tree), tmp_path)
    assert culprits(result, ids) == [first]
    assert len(result.steps) <= 2 + 4
    assert f"    change {first}\n" in result.answer.detail
    assert f" {SOURCE} | " in result.answer.detail


@pytest.mark.parametrize("state", ["broken", "silent", "strange"])
@pytest.mark.parametrize("first", [2, 6, 9, 14])
def test_commits_that_cannot_be_judged_are_passed_by(tmp_path: Path, first: int, state: str) -> None:
    tree = tmp_path / "tree"
    ids = history(
        tree, straight({7: state, 8: "sound", first: "faulty"} | ({8: "faulty"} if first < 7 else {}))
    )
    result = find(Commits(tree, ids[0], ids[15], repository=tmp_path / "repo"), builder(tree), tmp_path)
    assert culprits(result, ids) == [first]
    step = next(each for each in result.steps if each.candidate.id == ids[7])
    assert step.judgement is Judgement.SKIP
    told = {"broken": "does not build", "silent": "does not boot", "strange": "failed otherwise"}[state]
    assert told in str(step.trial)


@pytest.mark.parametrize("state", ["broken", "silent", "strange"])
def test_what_cannot_be_judged_beside_the_culprit_makes_a_range(tmp_path: Path, state: str) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({7: state, 9: "faulty"}))
    result = find(Commits(tree, ids[0], ids[15], repository=tmp_path / "repo"), builder(tree), tmp_path)
    assert culprits(result, ids) == [7, 8, 9]
    assert not result.answer.unique
    assert all(f"    change {number}" in result.answer.detail for number in (7, 8, 9))


@pytest.mark.parametrize("seed", range(3))
def test_fault_that_shows_in_a_third_of_the_runs_is_found(tmp_path: Path, seed: int) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({4: "broken", 5: "sound", 10: "moody", 13: "silent", 14: "moody"}))
    result = find(Commits(tree, ids[0], ids[15], repository=tmp_path / "repo"), builder(tree, seed), tmp_path)
    assert culprits(result, ids) == [10]
    assert result.confidence >= 0.98


def merged(fault: int) -> list[Change]:
    """0-1-2-3------7-8-9, 4-5-6 on a side branch from 1 that is merged by 7. `fault` is the number that brings it."""
    side, main = "kernel/bpf/side.c", "net/core/dev.c"
    changes = [Change(f"main {number}", {main: f"{number}\n", SOURCE: "sound\n"}) for number in range(4)]
    for number in (4, 5, 6):
        state = "faulty" if number >= fault else "sound"
        parents = (1,) if number == 4 else None
        changes.append(Change(f"side {number}", {side: f"{number}\n", SOURCE: f"{state}\n"}, parents))
    state = "faulty" if fault <= 7 else "sound"
    changes.append(Change("Merge side", {side: "6\n", SOURCE: f"{state}\n"}, (3, 6)))
    for number in (8, 9):
        state = "faulty" if number >= fault else "sound"
        changes.append(Change(f"main {number}", {main: f"{number}\n", SOURCE: f"{state}\n"}))
    return changes


@pytest.mark.parametrize(
    ("fault", "first_parent", "culprit"),
    [(5, False, 5), (5, True, 7), (6, False, 6), (7, False, 7), (7, True, 7), (8, False, 8), (8, True, 8)],
)
def test_merge_stands_for_its_branch_where_only_first_parents_count(
    tmp_path: Path, fault: int, first_parent: bool, culprit: int
) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, merged(fault))
    space = Commits(tree, ids[0], ids[9], repository=tmp_path / "repo", first_parent=first_parent)
    result = find(space, builder(tree), tmp_path)
    assert culprits(result, ids) == [culprit]
    assert not first_parent or not {4, 5, 6} & set(tried(result, ids))
    assert ("--first-parent" in result.answer.log) == first_parent


def test_good_revision_on_another_branch_begins_at_the_parting(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, merged(5))
    result = find(Commits(tree, ids[3], ids[6], repository=tmp_path / "repo"), builder(tree), tmp_path)
    assert tried(result, ids)[0] == 1
    assert culprits(result, ids) == [5]


def test_fault_that_was_mended_where_good_is_is_no_answer(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    changes = [Change("root", {SOURCE: "faulty\n"}), Change("stays", {"a": "1\n"}, (0,))]
    changes += [Change("mended", {SOURCE: "sound\n"}, (0,))]
    ids = history(tree, changes)
    space = Commits(tree, ids[2], ids[1], repository=tmp_path / "repo")
    with pytest.raises(KernrigError, match="root, where good and bad parted, is bad"):
        find(space, builder(tree), tmp_path)


def test_only_commits_that_touch_a_path_are_tried(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({10: "faulty"}))
    space = Commits(
        tree, ids[0], ids[15], repository=tmp_path / "repo", paths=("kernel/bpf",), skip=(ids[6],)
    )
    result = find(space, builder(tree), tmp_path)
    assert culprits(result, ids) == [10]
    assert tried(result, ids) and all(number % 2 == 0 and number != 6 for number in tried(result, ids))
    assert result.answer.detail.startswith("commit ")


def test_fault_outside_the_paths_is_not_put_down_to_the_bad_end(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({12: "faulty"}))
    space = Commits(tree, ids[0], ids[15], repository=tmp_path / "repo", paths=("drivers",))
    with pytest.raises(KernrigError, match="no commit between the ends that touches drivers broke it"):
        find(space, builder(tree), tmp_path / "a")
    outside = [Change("outside", {SOURCE: "faulty\n"}), Change("last", {"mm/slab.c": "1\n"})]
    other = tmp_path / "other"
    ids = history(other, [*straight({}, 6), *outside])
    space = Commits(other, ids[0], ids[7], repository=tmp_path / "repo", paths=("net/core/dev.c",))
    bench = builder(other)
    with pytest.raises(KernrigError, match=r"that touches net/core/dev\.c broke it"):
        find(space, bench, tmp_path / "b")
    assert len(bench.asked) > 2


def test_skipped_ranges_are_not_tried(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({12: "faulty"}))
    left_out = (f"{ids[4]}..{ids[9]}", ids[13])
    result = find(
        Commits(tree, ids[0], ids[15], repository=tmp_path / "repo", skip=left_out), builder(tree), tmp_path
    )
    assert culprits(result, ids) == [12]
    assert not {5, 6, 7, 8, 9, 13} & set(tried(result, ids))
    with pytest.raises(KernrigError, match=r"no range 'x\.\.y'"):
        Commits(tree, ids[0], ids[15], repository=tmp_path / "repo", skip=("x..y",))


def test_revisions_that_make_no_range_are_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, [*straight({}, 6), Change("alone", {"a": "1\n"}, ())])
    for good, bad, why in (
        (ids[5], ids[2], "is newer than"),
        (ids[2], ids[2], "are the same commit"),
        (ids[2], ids[6], "no history in common"),
        ("nothing", ids[2], "no commit 'nothing'"),
    ):
        with pytest.raises(KernrigError, match=why):
            Commits(tree, good, bad, repository=tmp_path / "repo")
    with pytest.raises(KernrigError, match="is no git repository"):
        Commits(tmp_path, "a", "b", repository=tmp_path / "repo")


def test_the_users_repository_is_only_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({9: "faulty"}))

    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted((tree / ".git").rglob("*")) if path.is_file()}

    before = state()
    find(Commits(tree, ids[0], ids[15], repository=tmp_path / "repo"), builder(tree), tmp_path)
    assert state() == before


def test_search_goes_on_where_somebody_elses_ended(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({9: "faulty"}))
    git(tree, "checkout", "-q", "-f", "main")
    git(tree, "bisect", "start", "main", ids[0], "--", "kernel", "net")
    for number, verdict in ((12, "bad"), (4, "good"), (8, "skip")):
        git(tree, "bisect", verdict, ids[number])
    file = tmp_path / "log"
    file.write_text(git(tree, "bisect", "log") + "\n")
    log = Repository(tree).read_log(file)
    assert log.paths == ("kernel", "net")
    good, bad = log.last(Judgement.GOOD), log.last(Judgement.BAD)
    assert good is not None and bad is not None
    assert (good, bad) == (ids[4], ids[12])
    space = Commits(tree, good, bad, repository=tmp_path / "repo", paths=log.paths, log=log)
    result = find(space, builder(tree), tmp_path)
    assert culprits(result, ids) == [8, 9]
    assert set(tried(result, ids)) <= {5, 6, 7, 9, 10, 11}


def test_git_replays_the_log(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({9: "faulty", 7: "broken", 8: "sound"}))
    result = find(Commits(tree, ids[0], ids[15], repository=tmp_path / "repo"), builder(tree), tmp_path)
    file = tmp_path / "bisect.log"
    file.write_text(result.answer.log)
    git(tree, "checkout", "-q", "-f", "main")
    assert f"{ids[9]} is the first bad commit" in git(tree, "bisect", "replay", str(file))
    assert Repository(tree).read_log(file).last(Judgement.BAD) == ids[9]


def test_log_of_an_interrupted_search_is_replayed_up_to_there(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({9: "faulty"}))
    space = Commits(tree, ids[0], ids[15], repository=tmp_path / "repo")
    first = space.proposal()
    assert first is not None
    space.learn(first, Judgement.GOOD)
    (tmp_path / "bisect.log").write_text(space.log())
    expected = space.proposal()
    assert expected is not None
    git(tree, "checkout", "-q", "-f", "main")
    git(tree, "bisect", "replay", str(tmp_path / "bisect.log"))
    assert git(tree, "rev-parse", "HEAD") == expected.id


def test_logs_in_all_of_gits_spellings_are_understood() -> None:
    text = """\
git bisect start '--term-old' 'fast' '--term-new=slow' '--first-parent' 'v2' 'v1' 'it'"'"'s a path'
# status: waiting
# bad: [aa] title
git-bisect slow aa
git bisect fast bb cc
git bisect skip dd
# first bad commit: [ee] title
"""
    log = parse(text, lambda word: word in ("v1", "v2"))
    words = [(each.judgement.value, each.revision) for each in log.verdicts]
    assert words == [
        ("bad", "v2"),
        ("good", "v1"),
        ("bad", "aa"),
        ("good", "bb"),
        ("good", "cc"),
        ("skip", "dd"),
    ]
    assert (log.paths, log.first_parent) == (("it's a path",), True)
    again = parse("git bisect start\ngit bisect start 'b' 'a' '--' 'x'\n", lambda word: False)
    assert again == BisectLog((Verdict(Judgement.BAD, "b"), Verdict(Judgement.GOOD, "a")), ("x",))
    with pytest.raises(KernrigError, match="line 2 of the log is no verdict: git bisect dance now"):
        parse("git bisect start\ngit bisect dance now\n", lambda word: False)


def test_repository_left_by_a_search_that_was_killed_does_not_matter(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ids = history(tree, straight({9: "faulty"}))
    repository = tmp_path / "repo"
    Commits(tree, ids[0], ids[15], repository=repository)
    for name in ("HEAD.lock", "BISECT_LOG", "refs/bisect/bad.lock"):
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    result = find(Commits(tree, ids[0], ids[15], repository=repository), builder(tree), tmp_path)
    assert culprits(result, ids) == [9]


def test_shallow_clone_is_searched_as_far_as_it_goes(tmp_path: Path) -> None:
    tree, clone = tmp_path / "tree", tmp_path / "clone"
    ids = history(tree, straight({9: "faulty"}))
    url = f"file://{tree}"
    subprocess.run(["git", "clone", "-q", "--depth=12", url, str(clone)], check=True, capture_output=True)
    result = find(Commits(clone, ids[5], ids[15], repository=tmp_path / "repo"), builder(clone), tmp_path)
    assert culprits(result, ids) == [9]
