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
WRONG = ("lost", "stale", "resurrected")
NEVER = ("nobody", "troubles", "failures", "give_ups", "regressions")


def play(vm: Vm, kind: str) -> list[Counter[str]]:
    """Rounds of scenarios/map_trace/upgrade.py in the guest, printed."""
    number = -(-vm.settings.examples // EXAMPLES_PER_ROUND)
    played = vm.call(
        "scenarios.map_trace.upgrade:rounds",
        kind,
        number=number,
        seed=vm.settings.seed,
        keys=KEYS,
        seconds=60 + 20 * number,
    )
    if played is None:
        pytest.skip("the functions behind a hash map can't be traced")
    total: Counter[str] = sum((Counter(each) for each in played), Counter())
    print(f"{kind}: {len(played)} rounds of {KEYS} keys:", ", ".join(f"{total[key]} {key}" for key in total))
    return [Counter(each) for each in played]


@pytest.mark.vm(cpus=2, timeout=3600)
@pytest.mark.parametrize("kind", ["naive", "early"])
def test_a_switch_without_tracers_loses_updates(vm: Vm, kind: str) -> None:
    """MTRACE-RACE-001, -002, MTRACE-GAP-011, MTRACE-MIG-005: so the test below can tell.

    "naive": copy, then switch. "early": with tracers, which go before the switch, as in the RFC's example. Figures are
    printed; --kr-examples says how many rounds, --kr-seed which.
    """
    for each in play(vm, kind):
        assert min(each["lost"], each["stale"], each["resurrected"]) > 0, each
        assert each["nobody"] == each["troubles"] == each["failures"] == 0


@pytest.mark.vm(cpus=2, timeout=3600)
@pytest.mark.parametrize("kind", ["careful", "contended"])
def test_nothing_is_lost_when_tracers_mirror_and_the_copy_looks_again(vm: Vm, kind: str) -> None:
    """MTRACE-MIG-001 to -005, MTRACE-LAW-001 to -005, MTRACE-RACE-003, -004, MTRACE-ITER-007, MTRACE-REC-003.

    "careful": each CPU changes keys of its own, by a prog array whose entry is replaced; each program compares what it
    finds with what the traffic knows. "contended": all CPUs change the same keys, until the traffic ends.
    """
    for each in play(vm, kind):
        assert [each[what] for what in WRONG] == [0, 0, 0], each
        assert each["mirrored"] > 0
        assert [each[what] for what in NEVER] == [0] * len(NEVER), each
        # Where the copy is preempted in a tracer, the kernel skips what the traffic of that CPU changes. The maps are
        # compared then; and the kernel's count is right.
        assert each["skipped"] == each["missed"], each
        assert each["unseen"] <= each["witness skipped"], each
