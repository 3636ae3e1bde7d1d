# SPDX-License-Identifier: MIT
"""How fast kernels are compared with the models: each measurement has a machine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from harness.bench.workbench import Values, Workbench
from harness.errors import KernrigError
from harness.oracle.families import Features
from harness.vm.shape import Shape
from harness.vmfixture import Vm

# In one measurement: random sequences, races.
SEQUENCES = 60
RACES = 10


def sequences(name: str, append: Sequence[str], bench: Workbench) -> Values:
    """Random sequences of calls, generated, played in one machine and compared; `append` is for the command line."""
    from harness.modelcheck.mprog import Mprog
    from harness.modelcheck.search import Stage, search

    def play(vm: Vm, features: Features) -> float:
        stage = Stage(vm, facility := Mprog(features))
        search(stage.play, facility, examples=SEQUENCES, seed=0, folder=bench.trivial / "counterexamples")
        return stage.figures.rate

    base = bench.rig.settings.shape
    return {name: _checked(play, replace(base, append=(*base.append, *append)), bench)}


def races(bench: Workbench) -> Values:
    """Threads race in one machine with two CPUs, and what they saw is explained."""
    from harness.modelcheck import racing

    def run(vm: Vm, features: Features) -> float:
        track = racing.Track(vm, features)
        for race in islice(racing.races(features, 0), RACES):
            track.run(race)
        return track.figures.rate

    return {"races": _checked(run, replace(bench.rig.settings.shape, cpus=2), bench)}


def _checked(play: Callable[[Vm, Features], float], shape: Shape, bench: Workbench) -> float:
    """What `play` returns, with a machine of this shape."""
    from harness.modelcheck.mprog import features_of

    with bench.rig.lease(bench.kernel, shape, own=True) as lease:
        vm = Vm(lease.machine, bench.rig, bench.kernel, shape)
        try:
            features = features_of(vm)
            if features is None:
                raise KernrigError("This kernel has no tcx to compare with the model.")
            return play(vm, features)
        except AssertionError as found:
            raise KernrigError(f"Kernel and model differ: {found}") from found
        finally:
            vm.machine.close()
