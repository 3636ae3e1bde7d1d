# SPDX-License-Identifier: MIT
"""What a pytest user expects of pytest holds for scenarios."""

from __future__ import annotations

import re

import pytest

from tests.vm.conftest import Once
from tests.vm.project import Project, Ran, copy_tree, running

FILE = "scenarios/test_pytest.py"
EVERYTHING = (
    *("--continue-on-collection-errors", "-rA", "-p", "no:cacheprovider"),
    *(FILE, "scenarios/test_broken.py", "scenarios/test_guest_refuses.py"),
)
EXPECTED = {
    "test_runs_in_the_guest": "passed",
    "test_fails": "failed",
    "test_raises": "failed",
    "test_skips": "skipped",
    "test_skips_by_mark": "skipped",
    "test_xfails": "skipped",
    "test_xfails_otherwise": "failed",
    "test_xpasses": "passed",
    "test_xpasses_strictly": "failed",
    "test_with_broken_fixture": "error",
    "test_with_broken_tear_down": "error",
    "test_fails_with_broken_tear_down": "failed",
    **{
        f"test_parametrized[1-{word}]": "passed" for word in ("plain", "two words", "a/b::c[d]", r"\xfcmlaut")
    },
    **{
        f"test_parametrized[2-{word}]": "skipped"
        for word in ("plain", "two words", "a/b::c[d]", r"\xfcmlaut")
    },
    "test_fixture_with_parameters[left]": "passed",
    "test_fixture_with_parameters[right]": "failed",
    "test_method": "passed",
    "test_inner": "passed",
    "test_built_in_fixtures": "passed",
    "test_prints_and_fails": "failed",
    "test_prints_and_passes": "passed",
    "test_warns": "passed",
    "test_records": "passed",
    "test_logs_and_fails": "failed",
    "test_passes": "passed",
    "test_refused": "error",
    "scenarios.test_broken": "error",
}


