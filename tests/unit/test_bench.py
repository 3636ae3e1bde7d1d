# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.bench import __main__ as command
from harness.bench.caches import empty, private_cache
from harness.bench.figures import BY_NAME, FIGURES, Failure, Report, Summary
from harness.bench.measures import MEASURES, Measure, choose, schedule
from harness.bench.program import Program
from harness.bench.pytestruns import VERDICT
from harness.bench.tables import comparison, show, table
from harness.bench.workbench import TRIVIAL_NODE, _claimed, copy_scenarios, edit, make_trivial_project
from harness.cache import Cache
from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError

SOON = 30.0


def report(**values: list[float]) -> Report:
    made = Report({"cores": "2"}, {"rounds": 3})
    for name, numbers in values.items():
        for number in numbers:
            made.add({name.replace("_", "-"): number})
    return made


def python(code: str, cwd: Path) -> Program:
    return Program([sys.executable, "-c", code], cwd=cwd, environment=dict(os.environ))


# Figures and tables


def test_every_figure_comes_from_exactly_one_measure() -> None:
    given = [name for measure in MEASURES for name in measure.figures]
    assert sorted(given) == sorted(figure.name for figure in FIGURES)


def test_a_summary_is_median_min_and_max() -> None:
    assert Summary.of([3.0, 1.0, 2.0, 10.0]) == Summary(median=2.5, least=1.0, most=10.0, count=4)


def test_a_report_survives_json_with_all_raw_values(tmp_path: Path) -> None:
    before = report(cpu=[0.3, 0.1, 0.2], rate_n8=[200.0])
    before.failures.append(Failure("cold-boot", "it panicked"))
    file = tmp_path / "report.json"
    file.write_text(before.to_json())
    assert Report.read(file) == before
    assert json.loads(file.read_text())["figures"]["cpu"]["median"] == 0.2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "figures": []}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(KernrigError, match="no report of the benchmark"):
        Report.read(file)


def test_a_measure_may_give_several_values_of_a_figure() -> None:
    into = report(cpu=[0.1])
    into.add({"bisect-package": [14.0, 12.0, 13.0], "cpu": 0.2})
    assert into.values == {"cpu": [0.1, 0.2], "bisect-package": [14.0, 12.0, 13.0]}


def test_a_figure_that_is_no_longer_measured_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    whole = json.loads(report(cpu=[0.1]).to_json())
    whole["figures"]["of-old"] = {"values": [1.0]}
    file.write_text(json.dumps(whole))
    assert list(Report.read(file).values) == ["cpu"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1854, "s", "185 ms"),
        (4.318, "s", "4.32 s"),
        (0.4021, "CPU s", "0.402 s"),
        (203.4, "/min", "203/min"),
        (487.26, "s", "487 s"),
    ],
)
def test_values_have_units(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_the_table_has_machine_median_range_aim_and_failures() -> None:
    shown = report(clone_ssh=[0.150, 0.170, 0.190])
    shown.failures.append(Failure("cold-boot", "it panicked"))
    text = table(shown)
    assert re.search(r"^cores: +2$", text, re.MULTILINE)
    assert re.search(r"^clone-ssh .* 170 ms +150 ms +190 ms +3 +≤ 200 ms$", text, re.MULTILINE)
    assert "no value for cold-boot: it panicked" in text


@pytest.mark.parametrize(
    ("name", "before", "after", "end"),
    [
        ("clone_ssh", [0.2, 0.22, 0.24], [0.1, 0.11, 0.12], "0.50 +better"),
        ("clone_ssh", [0.1, 0.11, 0.12], [0.2, 0.22, 0.24], "2.00 +worse"),
        ("rate_n8", [100.0, 105.0, 110.0], [200.0, 210.0, 220.0], "2.00 +better"),
        ("rate_n8", [200.0, 210.0, 220.0], [100.0, 105.0, 110.0], "0.50 +worse"),
        ("cpu", [0.1, 0.2, 0.3], [0.25, 0.3, 0.4], "1.50 +within noise"),
        ("cpu", [0.1, 0.1, 0.1], [0.3, 0.3], "3.00 +too few values"),
    ],
)
def test_a_ratio_counts_only_beyond_the_noise(
    name: str, before: list[float], after: list[float], end: str
) -> None:
    text = comparison(report(**{name: before}), report(**{name: after}))
    assert re.search(rf"^{name.replace('_', '-')} .* {end}$", text, re.MULTILINE), text


def test_a_comparison_says_what_else_differs() -> None:
    one, two = report(cpu=[0.1], start=[2.0]), report(cpu=[0.1])
    two.machine["cores"] = "8"
    text = comparison(one, two)
    assert "machine differs: cores: 2 -> 8" in text
    assert "only in one of them: start" in text


# What is measured when


def take_nothing(_bench: object) -> dict[str, float]:
    return {}


def test_rounds_mix_all_measures_and_turn_around() -> None:
    a, b = Measure("a", ("cpu",), take_nothing, repeat=2), Measure("b", ("start",), take_nothing)
    order = [(number, each.name) for number, each in schedule((a, b), 2)]
    assert order == [(1, "a"), (1, "b"), (1, "a"), (2, "b"), (2, "a"), (2, "a")]


def test_what_is_measured_once_comes_last_in_its_own_order() -> None:
    a, b = (Measure(name, (name,), take_nothing) for name in "ab")
    c, d = (Measure(name, (name,), take_nothing, once=True) for name in "cd")
    order = [(number, each.name) for number, each in schedule((c, a, d, b), 2)]
    assert order == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (0, "c"), (0, "d")]


