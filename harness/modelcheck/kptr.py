# SPDX-License-Identifier: MIT
"""Maps that own objects, and programs that move these, as a facility to be compared with its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.modelcheck.facility import Divergence, Facility
from harness.modelcheck.kptr_comparison import compare, request
from harness.modelcheck.kptr_listing import KINDS, scenario
from harness.modelcheck.kptr_sequences import ABOUT, sequences
from harness.oracle.calls import Call
from harness.oracle.kptr import Features

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from harness.vmfixture import Vm


@dataclass(frozen=True)
class Kptr(Facility):
    """Sequences of `harness.oracle.kptr_calls`, whose model is `harness.oracle.kptr`."""

    player: ClassVar[str] = "harness.guest.kptr_player:play"
    weight: ClassVar[int] = 5  # long ones, as the stage takes as long as a hundred calls
    calls: ClassVar[Mapping[str, type[Call]]] = KINDS

    features: Features

    @classmethod
    def on(cls, vm: Vm) -> Self | None:
        found: dict[str, Any] = vm.call("harness.guest.kptr_player:features")
        return cls(Features(**{**found, "kinds": tuple(found["kinds"])})) if found else None

    def sequences(self) -> SearchStrategy[tuple[Call, ...]]:
        return sequences(self.features, ABOUT[0])

    def parts(self) -> Sequence[SearchStrategy[tuple[Call, ...]]]:
        return [sequences(self.features, ops) for ops in ABOUT]

    def request(self, calls: Sequence[Call]) -> dict[str, Any]:
        return request(calls, self.features)

    def compare(self, calls: Sequence[Call], played: Mapping[str, Any]) -> Divergence | None:
        return compare(calls, self.features, played)

    def operations(self, calls: Sequence[Call], played: Mapping[str, Any]) -> int:  # noqa: ARG002
        return len(played["answers"])

    def scenario(self, calls: Sequence[Call]) -> str:
        return scenario(calls, self.features)
