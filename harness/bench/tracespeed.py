# SPDX-License-Identifier: MIT
"""What tracing a map costs the program that changes it (MTRACE-SCN-007), in a machine of its own."""

from __future__ import annotations

from harness.bench.figures import Values
from harness.bench.modelspeed import in_a_machine
from harness.bench.workbench import Workbench
from harness.vmfixture import Vm

UPDATES = 20_000


def tracing(bench: Workbench) -> Values:
    """Updates per second: untraced, with a tracer of another map of the type, traced."""

    def rates(vm: Vm) -> dict[str, float]:
        found: dict[str, float] = vm.call("harness.guest.map_trace_speed:rates", UPDATES)
        return found

    found = in_a_machine(rates, bench.rig.settings.shape, bench)
    return {f"updates-{name.replace(' ', '-')}": rate for name, rate in found.items()}
