# SPDX-License-Identifier: MIT
"""What it takes to compare one facility of the kernel with its model: the search knows nothing else of it."""

from __future__ import annotations

import errno as errno_numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.oracle import calls as shared_calls
from harness.oracle.calls import Call
from harness.oracle.refusal import ENOTSUPP, UNTRIED

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from harness.vmfixture import Vm


@dataclass(frozen=True)
class Divergence:
    """Where kernel and model part: the call's place in the sequence (None: at the end), and both sides in words."""

    place: int | None
    what: str
    model: str
    kernel: str

    def __str__(self) -> str:
        return f"{self.what}\n  model:  {self.model}\n  kernel: {self.kernel}"


class Facility(ABC):
    """A model, as this kernel has it, and the player in the guest that carries out the same calls."""

    # The function of the guest that plays a sequence: "module:function".
    player: ClassVar[str]
    # How many examples one sequence counts for: some take longer than others, to draw, to play, and to clean up.
    weight: ClassVar[int] = 1
    # The calls by their `op`.
    calls: ClassVar[Mapping[str, type[Call]]]

    @classmethod
    @abstractmethod
    def on(cls, vm: Vm) -> Self | None:
        """As the machine's kernel has it; None if it lacks it."""

    @abstractmethod
    def sequences(self) -> SearchStrategy[tuple[Call, ...]]:
        """Random calls."""

    def parts(self) -> Sequence[SearchStrategy[tuple[Call, ...]]]:
        """The same, by what they are about: a search does as much of each. Left to hypothesis, which likes to vary the
        end of what it drew before, some would hardly come up."""
        return (self.sequences(),)

    @abstractmethod
    def request(self, calls: Sequence[Call]) -> dict[str, Any]:
        """The player's arguments."""

    @abstractmethod
    def compare(self, calls: Sequence[Call], played: Mapping[str, Any]) -> Divergence | None:
        """The first difference between what the player told and the model; None when there is none."""

    @abstractmethod
    def scenario(self, calls: Sequence[Call]) -> str:
        """A test function that makes the calls and asserts what the model says, with its imports."""

    def operations(self, calls: Sequence[Call], played: Mapping[str, Any]) -> int:  # noqa: ARG002
        """How many operations that were; each is compared with what the model says."""
        return len(calls)

    def plainer(self, call: Call) -> Iterator[Call]:
        """The call with one operand at its default, or without one flag."""
        for each in fields(call):
            value = getattr(call, each.name)
            if value == each.default or each.name in ("op", "hook", "count", "size"):
                continue
            if each.name == "flags":
                for bit in [1 << bit for bit in range(32) if value >> bit & 1]:
                    yield replace(call, **{each.name: value & ~bit})
            elif each.default in (None, 0):
                yield replace(call, **{each.name: each.default})


def by_op(module: ModuleType) -> dict[str, type[Call]]:
    """The calls that a module defines, and those that all facilities know."""
    kinds = [
        kind
        for each in (shared_calls, module)
        for kind in vars(each).values()
        if isinstance(kind, type) and issubclass(kind, Call) and kind.__module__ == each.__name__
    ]
    return {kind.op: kind for kind in kinds if kind is not Call}


def from_json(data: Sequence[Mapping[str, Any]], calls: Mapping[str, type[Call]]) -> tuple[Call, ...]:
    """The calls that `Call.to_json` described. Raises KeyError, TypeError for what is none."""
    made = []
    for row in data:
        fields = dict(row)
        made.append(calls[fields.pop("op")](**fields))
    return tuple(made)


def name_of(error: int) -> str:
    """What a call returned, in words: the errno's name; a negative number is one that is no errno."""
    odd = {0: "success", UNTRIED: "(not tried)", ENOTSUPP: "ENOTSUPP"}
    return odd.get(error) or errno_numbers.errorcode.get(error, str(abs(error)))


def why(error: int, rule: str) -> str:
    """What a model returned, in words, and by which rule."""
    return f"{name_of(error)} by {rule}" if rule else name_of(error)
