# SPDX-License-Identifier: MIT
"""What a scenario's machine is like, and that nothing of one scenario reaches the next."""

from __future__ import annotations

import re
import time

import pytest

from tests.vm.conftest import Once
from tests.vm.project import Project, Ran, copy_tree

FILE = "scenarios/test_machine.py"
VERDICTS = "scenarios/test_verdicts.py"
WRONG = {
    "test_wrong_keyword": r"the marker vm takes cpus, memory, append, timeout, not cores\.",
    "test_wrong_value": r"the marker vm has a wrong value: .*'many'",
    "test_impossible_value": r"A machine can't boot with 16 MiB",
    "test_wrong_splat_keyword": r"the marker expect_splat takes a regular expression and a reason: .*'because'",
    "test_wrong_splat_regex": r"expect_splat: '\(' is no regular expression",
}


@pytest.fixture(scope="module")
def clones(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Each scenario in a clone of its own."""
    return once("clones", lambda: copy_tree(tmp_path_factory.mktemp("clones") / "p").pytest(FILE))


@pytest.mark.parametrize(
    "name",
    [
        "test_pristine[1]",
        "test_pristine[2]",
        "test_has_no_network",
        "test_default_shape",
        "test_chosen_shape",
    ],
)
def test_clone_is_as_it_should_be(clones: Ran, name: str) -> None:
    assert clones[name].outcome == "passed", clones[name].text


def test_clones_differ_where_they_must(clones: Ran) -> None:
    first, second = (clones[f"test_identity[{turn}]"].properties for turn in (1, 2))
    for name in ("urandom", "python", "uuid", "boot_id", "machine_id"):
        assert first[name] != second[name], name
    assert re.fullmatch("[0-9a-f]{32}", first["machine_id"])


def test_clones_have_the_hosts_time(clones: Ran) -> None:
    first, second = (float(clones[f"test_identity[{turn}]"].properties["time"]) for turn in (1, 2))
    assert 0 < second - first < 60
    assert 0 <= time.time() - second < 3600


@pytest.mark.parametrize("name", WRONG)
def test_wrong_marker_is_explained(clones: Ran, name: str) -> None:
    case = clones[name]
    assert (case.outcome, case.verdict) == ("error", "INFRA")
    assert re.search(WRONG[name], case.text)
    assert "hint: " in case.text and "Traceback" not in case.text


def test_shared_machine_is_replaced_when_a_scenario_leaves_it_dirty(project: Project) -> None:
    names = [
        *(f"{FILE}::test_counts[{turn}]" for turn in (1, 2)),
        *(f"{VERDICTS}::test_warning", f"{FILE}::test_pristine[1]", f"{FILE}::test_pristine[2]"),
        *(f"{VERDICTS}::test_taint", f"{VERDICTS}::test_leaked_prog", f"{VERDICTS}::test_leaked_module"),
        *(f"{VERDICTS}::test_exits", f"{VERDICTS}::test_next_one_runs"),
    ]
    ran = project.pytest("--kr-isolation=shared", *names)
    count = {name: case.properties["count"] for name, case in ran.cases.items() if "count" in case.properties}
    assert count == {
        "test_counts[1]": "1",
        "test_counts[2]": "2",
        "test_warning": "3",
        "test_pristine[1]": "1",
        "test_pristine[2]": "2",
        "test_taint": "3",
        "test_leaked_prog": "1",
        "test_leaked_module": "1",
        "test_next_one_runs": "1",
    }
    assert ran["test_pristine[1]"].outcome == "passed"
    assert ran["test_pristine[2]"].outcome == "failed"
    assert "isolation shared" in ran.output


def test_cold_boot_for_each(project: Project) -> None:
    ran = project.pytest("--kr-isolation=boot", "--kr-keep=always", f"{FILE}::test_pristine")
    assert ran.outcomes == {"test_pristine[1]": "passed", "test_pristine[2]": "passed"}
    lines = [path.read_text() for path in project.root.glob(".kernrig/results/*/*/qemu.sh")]
    assert len(lines) == 2
    assert all(" -kernel " in line and " -incoming " not in line for line in lines)


def test_options_set_the_default_shape(project: Project) -> None:
    ran = project.pytest(
        *("--kr-cpus=2", "--kr-memory=512", "--kr-append=kernrig.word=one kernrig.other=two"),
        f"{FILE}::test_default_shape",
    )
    assert "assert 2 == 1" in ran["test_default_shape"].text
    assert "2 CPUs, 512 MiB, append 'kernrig.word=one kernrig.other=two'" in ran.output
