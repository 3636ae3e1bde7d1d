# SPDX-License-Identifier: MIT
"""Congestion controls made of BPF programs as a facility to be compared with its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.modelcheck.facility import Divergence, Facility
from harness.modelcheck.struct_ops_comparison import compare, request
from harness.modelcheck.struct_ops_listing import KINDS, scenario
from harness.modelcheck.struct_ops_sequences import sequences
from harness.oracle.calls import Call
from harness.oracle.struct_ops import Features

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from harness.vmfixture import Vm


@dataclass(frozen=True)
class StructOps(Facility):
    """Sequences of `harness.oracle.struct_ops_calls`, whose model is `harness.oracle.struct_ops`."""

    player: ClassVar[str] = "harness.guest.struct_ops_player:play"
    weight: ClassVar[int] = 3  # RCU-tasks grace periods, for which the next one waits
    calls: ClassVar[Mapping[str, type[Call]]] = KINDS

    features: Features

    @classmethod
    def on(cls, vm: Vm) -> Self | None:
        found: dict[str, Any] = vm.call("harness.guest.struct_ops_player:features")
        if vm.dirty:
            vm.renew()  # see `features`
        return cls(Features(**{**found, "members": tuple(found["members"])})) if found else None

    def sequences(self) -> SearchStrategy[tuple[Call, ...]]:
        return sequences(self.features)

    def request(self, calls: Sequence[Call]) -> dict[str, Any]:
        return request(calls, self.features)

    def compare(self, calls: Sequence[Call], played: Mapping[str, Any]) -> Divergence | None:
        return compare(calls, self.features, played)

    def scenario(self, calls: Sequence[Call]) -> str:
        return scenario(calls, self.features)
