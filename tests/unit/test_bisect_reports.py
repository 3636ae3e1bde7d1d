# SPDX-License-Identifier: MIT
"""What a finished search looks like, and the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked

from harness.bisect import laboratory, report
from harness.bisect.commits import Commits
from harness.bisect.search import Result
from harness.bisect.trial import Record, Sought
from harness.cli import cli
from harness.settings import OPTIONS
from tests.unit.bisecting import ELSE, FAULT, TEST, Bench, builder, find, git, history, straight

ASKED = report.Question(TEST, "commit", f"kernrig bisect --tree linux --good v1 --bad v2 -- {TEST}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "linux"
    history(tree, straight({7: "broken", 9: "sound", 10: "moody"}))
    return tree


@pytest.fixture
def result(tree: Path, tmp_path: Path) -> Result:
    return find(Commits(tree, "main~15", "main", repository=tmp_path / "repo"), builder(tree), tmp_path)


def test_text_begins_with_the_culprit_and_tells_the_steps_and_both_sides(result: Result) -> None:
    told = report.text(result, ASKED).splitlines()
    assert told[0] == f"{TEST}: the first bad commit is"
    assert told[1].endswith(" change 10")
    for line in ("      change 10", "the failure on", "  assert 1 == 2", f"Sought: {TEST}: {FAULT}."):
        assert any(each.startswith(line) for each in told), line
    assert any(each.startswith("no such failure on ") and "change 9" in each for each in told)
    skipped = next(each for each in told if each.startswith("  skip"))
    assert "could not be tested: the kernel does not build: error: expected" in skipped


def test_markdown_has_what_a_mailing_list_wants(result: Result) -> None:
    page = report.markdown(result, ASKED)
    assert page.startswith(f"# {TEST}: the first bad commit is\n\n- ")
    for part in (
        "Author: ",
        "## How sure",
        "## Bad: ",
        "## Good: ",
        "## Steps",
        "git bisect start",
        "assert 1 == 2",
    ):
        assert part in page
    assert f"\n    {ASKED.command}" in page
    assert page.count("```") % 2 == 0
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == len(result.steps) + 2
    assert all(line.count(" | ") == 3 for line in rows)


def test_json_has_everything(result: Result) -> None:
    told = json.loads(report.as_json(result, ASKED))
    assert told["answer"]["unique"] is True
    assert told["answer"]["culprits"][0]["title"].endswith("change 10")
    assert told["sought"] == [{"test": TEST, "fingerprint": FAULT}]
    assert len(told["steps"]) == len(result.steps)
    assert told["confidence"] == result.confidence
    assert told["question"]["kind"] == "commit"


def test_range_is_not_told_as_an_answer(tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    history(tree, straight({9: "broken", 10: "faulty"}))
    result = find(Commits(tree, "main~15", "main", repository=tmp_path / "repo"), builder(tree), tmp_path)
    assert "one of these 2 commits broke it" in report.text(result, ASKED)


def test_confidence_is_not_rounded_up(tmp_path: Path, result: Result) -> None:
    assert "Confidence that no bad kernel passed for a good one: 99." in report.text(result, ASKED)
    assert "100" not in report.text(result, ASKED).split("Confidence")[1].split("\n")[0]


def test_long_changelog_is_cut_on_the_terminal_only(result: Result) -> None:
    from dataclasses import replace

    long = replace(result, answer=replace(result.answer, detail="\n".join(map(str, range(500)))))
    assert "and 440 more lines" in report.text(long, ASKED)
    assert "\n499\n" in report.markdown(long, ASKED)


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("KERNRIG_CACHE", str(tmp_path / "cache"))


class Desk:
    """The command line, with a bench in the place of the laboratory."""

    def __init__(self, tree: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = builder(tree)
        self.work = work
        monkeypatch.chdir(work)
        monkeypatch.setattr(laboratory, "Pytest", lambda *_: self.bench)

    def bisect(self, *words: str) -> Invoked:
        return CliRunner().invoke(cli, ["bisect", *words], prog_name="kernrig")


@pytest.fixture
def desk(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    work = tmp_path / "work"
    work.mkdir()
    return Desk(tree, work, monkeypatch)


def test_command_writes_all_reports(desk: Desk, tree: Path) -> None:
    words = ("--tree", str(tree), "--good", "main~15", "--bad", "main")
    done = desk.bisect(*words, "--", TEST)
    assert done.exit_code == 0, done.output
    assert f"{TEST}: the first bad commit is" in done.output
    folder = desk.work / ".kernrig"
    assert sorted(each.name for each in folder.iterdir()) == [
        f"bisect.{each}" for each in ("json", "log", "md", "txt")
    ]
    assert "first bad commit" in (folder / "bisect.log").read_text()
    asked = len(desk.bench.asked)
    assert desk.bisect(*words, "--", TEST).exit_code == 0
    assert len(desk.bench.asked) == asked
    assert desk.bisect(*words, "--again", "--", TEST).exit_code == 0
    assert len(desk.bench.asked) > asked


def test_journal_belongs_to_the_commits_and_the_scenario_as_they_are(desk: Desk, tree: Path) -> None:
    file = desk.work / "test_x.py"
    file.write_text("def test_it(): pass\n")
    good = git(tree, "rev-parse", "main~15")
    words = ("--tree", str(tree), "--good", good, "--bad", "main", "--", "test_x.py::test_it")
    assert desk.bisect(*words).exit_code == 0
    asked = len(desk.bench.asked)
    file.write_text("def test_it(): assert True\n")
    assert desk.bisect(*words).exit_code == 0
    assert len(desk.bench.asked) > asked
    asked = len(desk.bench.asked)
    git(tree, "update-ref", "refs/heads/main", "main~1")
    desk.bisect(*words)
    assert len(desk.bench.asked) > asked


def test_interrupted_command_says_how_to_go_on_and_leaves_a_log(desk: Desk, tree: Path) -> None:
    words = ("--tree", str(tree), "--good", "main~15", "--bad", "main", "--", TEST)
    whole = desk.bench
    calls = iter(range(99))

    class Impatient(Bench):
        def run(
            self, kernel: str, rounds: int, sought: Sought | None = None, *, stop: bool = False
        ) -> Record:
            if next(calls) == 6:
                raise KeyboardInterrupt
            return whole.run(kernel, rounds, sought, stop=stop)

    desk.bench = Impatient(lambda kernel: 0.0)
    done = desk.bisect(*words)
    assert done.exit_code == 130
    assert "steps are kept: the same command goes on" in done.output
    log = (desk.work / ".kernrig/bisect.log").read_text()
    assert log.startswith("git bisect start") or "git bisect start" in log
    desk.bench = whole
    done = desk.bisect(*words)
    assert done.exit_code == 0 and "as found before" in done.output


def test_command_goes_on_from_a_log(desk: Desk, tree: Path) -> None:
    log = desk.work / "log"
    log.write_text("git bisect start 'main' 'main~15'\ngit bisect good main~6\n")
    done = desk.bisect("--tree", str(tree), "--log", str(log), "--", TEST)
    assert done.exit_code == 0, done.output
    assert "change 10" in done.output.split("the first bad commit is")[1].splitlines()[1]
    assert "good end" in done.output and "change 9" in done.output.split("good end")[1].splitlines()[0]


def test_skip_list_is_read_from_a_file(desk: Desk, tree: Path) -> None:
    (desk.work / "skip").write_text("main~8  # known to hang\n\n# more\nmain~7..main~6\n")
    words = ("--tree", str(tree), "--good", "main~15", "--bad", "main", "--skip-list", "skip")
    assert desk.bisect(*words, "--", TEST).exit_code == 0
    left_out = {git(tree, "rev-parse", f"main~{number}") for number in (8, 6)}
    assert not {each.rpartition("@")[2] for each in desk.bench.kernels} & left_out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--good", "debian"), "--good and --bad are both needed, or --log"),
        (("--good", "a", "--bad", "b", "--path", "net"), "--path goes with --tree only"),
        (("--good", "a", "--bad", "b", "--flavour", "debug"), "--flavour goes with --tree only"),
        (("--good", "a", "--bad", "b", "--first-parent"), "--first-parent goes with --tree only"),
        (
            ("--tree", ".", "--good", "one", "--bad", "one", "--skip", "x"),
            "--skip means nothing for configurations",
        ),
        (("--tree", ".", "--good", "a", "--bad", "b", "--log", "one"), "--log brings both ends with it"),
        (("--good", "a", "--bad", "b", "--miss", "0"), "0.0 is not in the range"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(
    desk: Desk, words: tuple[str, ...], said: str
) -> None:
    (desk.work / "one").write_text("CONFIG_A=y\n")
    done = desk.bisect(*words, "--", TEST)
    assert said in done.output
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--good", "6.12", "--bad", "debian"), "'6.12' is no packaged kernel, and no --tree was given"),
        (("--tree", "TREE", "--good", "main~15", "--bad", "nothing"), "has no commit 'nothing'"),
        (("--tree", ".", "--good", "a", "--bad", "b"), "is no git repository"),
        (("--tree", "TREE", "--good", "main", "--bad", "main~3"), "main is newer than main~3"),
        (("--tree", "TREE", "--good", "main~15", "--bad", "main~9"), "the bad end is good"),
        (("--tree", "TREE", "--good", "main~1", "--bad", "main"), "the good end is bad"),
    ],
)
def test_what_makes_no_search_is_refused(desk: Desk, tree: Path, words: tuple[str, ...], said: str) -> None:
    desk.bench.dice = random.Random(3)
    done = desk.bisect(*(str(tree) if word == "TREE" else word for word in words), "--", TEST)
    assert said in done.output
    assert done.exit_code == 1


def test_only_the_failure_that_is_named_counts(desk: Desk, tree: Path) -> None:
    desk.bench.otherwise = lambda kernel: 0.2
    words = ("--tree", str(tree), "--good", "main~15", "--bad", "main")
    done = desk.bisect(*words, "--failure", "test_x.py:7", "--", TEST)
    assert done.exit_code == 0, done.output
    assert f"Sought: {TEST}: {FAULT}." in done.output
    done = desk.bisect(*words, "--failure", "nonsense", "--", TEST)
    assert done.exit_code == 1 and ELSE in done.output
