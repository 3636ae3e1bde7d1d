# SPDX-License-Identifier: MIT
"""A task that a map owns outlives its process, and goes with the map."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf.link import Link
from harness.guest.bpf.object import Object
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import owning_map

PACKET = bytes(64)


@pytest.mark.requires("kfunc:bpf_task_from_pid")
def test_stashed_task_outlives_its_process_and_goes_with_the_map() -> None:
    """KPTR-TASK-003, -004, KPTR-ACC-003, KPTR-FREE-014: the map's reference is the task's last one."""
    with ExitStack() as observer, ExitStack() as owner:
        object = owner.enter_context(Object.open(Path(__file__).with_name("task.bpf.o")))
        object.tune_map("owner", reuse=owner.enter_context(owning_map("task_struct")))
        object.load()
        frees = observer.enter_context(object.map("frees"))
        with object.prog("freed") as freed:
            observer.enter_context(Link.raw_tracepoint(freed))
        stash, look = (owner.enter_context(object.prog(name)) for name in ("stash", "look"))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            object.set_number("pid", process.pid)
            assert stash.test_run(PACKET).retval == 0

        # process has been waited for
        one_reference = 1 << 24 | process.pid
        wait_until(
            lambda: look.test_run(PACKET).retval == one_reference, timeout=2, what="the task to be dead"
        )
        with subprocess.Popen(["true"]) as later:
            object.set_number("pid", later.pid)
        wait_until(lambda: frees.number(0) == 1, timeout=2, what="a process that ended later to be freed")
        object.set_number("pid", process.pid)
        assert look.test_run(PACKET).retval == one_reference

        owner.close()

        wait_until(lambda: frees.number(0) == 2, timeout=2, what="the task to go with the map")