def test_a_quick_run_builds_no_kernels() -> None:
    slow = {"kernel-base", "kernel-base-warm", "kernel-rebuild", "kernel-debug", "kernel-debug-warm"}
    slow |= {"bisect-package", "bisect-commit"}
    assert {each.name for each in choose([])} - {each.name for each in choose([], quick=True)} == slow
    assert [each.name for each in choose(["edit"], quick=True)] == ["edit"]
    with pytest.raises(KernrigError, match="kernel-rebuild takes many minutes"):
        choose(["edit", "kernel-rebuild"], quick=True)


def test_builds_follow_each_other_so_that_one_uses_the_other() -> None:
    names = [each.name for each in MEASURES if each.once]
    assert names[:4] == ["kernel-base", "kernel-base-warm", "kernel-rebuild", "bisect-commit"]
    assert names.index("kernel-debug") < names.index("kernel-debug-warm")


def test_a_figure_can_be_chosen_by_its_own_name() -> None:
    assert [measure.name for measure in choose(["cpu-host", "edit"])] == ["clone-verdict", "edit"]
    assert choose([]) == MEASURES


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(KernrigError, match=r"clone-shh(?s:.*)clone-ssh"):
        choose(["clone-shh"])


def test_a_failed_measurement_is_noted_and_warm_up_values_are_dropped() -> None:
    taken: list[str] = []

    def good(_bench: object) -> dict[str, float]:
        taken.append("good")
        return {"cpu": float(len(taken))}

    def bad(_bench: object) -> dict[str, float]:
        raise KernrigError("no luck")

    both = (Measure("good", ("cpu",), good, warm_up=good), Measure("bad", ("start",), bad, warm_up=good))
    into = report()
    command.measure(None, both, 2, into, say=lambda _: None)  # type: ignore[arg-type]
    assert into.values == {"cpu": [2.0, 3.0]}
    assert into.failures == [Failure("bad", "no luck")] * 2  # and warmed up once only


@pytest.mark.parametrize(
    "line",
    [
        "scenarios/mprog/test_order.py::test_first PASSED                 [  5%]",
        "scenarios/mprog/test_order.py::test_x[a b] SKIPPED (no netkit)    [  5%]",
        "[gw3] [ 12%] FAILED scenarios/kptr/test_xchg.py::test_drop ",
    ],
)
def test_a_verdict_is_seen_in_verbose_output(line: str) -> None:
    assert VERDICT.search(f"collected 3 items\n\n{line}\n")


@pytest.mark.parametrize(
    "line", ["scenarios/a/test_b.py::test_passed ", "kernrig: it PASSED", "collecting ... collected 3 items"]
)
def test_other_lines_are_no_verdict(line: str) -> None:
    assert VERDICT.search(line) is None


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_pytest_writes_verdicts_as_expected(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text("def test_ok():\n    pass\n")
    words = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *options]
    with Program(words, cwd=tmp_path, environment=dict(os.environ)) as program:
        assert program.until(VERDICT, Deadline.after(SOON, "a verdict")) is not None, program.output()