@pytest.fixture(scope="module")
def plain(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All of it in one process."""
    return once(
        "pytest",
        lambda: copy_tree(tmp_path_factory.mktemp("plain") / "p").pytest(*EVERYTHING, "-p", "no:xdist"),
    )


@pytest.fixture(scope="module")
def spread(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The same on two workers."""
    return once(
        "pytest-n2", lambda: copy_tree(tmp_path_factory.mktemp("spread") / "p").pytest(*EVERYTHING, "-n", "2")
    )


def failure(ran: Ran, name: str) -> str:
    return ran[name].text


def test_outcomes_are_pytests(plain: Ran) -> None:
    assert plain.outcomes == EXPECTED
    assert plain.status == 1


def test_outcomes_are_the_same_with_workers(plain: Ran, spread: Ran) -> None:
    assert spread.outcomes == plain.outcomes
    assert spread.status == plain.status
    assert _summary(spread) == _summary(plain)


def _summary(ran: Ran) -> set[str]:
    return set(re.findall(r"^(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) .*", ran.output, re.MULTILINE))


def test_summary_line_counts_as_pytest_does(plain: Ran) -> None:
    assert "8 failed, 14 passed, 2 skipped, 5 xfailed, 1 xpassed, 1 warning, 5 errors in" in plain.output


def test_failed_assert_shows_values_of_the_guest_and_own_lines(plain: Ran) -> None:
    text = failure(plain, "test_fails")
    assert '>       assert ours == ["the host\'s release", "Minix"], "with a message"' in text
    assert "AssertionError: with a message" in text
    assert "At index 1 diff: 'Linux' != 'Minix'" in text
    assert re.search(r"^scenarios/test_pytest.py:\d+: AssertionError", text, re.MULTILINE)


def test_traceback_goes_through_the_scenarios_lines(plain: Ran) -> None:
    text = failure(plain, "test_raises")
    assert text.index(">       deeper(0)") < text.index(">       return 1 / number")
    assert "ZeroDivisionError: division by zero" in text
    assert "number = 0" in text
    assert "/opt/kernrig" not in text


def test_paths_are_the_hosts(plain: Ran) -> None:
    assert "/opt/kernrig/tree" not in plain.output
    line = re.search(r"fixture.*|(\S+test_pytest.py):\d+: DeprecationWarning", plain.output)
    assert line is not None


def test_failed_fixtures_are_errors_of_their_phase(plain: Ran) -> None:
    assert "ERROR at setup of test_with_broken_fixture" in plain.output
    assert "LookupError: the fixture could not be made" in failure(plain, "test_with_broken_fixture")
    assert "ERROR at teardown of test_with_broken_tear_down" in plain.output
    both = failure(plain, "test_fails_with_broken_tear_down")
    assert "the call failed first" in both and "the fixture could not be undone" in both


def test_output_is_captured_by_stream(plain: Ran) -> None:
    text = plain.output.partition("___ test_prints_and_fails ___")[2].partition("\n___")[0]
    assert re.search(
        r"Captured stdout call -+\nfrom standard output\nfrom the descriptor\n-+ Captured stderr call -+\n"
        r"from standard error",
        text,
    )
    assert "live from the guest" in plain.output.partition("= PASSES =")[2]


def test_log_records_are_captured(plain: Ran) -> None:
    text = plain.output.partition("___ test_logs_and_fails ___")[2]
    assert re.search(r"Captured log call -+\nWARNING +guest:test_pytest.py:\d+ a line of the log\n", text)


def test_warnings_reach_the_summary(plain: Ran, spread: Ran) -> None:
    for ran in (plain, spread):
        summary = ran.output.partition("= warnings summary =")[2]
        assert "scenarios/test_pytest.py::test_warns\n" in summary
        assert "DeprecationWarning: the guest has a warning" in summary


def test_skips_and_xfails_give_their_reasons(plain: Ran) -> None:
    assert re.search(r"SKIPPED \[1\] scenarios/test_pytest.py:\d+: the feature is missing", plain.output)
    assert re.search(r"SKIPPED \[1\] scenarios/test_pytest.py:\d+: never on a Tuesday", plain.output)
    assert f"XFAIL {FILE}::test_xfails - known to fail" in plain.output
    assert f"XPASS {FILE}::test_xpasses - no longer true" in plain.output
    assert "[XPASS(strict)] no longer true" in failure(plain, "test_xpasses_strictly")


def test_junit_has_properties_and_the_verdict(plain: Ran, spread: Ran) -> None:
    for ran in (plain, spread):
        assert ran["test_records"].properties == {"answer": "42", "kernrig_outcome": "passed"}
        assert ran["test_fails"].verdict == "TEST"
        assert ran["test_refused"].verdict == "INFRA"
        assert ran["test_skips"].verdict == "skipped"
        assert ran["test_xfails"].verdict == "xfailed"


def test_file_that_the_guest_cannot_collect_hurts_no_other(plain: Ran) -> None:
    text = failure(plain, "test_refused")
    assert "scenarios/test_guest_refuses.py could not be collected in the guest" in text
    assert "RuntimeError: the guest can't import this file" in text
    assert plain["test_passes"].outcome == "passed"


def test_file_that_cannot_be_imported_stops_the_run_as_ever(project: Project) -> None:
    ran = project.pytest("scenarios/test_broken.py", f"{FILE}::test_passes")
    assert ran.status == pytest.ExitCode.INTERRUPTED
    assert "RuntimeError: this file can't be imported" in ran.output
    assert "test_passes" not in ran.cases


def test_collect_only_needs_no_machine(project: Project) -> None:
    """Not even a kernel: the one that is named does not exist."""
    ran = project.pytest("--collect-only", "-q", "--kr-kernel=/nowhere/bzImage", FILE)
    assert ran.status == 0
    ids = [line for line in ran.output.splitlines() if line.startswith(FILE)]
    assert len(ids) == len(EXPECTED) - 2
    assert f"{FILE}::TestClass::test_method" in ids


def test_files_may_mix_tests_of_host_and_guest(project: Project) -> None:
    """What the host set up for the first file is taken down before the second; the guest's tests come between."""
    on_the_host = "def test_on_the_host_{}(vm):\n    assert vm.run('true').status == 0\n\n\n"
    in_the_guest = "def test_in_the_guest():\n    pass\n"
    project.write(
        {
            "scenarios/test_both.py": on_the_host.format("first") + in_the_guest,
            "scenarios/test_host.py": on_the_host.format("then"),
        }
    )
    ran = project.pytest("scenarios/test_both.py", "scenarios/test_host.py")
    assert ran.outcomes == dict.fromkeys(
        ("test_on_the_host_first", "test_in_the_guest", "test_on_the_host_then"), "passed"
    )


def test_selection(project: Project) -> None:
    ran = project.pytest(FILE, "-v", "-k", "method or inner or (parametrized and plain)")
    assert set(ran.cases) == {
        *("test_method", "test_inner", "test_parametrized[1-plain]", "test_parametrized[2-plain]"),
    }
    assert ran.status == 0
    assert re.search(rf"{FILE}::TestClass::test_method PASSED +\[", ran.output)
    assert re.search(rf"{FILE}::test_parametrized\[2-plain\] XFAIL \(two\) +\[", ran.output)


def test_marker_of_the_ini_file_selects_and_live_output_is_shown(project: Project) -> None:
    ran = project.pytest(FILE, "-m", "slow", "-s")
    assert set(ran.cases) == {"test_prints_and_passes"}
    assert re.search(rf"{FILE} live from the guest\n", ran.output)
    assert "PytestUnknownMarkWarning" not in ran.output


def test_live_output_comes_while_the_scenario_runs(project: Project) -> None:
    with running(project, "-s", "scenarios/test_waiting.py::test_waits") as process:
        assert process.stdout is not None
        assert any(line == "waiting in the guest\n" for line in process.stdout)
        assert process.poll() is None


def test_stop_at_the_first_failure_and_run_the_last_failed(project: Project) -> None:
    chosen = [f"{FILE}::{name}" for name in ("test_passes", "test_fails", "test_inner", "test_records")]
    first = project.pytest(
        "-x", *(each.replace("::test_inner", "::TestOuter::TestInner::test_inner") for each in chosen)
    )
    assert first.outcomes == {"test_passes": "passed", "test_fails": "failed"}
    again = project.pytest("--lf", FILE)
    assert again.outcomes == {"test_fails": "failed"}
    assert "run-last-failure: rerun previous 1 failure" in again.output


def test_ini_file_and_warning_filters_hold_in_the_guest(project: Project) -> None:
    project.write({"pytest.ini": "[pytest]\nxfail_strict = true\n"})
    ran = project.pytest("-W", "error::DeprecationWarning", FILE, "-k", "test_xpasses or test_warns")
    assert ran.outcomes == dict.fromkeys(["test_xpasses", "test_xpasses_strictly", "test_warns"], "failed")


def test_two_kernels_run_each_scenario_twice(project: Project) -> None:
    names = "test_runs_in_the_guest or (test_parametrized and 1-two)"
    ran = project.pytest("--kr-kernel=debian", "--kr-kernel=debian:7.2", FILE, "-k", names)
    assert ran.outcomes == dict.fromkeys(
        [
            *("test_runs_in_the_guest[debian]", "test_runs_in_the_guest[debian:7.2]"),
            *("test_parametrized[debian-1-two words]", "test_parametrized[debian:7.2-1-two words]"),
        ],
        "passed",
    )
    default, newer = (
        ran[f"test_runs_in_the_guest[{name}]"].properties["release"] for name in ("debian", "debian:7.2")
    )
    assert newer.startswith("7.2.") and not default.startswith("7.2.")
    assert f"kernrig: debian is {default}, accelerator " in ran.output
    assert f"kernrig: debian:7.2 is {newer}, accelerator " in ran.output
