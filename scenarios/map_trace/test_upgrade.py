# SPDX-License-Identifier: MIT
"""A program is replaced by one with another map while traffic runs on all CPUs: no state is lost on the way."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.vmfixture import Vm

KEYS = 4096
EXAMPLES_PER_ROUND = 32
WAYS = ("prog array", "cgroup link", "tcx link", "tcx replace")
WRONG = ("lost", "stale", "resurrected")
NEVER = ("nobody", "troubles", "failures", "give_ups", "regressions")


def play(vm: Vm, kind: str, way: str) -> list[Counter[str]]:
    """Rounds of scenarios/map_trace/upgrade.py in the guest, printed."""
    number = -(-vm.settings.examples // EXAMPLES_PER_ROUND)
    played = vm.call(
        "scenarios.map_trace.upgrade:rounds",
        kind,
        way,
        number=number,
        seed=vm.settings.seed,
        keys=KEYS,
        seconds=60 + 20 * number,
    )
    if isinstance(played, str):
        pytest.skip(f"this kernel lacks {played}")
    total: Counter[str] = sum((Counter(each) for each in played), Counter())
    figures = ", ".join(f"{total[key]} {key}" for key in played[0])
    print(f"{kind}, {way}: {len(played)} rounds of {KEYS} keys: {figures}")
    return [Counter(each) for each in played]


def assert_nothing_lost(played: list[Counter[str]]) -> None:
    """What N finds is what O left, and the tracers and the kernel count right."""
    for each in played:
        assert [each[what] for what in WRONG] == [0, 0, 0], each
        assert each["mirrored"] > 0
        assert [each[what] for what in NEVER] == [0] * len(NEVER), each
        # Where the copy is preempted in a tracer, the kernel skips what the traffic of that CPU changes; the maps are
        # compared then. Where the traffic is, it skips what the copy writes. And the kernel's count is right.
        assert each["skipped"] == each["missed"] + each["untraced"], each
        assert each["unseen"] <= each["witness skipped"], each


@pytest.mark.vm(cpus=2, timeout=3600)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["naive", "early"])
def test_a_switch_without_tracers_loses_updates(vm: Vm, kind: str, way: str) -> None:
    """MTRACE-RACE-001, -002, MTRACE-GAP-011, MTRACE-MIG-005: so the tests below can tell.

    "naive": copy, then switch. "early": with tracers, which go before the switch, as in the RFC's example. Figures are
    printed; --kr-examples says how many rounds, --kr-seed which.
    """
    for each in play(vm, kind, way):
        assert min(each["lost"], each["stale"], each["resurrected"]) > 0, each
        assert each["nobody"] == each["both"] == each["troubles"] == each["failures"] == 0, each


@pytest.mark.vm(cpus=2, timeout=3600)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_when_tracers_mirror_and_the_copy_looks_again(vm: Vm, way: str) -> None:
    """MTRACE-MIG-001 to -003, -005, MTRACE-LAW-001 to -005, MTRACE-RACE-003, -004, MTRACE-ITER-007, MTRACE-REC-003.

    Each CPU changes keys of its own; each program compares what it finds with what the traffic knows. Every packet
    meets one of them, whether the switch is a prog array's entry, the update of a link, or a replacement in a list.
    """
    played = play(vm, "careful", way)
    assert_nothing_lost(played)
    assert [each["both"] for each in played] == [0] * len(played)


@pytest.mark.vm(cpus=2, timeout=3600)
@pytest.mark.parametrize("way", ["cgroup link", "tcx link"])
def test_the_new_program_runs_beside_the_old_one_before_that_goes(vm: Vm, way: str) -> None:
    """MTRACE-MIG-004, -005, MTRACE-LAW-001 to -005: both are attached for a while, the new one behind the old one.

    For each packet it finds what the old one has just made of the key, and makes the same of it; and nothing is lost
    when the old one is detached.
    """
    played = play(vm, "beside", way)
    assert_nothing_lost(played)
    assert all(each["both"] > 0 for each in played)


@pytest.mark.vm(cpus=2, timeout=3600)
def test_nothing_is_lost_when_all_cpus_change_the_same_keys(vm: Vm) -> None:
    """MTRACE-MIG-002, -003, MTRACE-LAW-001, -002, -004, MTRACE-RACE-003, -004: until the traffic ends."""
    assert_nothing_lost(play(vm, "contended", "prog array"))