# The workbench


def test_private_caches_share_all_but_templates(tmp_path: Path) -> None:
    base = Cache(tmp_path / "base")

    def make(entry: Path) -> None:
        (entry / "file").write_text("x")

    for kind in ("kernel", "boot-template"):
        base.build(kind, "key", make)
    own = private_cache(base, base.root / ".bench" / "warm")
    assert own.get("kernel", "key") is not None
    assert own.get("boot-template", "key") is None
    own.build("boot-template", "key", make)
    own.remove("boot-template", "key")
    assert base.get("boot-template", "key") is not None
    assert {entry.kind for entry in base.entries()} == {"kernel", "boot-template"}


def test_a_cache_with_a_state_of_its_own_shares_the_package_lists_only(tmp_path: Path) -> None:
    base = Cache(tmp_path / "base")
    for name in ("apt", "ccache", "kernel-build-1"):
        with base.state(name) as home:
            (home / "file").write_text(name)
    own = private_cache(base, base.root / ".bench" / "own", ("kernel", "state"))
    assert (own.root / "state/apt/file").read_text() == "apt"
    assert {path.name for path in (own.root / "state").iterdir()} == {
        "apt",
        "bytecode",
        "kernel-names",
        "slots",
    }
    with own.state("ccache") as home:
        (home / "file").write_text("own")
    assert (base.root / "state/ccache/file").read_text() == "ccache"


def test_only_what_a_cache_has_to_itself_is_emptied(tmp_path: Path) -> None:
    base = Cache(tmp_path / "base")
    base.build("kernel", "key", lambda entry: None)
    own = private_cache(base, tmp_path / "own")
    own.build("boot-template", "key", lambda entry: None)
    empty(own, "boot-template")
    assert own.entries("boot-template") == []
    for cache, kind in ((own, "kernel"), (base, "boot-template")):
        with pytest.raises(AssertionError, match="shares"):
            empty(cache, kind)


def test_the_workbench_leaves_the_users_entries_alone(tmp_path: Path) -> None:
    base = Cache(tmp_path)
    kept = base.root / "kernel"
    kept.mkdir()
    (kept / "file").write_text("x")
    with _claimed(base.root / ".bench") as folder:
        private_cache(base, folder / "warm")
    assert not folder.exists()
    assert (kept / "file").read_text() == "x"


def test_a_second_benchmark_is_refused_and_left_overs_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / ".bench"
    (folder / "left").mkdir(parents=True)
    with _claimed(folder):
        assert not any(folder.iterdir())
        with pytest.raises(KernrigError, match="Another benchmark"), _claimed(folder):
            pass
    with _claimed(folder):
        pass


def test_the_trivial_project_has_that_many_scenarios(tmp_path: Path) -> None:
    root = make_trivial_project(tmp_path / "trivial", 100)
    names = re.findall(r"^def (test_\w+)", (root / "scenarios/test_trivial.py").read_text(), re.MULTILINE)
    assert len(set(names)) == 100
    assert f"scenarios/test_trivial.py::{names[0]}" == TRIVIAL_NODE


def test_an_edit_changes_the_copy_only_and_each_time(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "scenarios").mkdir(parents=True)
    (repository / "pyproject.toml").write_text("")
    assert copy_scenarios(repository, tmp_path / "none") is None
    original = repository / "scenarios" / "test_a.py"
    original.write_text("def test_a(): pass\n")
    copy = copy_scenarios(repository, tmp_path / "copy")
    assert copy is not None
    texts = {original.read_text(), edit(copy, 1).read_text(), edit(copy, 2).read_text()}
    assert len(texts) == 3
    assert original.read_text() == "def test_a(): pass\n"


# Programs

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def test_cpu_time_includes_grandchildren_and_orphans(tmp_path: Path) -> None:
    orphan = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN + 'print(1, flush=True)'!r}], "
        "stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
    )
    with python(orphan, tmp_path) as program:
        assert program.finish(Deadline.after(SOON, "the end"))[0] == 0
    assert program.cpu >= 0.3


