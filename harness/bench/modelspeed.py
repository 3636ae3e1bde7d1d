# SPDX-License-Identifier: MIT
"""How fast kernels are compared with the models: each measurement has a machine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from harness.bench.figures import Values
from harness.bench.workbench import Workbench
from harness.errors import KernrigError
from harness.vm.shape import Shape
from harness.vmfixture import Vm

T = TypeVar("T")

# In one measurement: random sequences, races.
SEQUENCES = 60
RACES = 10


def sequences(name: str, model: str, append: Sequence[str], bench: Workbench) -> Values:
    """Random sequences of calls, generated, played in one machine and compared with a model ("mprog", "struct_ops",
    "kptr"); `append` is for the command line."""
    from harness.modelcheck.facility import Facility
    from harness.modelcheck.kptr import Kptr
    from harness.modelcheck.mprog import Mprog
    from harness.modelcheck.search import Stage, search
    from harness.modelcheck.struct_ops import StructOps

    def play(vm: Vm) -> float:
        kinds: dict[str, type[Facility]] = {"mprog": Mprog, "struct_ops": StructOps, "kptr": Kptr}
        facility = kinds[model].on(vm)
        if facility is None:
            raise KernrigError(f"This kernel has nothing to compare with the {model} model.")
        stage = Stage(vm, facility)
        search(stage.play, facility, examples=SEQUENCES, seed=0, folder=bench.trivial / "counterexamples")
        return stage.figures.rate

    base = bench.rig.settings.shape
    return {name: in_a_machine(play, replace(base, append=(*base.append, *append)), bench)}


def races(bench: Workbench) -> Values:
    """Threads race in one machine with two CPUs, and what they saw is explained."""
    from harness.modelcheck import racing
    from harness.modelcheck.mprog import features_of

    def run(vm: Vm) -> float:
        features = features_of(vm)
        if features is None:
            raise KernrigError("This kernel has no tcx for threads to race about.")
        track = racing.Track(vm, features)
        for race in islice(racing.races(features, 0), RACES):
            track.run(race)
        return track.figures.rate

    return {"races": in_a_machine(run, replace(bench.rig.settings.shape, cpus=2), bench)}


def in_a_machine(play: Callable[[Vm], T], shape: Shape, bench: Workbench) -> T:
    """What `play` returns, with a machine of this shape."""
    with bench.rig.lease(bench.kernel, shape, own=True) as lease:
        vm = Vm(lease.machine, bench.rig, bench.kernel, shape)
        try:
            return play(vm)
        except AssertionError as found:
            raise KernrigError(f"Kernel and model differ: {found}") from found
        finally:
            vm.machine.close()
