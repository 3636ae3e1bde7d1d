# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.deadline import DeadlineError
from harness.errors import HostError
from harness.vm import slots
from harness.vm.slots import OVERHEAD_MIB, UNIT_MIB, Slots, units_for

SMALL = UNIT_MIB - OVERHEAD_MIB
TWO_UNITS = 2 * UNIT_MIB - OVERHEAD_MIB


def test_units_cover_memory_and_overhead() -> None:
    assert units_for(SMALL) == 1
    assert units_for(SMALL + 1) == 2
    assert units_for(TWO_UNITS) == 2


def test_machines_share_the_memory_until_it_is_full(tmp_path: Path) -> None:
    rack = Slots(tmp_path, memory_mib=4 * UNIT_MIB)
    first, second = rack.acquire(TWO_UNITS), rack.acquire(TWO_UNITS)
    with pytest.raises(DeadlineError, match="memory for another machine"):
        rack.acquire(SMALL, seconds=0.05)
    slots.release(first)
    with rack.held(SMALL, seconds=0):
        pass
    slots.release(second)


def test_partly_free_is_not_enough_and_keeps_nothing(tmp_path: Path) -> None:
    """What was taken on the way is given back: otherwise two large machines could wait for each other for ever."""
    rack = Slots(tmp_path, memory_mib=3 * UNIT_MIB)
    with rack.held(TWO_UNITS):
        with pytest.raises(DeadlineError):
            rack.acquire(TWO_UNITS, seconds=0.05)
        with rack.held(SMALL, seconds=0):
            pass


def test_a_waiting_machine_says_so_once_and_gets_its_turn(tmp_path: Path) -> None:
    rack = Slots(tmp_path, memory_mib=UNIT_MIB)
    said: list[str] = []
    held = rack.acquire(SMALL)

    def waiting() -> None:
        said.append("waiting")
        threading.Timer(0.1, slots.release, [held]).start()

    with rack.held(SMALL, seconds=10, waiting=waiting):
        assert said == ["waiting"]


def test_too_large_a_machine_is_refused_at_once(tmp_path: Path) -> None:
    rack = Slots(tmp_path, memory_mib=2 * UNIT_MIB)
    with pytest.raises(HostError, match=f"{2 * UNIT_MIB} MiB are for machines") as caught:
        rack.acquire(TWO_UNITS + 1)
    assert caught.value.hint and "--kr-memory" in caught.value.hint
    assert rack.check(TWO_UNITS) == 2


HOLDER = """
import sys, signal
from pathlib import Path
from harness.vm.slots import Slots
locks = Slots(Path(sys.argv[1]), memory_mib=int(sys.argv[2])).acquire(1)
print("held", flush=True)
signal.pause()
"""


def test_a_killed_process_leaves_nothing_taken(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path), str(UNIT_MIB)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        rack = Slots(tmp_path, memory_mib=UNIT_MIB)
        with pytest.raises(DeadlineError):
            rack.acquire(SMALL, seconds=0)
        os.kill(process.pid, signal.SIGKILL)
        with rack.held(SMALL, seconds=10):
            pass


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, unlimited, missing = (tmp_path / name for name in ("limit", "unlimited", "missing"))
    limit.write_text(f"{300 << 20}\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(slots, "_CGROUP_LIMITS", (unlimited, missing))
    whole = slots.host_memory_mib()
    monkeypatch.setattr(slots, "_CGROUP_LIMITS", (unlimited, missing, limit))
    assert slots.host_memory_mib() == min(300, whole)