def test_nothing_of_a_program_outlives_it_but_our_other_children_do(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    daemon = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True, "
        "stdout=sys.stdout)\n"
        f"{SLEEP}\n"
    )
    try:
        with python(daemon, tmp_path) as program:
            both = re.compile("up(?s:.*)up")
            assert program.until(both, Deadline.after(SOON, "both to be up")) is not None
            mine = psutil.Process().children(recursive=True)
            assert len(mine) == 3
        assert other.poll() is None
        assert [child.pid for child in mine if child.is_running()] == [other.pid]
    finally:
        other.kill()
        other.communicate()


def test_an_interrupted_program_can_end_by_itself(tmp_path: Path) -> None:
    code = (
        f"try:\n    {SLEEP}\nexcept KeyboardInterrupt:\n    print('bye', flush=True)\n    raise SystemExit(7)"
    )
    with python(code, tmp_path) as program:
        assert program.until(re.compile("up"), Deadline.after(SOON, "it to be up")) is not None
        program.interrupt()
        assert program.finish(Deadline.after(SOON, "the end"))[0] == 7
    assert "bye" in program.output()


def test_output_that_never_comes_meets_its_deadline_or_the_end(tmp_path: Path) -> None:
    with python(SLEEP, tmp_path) as program, pytest.raises(DeadlineError, match="the word"):
        program.until(re.compile("never"), Deadline.after(0.3, "the word", scaled=False))
    with python("print('no')", tmp_path) as program:
        assert program.until(re.compile("never"), Deadline.after(SOON, "the word")) is None


@pytest.mark.parametrize("good", [[], ["good"]])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_benchmark_leaves_nothing_but_the_values_there_are(
    tmp_path: Path, number: signal.Signals, status: int, good: list[str]
) -> None:
    """The command line as it is, with one measurement that runs a program for ever."""
    script = tmp_path / "script.py"
    script.write_text(f"""\
import contextlib, os, re, sys
from pathlib import Path
from harness.bench import __main__ as command
from harness.bench.measures import Measure
from harness.bench.program import Program
from harness.bench.workbench import _claimed
from harness.deadline import Deadline

def endless(_bench):
    with Program([sys.executable, "-c", {SLEEP!r}], cwd=Path("."), environment=dict(os.environ)) as program:
        program.until(re.compile("up"), Deadline.after(30, "it to be up"))
        print("measuring", flush=True)
        program.finish(Deadline.after(600, "the end"))

@contextlib.contextmanager
def workbench(*_args, **_kwargs):
    with _claimed(Path("cache/.bench")):
        yield None

measures = [Measure("endless", ("cpu",), endless)]
if sys.argv[1:]:
    measures.insert(0, Measure("good", ("start",), lambda _: {{"start": 1.5}}))
command.choose = lambda *_, **__: tuple(measures)
command.workbench = workbench
command.describe_host = lambda _: {{}}
command.main([])
""")
    process = subprocess.Popen(
        [sys.executable, str(script), *good],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = next((line for line in process.stdout if line == "measuring\n"), None)
        assert said is not None
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(number)
        output, _ = process.communicate(timeout=SOON)
        assert process.returncode == status, output
        assert not [child for child in started if child.is_running()]
        assert not (tmp_path / "cache/.bench").exists()
        kept = [Report.read(path).values for path in tmp_path.glob(".kernrig/bench/*")]
        assert kept == ([{"start": [1.5]}] if good else [])
    finally:
        process.kill()
        process.communicate()


# The command line


def run_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.bench", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_two_reports_are_compared_without_measuring(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(report(cpu=[0.4]).to_json())
    (tmp_path / "b.json").write_text(report(cpu=[0.2]).to_json())
    begin = time.monotonic()
    done = run_command("--compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^cpu .* 0\.400 s +0\.200 s +0\.50 +too few values$", done.stdout, re.MULTILINE)
    assert time.monotonic() - begin < SOON


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "speed"), "There is nothing called speed"),
        (("--json", "/proc/report.json"), "can't be written"),
        (("--compare", "a.json", "a.json"), "no report of the benchmark"),
        (("--runs", "0"), "Invalid value"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = run_command(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_settings_are_the_environments_with_clones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNRIG_ISOLATION", "shared")
    monkeypatch.setenv("KERNRIG_CPUS", "2")
    monkeypatch.chdir(tmp_path)
    settings = command.read_settings("./bzImage")
    assert settings.kernels == (str(tmp_path / "bzImage"),)
    assert settings.isolation == "clone"
    assert settings.shape.cpus == 2
    assert set(BY_NAME) >= {"start", "edit"}
