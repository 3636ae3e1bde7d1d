# SPDX-License-Identifier: MIT
"""Each way in which a scenario, its kernel or its machine can go wrong gets the outcome that it deserves."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.vm.conftest import Once
from tests.vm.project import Case, Project, Ran, copy_tree

FILE = "scenarios/test_verdicts.py"
NO_AGENT = "the guest's agent was killed"
# The outcome, and a regular expression for its text.
EXPECTED = {
    "test_warning": ("KERNEL", r"kr_warn: kr_splat: this warning was asked for, though every assert passed"),
    "test_warning_and_failed_assert": ("KERNEL", r"also: the scenario failed in its call: .*'another name'"),
    "test_warning_and_xfail": ("KERNEL", r"this warning was asked for"),
    "test_expected_warning": ("passed", r"\A\Z"),
    "test_other_warning_than_expected": (
        "KERNEL",
        r"also: expected splat 'refcount_t.*' did not occur \(not",
    ),
    "test_missing_warning": (
        "TEST",
        r"expected splat 'this warning .*' did not occur \(nobody asks for it\)",
    ),
    "test_expected_panic": ("passed", r"\A\Z"),
    "test_other_panic_than_known": ("KERNEL", r"the kernel panicked: .*this panic was asked for in kr_panic"),
    "test_expected_bug": ("TEST", r"the scenario left behind module kr_splat"),
    "test_splat[bug]": ("KERNEL", r"kernel BUG at .*kr_splat\.c:\d+ in kr_bug"),
    "test_splat[oops]": ("KERNEL", r"BUG: kernel NULL pointer dereference, address: ADDR in kr_oops"),
    "test_splat[refcount]": ("KERNEL", r"refcount_t: decrement hit 0; leaking memory in kr_refcount"),
    "test_splat[list]": ("KERNEL", r"list_del corruption.*in kr_list"),
    "test_splat[panic]": ("KERNEL", r"the kernel panicked: .*this panic was asked for in kr_panic"),
    "test_taint": ("KERNEL", r"the kernel became tainted: W"),
    "test_leaked_prog": ("TEST", r"left behind prog \d+ 'kr_leaked_prog' \(.*type sched_cls\)"),
    "test_leaked_map": ("TEST", r"left behind map \d+ 'kr_leaked_map' \(type array\)"),
    "test_leaked_pin": ("TEST", r"prog \d+ 'kr_pinned_prog'.*; pin /sys/fs/bpf/kr_pin \(kind prog\)"),
    "test_leaked_link": ("TEST", r"prog \d+ 'kr_linked'.*; link \d+ 'tcx on device 1' \(prog_id \d+"),
    "test_leaked_netns": ("TEST", r"left behind netns \d+ 'kr_leaked_ns'"),
    "test_leaked_module": ("TEST", r"left behind module kr_kptr \(refcount 0"),
    "test_deferred_frees": ("passed", r"\A\Z"),
    "test_power_off": ("KERNEL", r"the guest powered off while the scenario ran"),
    "test_reboot": ("KERNEL", r"the guest reset while the scenario ran"),
    "test_agent_killed": ("KERNEL", rf"{NO_AGENT}.*: the guest's agent has ended with status 137"),
    "test_out_of_memory": ("KERNEL", r"invoked oom-killer"),
    "test_kills_itself": ("TEST", r"process ended before its reports were made: signal SIGKILL"),
    "test_crashes": ("TEST", r"process ended before its reports were made: signal SIGSEGV"),
    "test_exits": ("TEST", r"process ended before its reports were made: exit status 3"),
    "test_waits_for_ever": (
        "TEST",
        rf"past its deadline.*File \".*/{FILE}\", line \d+ in test_waits_for_ever",
    ),
    "test_silent_agent": ("KERNEL", r"stopped answering"),
    "test_hard_hang": ("KERNEL", r"stopped answering"),
    "test_stuck_task": ("KERNEL", r"could not be killed: it is stuck in the kernel"),
    "test_next_one_runs": ("passed", r"\A\Z"),
}


@pytest.fixture(scope="module")
def ran(once: Once, common: Path) -> Ran:
    """All of them, on several workers as most of the time is spent waiting; the evidence stays in the directory."""
    return once("verdicts", lambda: copy_tree(common / "verdicts").pytest("-n", "4", FILE))


@pytest.fixture(scope="module")
def evidence(ran: Ran, common: Path) -> Path:
    """Where that run kept everything."""
    (run,) = (common / "verdicts/.kernrig/results").iterdir()
    return run


def place(evidence: Path, name: str) -> Path:
    (found,) = evidence.glob(f"*--{re.sub(r'[^a-z_]+', '-', name).strip('-')}")
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_outcome_and_its_reason(ran: Ran, name: str) -> None:
    verdict, text = EXPECTED[name]
    case: Case = ran[name]
    assert case.verdict == verdict, case.text
    assert case.outcome == ("passed" if verdict == "passed" else "failed"), case.text
    assert re.search(text, case.text), case.text


def test_known_end_of_the_machine_is_an_expected_failure_with_its_evidence(ran: Ran, evidence: Path) -> None:
    case = ran["test_known_panic"]
    assert (case.verdict, case.outcome) == ("KERNEL", "skipped")
    assert case.message == "known issue F7: the module does as it is told"
    assert "this panic was asked for" in (place(evidence, "test_known_panic") / "kernel.log").read_text()


def test_every_scenario_ran_whatever_happened_to_the_others(ran: Ran) -> None:
    assert set(ran.cases) == {*EXPECTED, "test_known_panic"}
    assert ran.status == 1


@pytest.mark.parametrize("name", ["test_splat[oops]", "test_warning"])
def test_kernel_log_is_shown_and_kept(ran: Ran, evidence: Path, name: str) -> None:
    assert "Call Trace:" in ran[name].text
    assert "RIP: 0010:kr_" in ran[name].text
    kept = (place(evidence, name) / "kernel.log").read_text()
    assert "Call Trace:" in kept and "kr_splat: loading out-of-tree module" in kept


def test_failed_assert_beside_a_splat_keeps_its_introspection(ran: Ran) -> None:
    assert "assert 'guest\\n' == 'another name'" in ran["test_warning_and_failed_assert"].text


@pytest.mark.parametrize("name", ["test_power_off", "test_reboot", "test_agent_killed"])
def test_console_tail_is_shown(ran: Ran, name: str) -> None:
    assert "console, last lines:\n    " in ran[name].text


def test_scenario_past_its_deadline_tells_where_it_was(ran: Ran, evidence: Path) -> None:
    stacks = (place(evidence, "test_waits_for_ever") / "stacks.txt").read_text()
    assert re.search(r"test_verdicts.py\", line \d+ in test_waits_for_ever", stacks)
    assert re.search(r"^thread \d+ \([RS]\):\n\[<0>\] ", stacks, re.MULTILINE)


def test_stuck_task_tells_where_it_is(evidence: Path) -> None:
    stacks = (place(evidence, "test_stuck_task") / "stacks.txt").read_text()
    assert "(D)" in stacks and "kr_stuck" in stacks


def test_silent_machine_is_asked_over_its_console(evidence: Path) -> None:
    kept = place(evidence, "test_silent_agent")
    assert "sysrq: Show backtrace of all active CPUs" in (kept / "console.log").read_text()
    assert "RIP=" in (kept / "registers.txt").read_text()


def test_hard_hang_tells_the_registers(evidence: Path) -> None:
    assert re.search(r"RIP=[0-9a-f]{16}", (place(evidence, "test_hard_hang") / "registers.txt").read_text())


def test_evidence_is_complete(evidence: Path) -> None:
    kept = {path.name for path in place(evidence, "test_warning").iterdir()}
    assert kept == {"verdict.txt", "console.log", "kernel.log", "qemu.sh", "reports.json", "facts.json"}
    assert "qemu-system-x86_64" in (place(evidence, "test_warning") / "qemu.sh").read_text()
    assert not list(evidence.glob("*test_expected_warning*"))


def test_text_says_how_to_run_it_again_and_where_the_evidence_is(ran: Ran, evidence: Path) -> None:
    text = ran["test_splat[panic]"].text
    assert "rerun: pytest 'scenarios/test_verdicts.py::test_splat[panic]'\n" in text
    (shown,) = re.findall(r"^evidence: (.*)$", text, re.MULTILINE)
    assert (evidence.parents[2] / shown / "verdict.txt").read_text().startswith("KERNEL: the kernel panicked")


@pytest.mark.parametrize(("keep", "kept"), [("never", set()), ("always", {"test_fails", "test_passes"})])
def test_keep(project: Project, keep: str, kept: set[str]) -> None:
    names = [f"scenarios/test_pytest.py::{name}" for name in ("test_fails", "test_passes")]
    ran = project.pytest(f"--kr-keep={keep}", *names)
    assert ran.outcomes == {"test_fails": "failed", "test_passes": "passed"}
    found = {path.name.rpartition("--")[2] for path in project.root.glob(".kernrig/results/*/*")}
    assert found == kept
    assert ("evidence: .kernrig/results/" in ran["test_fails"].text) == bool(kept)


def test_rerun_line_works_when_pasted(project: Project) -> None:
    words = ("scenarios/test_pytest.py", "-k", "test_fixture_with_parameters")
    first = project.pytest(*words, "--kr-isolation=shared", "--kr-kernel=debian")
    (line,) = re.findall(r"^rerun: pytest (.*)$", first.output, re.MULTILINE)
    assert "--kr-isolation=shared" in line and "--kr-kernel=debian" in line
    again = project.pytest(*shlex.split(line))
    assert again.outcomes == {"test_fixture_with_parameters[right]": "failed"}
