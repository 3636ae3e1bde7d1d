# SPDX-License-Identifier: MIT
"""Ordered lists of programs (tcx, netkit, cgroups) as a facility to be compared with their model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.modelcheck.facility import Divergence, Facility
from harness.modelcheck.mprog_comparison import compare, request
from harness.modelcheck.mprog_listing import KINDS, scenario
from harness.modelcheck.mprog_sequences import PARTS, sequences
from harness.oracle.calls import Call
from harness.oracle.families import Features
from harness.oracle.mprog_calls import Fill
from harness.oracle.world import SPARE

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from harness.vmfixture import Vm

FIRST_SPARE = f"{SPARE}0"


@dataclass(frozen=True)
class Mprog(Facility):
    """Sequences of `harness.oracle.mprog_calls`, whose model is `harness.oracle.world`."""

    player: ClassVar[str] = "harness.guest.mprog_player:play"
    calls: ClassVar[Mapping[str, type[Call]]] = KINDS

    features: Features

    @classmethod
    def on(cls, vm: Vm) -> Self | None:
        features = features_of(vm)
        return None if features is None else cls(features)

    def sequences(self) -> SearchStrategy[tuple[Call, ...]]:
        return sequences(self.features)

    def parts(self) -> Sequence[SearchStrategy[tuple[Call, ...]]]:
        return [sequences(self.features, part) for part in PARTS]

    def request(self, calls: Sequence[Call]) -> dict[str, Any]:
        return request(calls, self.features)

    def compare(self, calls: Sequence[Call], played: Mapping[str, Any]) -> Divergence | None:
        return compare(calls, self.features, played)

    def scenario(self, calls: Sequence[Call]) -> str:
        return scenario(calls, self.features)

    def operations(self, calls: Sequence[Call], played: Mapping[str, Any]) -> int:
        # Every call is followed by a query of its list; a Fill is as many calls as it loads programs.
        names: Mapping[str, int] = played["ids"]
        return len(calls) + sum(name.startswith(SPARE) for name in names)

    def plainer(self, call: Call) -> Iterator[Call]:
        if isinstance(call, Fill) and call.size > 1:
            yield replace(call, size=call.size // 2)
            yield replace(call, size=call.size - 1)
        for name, value in vars(call).items():
            if isinstance(value, str) and value.startswith(SPARE) and value != FIRST_SPARE:
                yield replace(call, **{name: FIRST_SPARE})
        yield from super().plainer(call)


def features_of(vm: Vm) -> Features | None:
    """What the machine's kernel has; None if it has no ordered lists at all."""
    has = {
        name: bool(vm.call("harness.guest.bpf.probe:has", name))
        for name in ("tcx", *Features.__annotations__)
    }
    return Features(**has) if has.pop("tcx") else None
