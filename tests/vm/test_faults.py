# SPDX-License-Identifier: MIT
"""What is killed or interrupted from outside leaves nothing running and nothing half made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.vm.project import Project, children, gone, interrupt, running, wait_for

WAITING = "scenarios/test_waiting.py"


def until_said(process: subprocess.Popen[str], line: str) -> None:
    """Read a run's output until there is that line."""
    assert process.stdout is not None
    seen: list[str] = []
    for each in process.stdout:
        seen.append(each)
        if each.strip() == line:
            return
    raise AssertionError(f"{line!r} is not in the output:\n{''.join(seen)}")


def holder(project: Project) -> tuple[psutil.Process, psutil.Process]:
    """The process that holds a machine, and its QEMU, as soon as there are such."""
    file = project.root / "holder"
    wait_for(file.exists, "test_holds to hold a machine")
    worker, qemu = (psutil.Process(int(word)) for word in file.read_text().split())
    return worker, qemu


def everything(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that runs below pytest."""
    return children(process.pid, "")


def leftovers(cache: Path) -> list[Path]:
    """What somebody began to make in the cache."""
    return [path for path in cache.glob("*/.*-*") if path.parent.name != ".locks"]


def test_killed_qemu_is_infra_and_the_next_scenario_runs(project: Project) -> None:
    with running(project, "-s", "-v", WAITING, "-k", "waits or passes") as process:
        until_said(process, "waiting in the guest")
        (qemu,) = children(process.pid, "qemu-system")
        qemu.kill()
        ran = project.finish(process)
    assert ran.status == 1
    assert "INFRA: QEMU was killed from outside (exit status -9): SIGKILL" in ran.output
    assert "1 failed, 3 passed" in ran.output


def test_killed_worker_takes_its_qemu_along_and_the_others_go_on(project: Project) -> None:
    names = [f"{WAITING}::test_holds", *(f"{WAITING}::test_passes[{turn}]" for turn in (1, 2, 3))]
    with running(project, "-n", "2", *names) as process:
        worker, qemu = holder(project)
        worker.kill()
        assert_end([qemu])
        ran = project.finish(process)
    assert re.search(rf"worker 'gw\d' crashed while running '{WAITING}::test_holds'", ran.output)
    assert "1 failed, 3 passed" in ran.output
    assert ran.status == 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_pytest_leaves_nothing_running(project: Project, workers: str) -> None:
    with running(project, "-n", workers, f"{WAITING}::test_holds", f"{WAITING}::test_passes") as process:
        _, qemu = holder(project)
        below = [*everything(process), qemu]
        process.kill()
        assert_end(below)


@pytest.mark.parametrize(
    "arguments",
    [("-s", f"{WAITING}::test_waits"), ("-n", "2", f"{WAITING}::test_holds")],
    ids=["guest", "host-n2"],
)
def test_interrupt_during_a_scenario(project: Project, arguments: tuple[str, ...]) -> None:
    with running(project, *arguments) as process:
        if "-s" in arguments:
            until_said(process, "waiting in the guest")
        else:
            holder(project)
        below = everything(process)
        assert children(process.pid, "qemu-system")
        interrupt(process)
        ran = project.finish(process, seconds=30)
        assert_end(below)
    assert ran.status == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in ran.everything
    assert "INTERNALERROR" not in ran.everything


def booting_machines(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """QEMUs below pytest that boot a kernel; it asks QEMU for its version, too."""
    found = []
    for each in children(process.pid, "qemu-system"):
        with suppress(psutil.NoSuchProcess):
            if "-kernel" in each.cmdline():
                found.append(each)
    return found


def assert_end(processes: list[psutil.Process]) -> None:
    wait_for(lambda: gone(processes), "all that pytest started to end", seconds=20)


def make_project(project: Project, cache: Path) -> Project:
    """A project of one scenario with a cache of its own, so that its templates have to be made."""
    made = Project(project.root, {"KERNRIG_CACHE": str(cache)})
    made.write({"scenarios/test_one.py": "def test_one():\n    pass\n"})
    return made


def templates(cache: Path) -> list[Path]:
    return sorted(cache.glob("*-template/[0-9a-f]*"))


def test_interrupted_or_killed_template_is_made_by_the_next_run(
    empty_project: Project, private_cache: Path
) -> None:
    """Ctrl-C leaves nothing; kill -9 leaves a directory that the next run sweeps away. Then two at once make one."""
    project = make_project(empty_project, private_cache)
    for end in (signal.SIGINT, signal.SIGKILL):
        with running(project) as process:
            booting = wait_for(lambda: booting_machines(process), "a machine to boot")
            assert leftovers(private_cache)
            os.killpg(process.pid, end)
            ran = project.finish(process, seconds=30)
            assert_end(booting)
        assert ran.status == (pytest.ExitCode.INTERRUPTED if end == signal.SIGINT else -end)
        assert templates(private_cache) == []
        if end == signal.SIGINT:
            assert leftovers(private_cache) == []
    with running(project) as first, running(project) as second:
        rans = [project.finish(process) for process in (first, second)]
    assert [ran.status for ran in rans] == [0, 0], rans
    said = "".join(ran.output for ran in rans)
    assert said.count("kernrig: booting ") == said.count("kernrig: loading ") == 1
    assert "kernrig: waiting for another process that is working on boot-template/" in said
    assert len(templates(private_cache)) == 2
    assert leftovers(private_cache) == []
    _damaged_template_is_made_again(project, private_cache)


def _damaged_template_is_made_again(project: Project, cache: Path) -> None:
    (state,) = cache.glob("load-template/*/state")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    ran = project.pytest()
    assert ran.outcomes == {"test_one": "passed"}
    assert re.search(
        r"load-template/\w+ is damaged \(state has \d+ bytes instead of \d+\): making it again", ran.output
    )
    assert "kernrig: booting " not in ran.output
    assert json.loads((state.parent / "facts.json").read_text())["items"] == [
        "scenarios/test_one.py::test_one"
    ]


STOP_MACHINES = """
from contextlib import contextmanager
from harness.rig import Rig

lease, stopped = Rig.lease, []

@contextmanager
def lease_a_stopped_one(self, *args, **kwargs):
    with lease(self, *args, **kwargs) as lent:
        if len(stopped) < {count}:
            lent.machine.process.monitor().execute("stop")
            stopped.append(lent)
        yield lent

Rig.lease = lease_a_stopped_one
"""


@pytest.mark.parametrize(("count", "status"), [(1, 0), (2, 1)], ids=["the first", "the second, too"])
def test_a_machine_that_does_not_begin_is_replaced_once(
    empty_project: Project, count: int, status: int
) -> None:
    """Nothing of the scenario has run on it; a kernel is not to blame for that."""
    empty_project.write(
        {
            "conftest.py": STOP_MACHINES.format(count=count),
            "scenarios/test_one.py": "def test_one():\n    pass\n",
        }
    )
    ran = empty_project.pytest("--kr-timeout=10", "-rA")
    assert ran.status == status, ran.everything
    assert re.search(
        r"the machine did not begin with the scenario: the guest stopped answering.*; it runs on another one",
        ran.output,
    )
    [first] = empty_project.root.glob(".kernrig/results/*/*first-machine/verdict.txt")
    assert "did not begin" in first.read_text()
    if status:
        assert "INFRA: the machine did not begin with the scenario" in ran.output
