# SPDX-License-Identifier: MIT
"""Coverage of a real kernel that counts its lines, and what is said about one that does not."""

from __future__ import annotations

import pytest

from tests.vm.project import Project

KERNEL = "deb-source:6.12+coverage"
SCENARIOS = """\
import errno

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.prog import Prog

LO = 1


def load():
    return Prog.load(asm(mov(r0, uapi.TCX_NEXT), exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS)


def test_two_programs():
    with load() as a, load() as b:
        tcx.attach(LO, a)
        tcx.attach(LO, b)
        tcx.detach(LO, b)
        tcx.detach(LO, a)


def test_one_program_twice():
    with load() as a:
        tcx.attach(LO, a)
        with pytest.raises(OSError) as caught:
            tcx.attach(LO, a)
        assert caught.value.errno == errno.EEXIST
        tcx.detach(LO, a)
"""
DRIVEN = """\
def test_machine_that_dies(vm):
    vm.expect_end("it is switched off")
    vm.qmp.execute("quit")
    vm.wait_until_ended()


def test_machine_that_is_driven(vm):
    vm.succeed("true")
"""


@pytest.mark.slow
def test_what_all_machines_counted_is_added_up(empty_project: Project) -> None:
    empty_project.write({"scenarios/test_tcx.py": SCENARIOS, "scenarios/test_driven.py": DRIVEN})
    files = ("kernel/bpf/tcx.c", "kernel/bpf/mprog.c")
    ran = empty_project.pytest(
        "-n", "2", f"--kr-kernel={KERNEL}", *(f"--kr-coverage={file}" for file in files), seconds=5400
    )
    assert ran.status == 0, ran.everything
    assert f"{KERNEL}: what the scenarios on 3 machines reached" in ran.output
    assert "nothing is known of 1 others (it ended with its scenario)" in ran.output
    folder = empty_project.root / ".kernrig/coverage"
    lcov = (folder / "lcov.info").read_text()
    for file in files:
        assert f"SF:{file}\n" in lcov
        assert f"\n{file} " in ran.output
    # Each call of each scenario once, and nothing of what made the template.
    assert "FNDA:4,tcx_prog_attach\n" in lcov
    assert "FNDA:3,tcx_prog_detach\n" in lcov
    assert "FNDA:0,bpf_mprog_query\n" in lcov
    unreached = (folder / "unreached.txt").read_text()
    assert "\n  bpf_mprog_query\n" in unreached
    assert "tcx_prog_attach" in next(folder.glob("index.tcx.c.*.html")).read_text()


@pytest.mark.slow
def test_file_that_is_not_counted_is_an_error_before_anything_runs(empty_project: Project) -> None:
    empty_project.write({"scenarios/test_tcx.py": SCENARIOS})
    ran = empty_project.pytest(f"--kr-kernel={KERNEL}", "--kr-coverage=kernel/fork.c", seconds=5400)
    assert ran.status == pytest.ExitCode.USAGE_ERROR
    assert "does not count the lines of kernel/fork.c" in ran.errors
    assert "mprog" in ran.errors


def test_kernel_that_counts_nothing_is_an_error_before_anything_runs(empty_project: Project) -> None:
    empty_project.write({"scenarios/test_tcx.py": SCENARIOS})
    ran = empty_project.pytest("--kr-kernel=debian:6.12", "--kr-coverage=kernel/bpf/mprog.c")
    assert ran.status == pytest.ExitCode.USAGE_ERROR
    assert "does not count which of its lines run" in ran.errors
    assert f"--kr-kernel={KERNEL}" in ran.errors
    assert not (empty_project.root / ".kernrig/coverage").exists()
