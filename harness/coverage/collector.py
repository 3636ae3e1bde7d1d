# SPDX-License-Identifier: MIT
"""Counters are taken from each machine when its scenario is over, and added up.

A clone begins with the counts of its template. They are asked of a clone that has done nothing, once for each shape,
and subtracted, so that a sum holds what the scenarios did. What a machine counts that dies with its scenario is lost.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.coverage.counters import Counters
from harness.coverage.profiled import Profiled, check
from harness.deadline import Deadline
from harness.errors import KernrigError
from harness.vm.machine import Machine, MachineLostError

if TYPE_CHECKING:
    from harness.rig import Rig
    from harness.vm.shape import Shape

READ_SECONDS = 30.0
_READER = "harness.guest.coverage:read"
# Goes the way of a scenario through the agent, but does nothing.
_NOTHING = "builtins:int"
# Of a machine that is gone, hangs or is otherwise in no state to answer.
_UNABLE = (KernrigError, MachineLostError, OSError)

Start = Mapping[str, Counters]
"""What a machine had counted when it was given to a scenario, by object."""


@dataclass
class Sums:
    """What was counted: by the scenarios, and by machines `before` them (while they were booted and made ready).
    `machines` gave their counters; `lost` says of each of the others why it did not."""

    scenarios: dict[str, Counters] = field(default_factory=dict)
    before: dict[str, Counters] = field(default_factory=dict)
    machines: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, start: Start, end: Mapping[str, Counters]) -> None:
        """One machine's counters, when it began and at the end."""
        self.machines += 1
        for name, counters in end.items():
            new = counters - start[name] if name in start else counters
            _add(self.scenarios, name, new)

    def add_before(self, start: Start) -> None:
        """What machines of one kind count before any scenario."""
        for name, counters in start.items():
            _add(self.before, name, counters)

    def pack(self) -> dict[str, Any]:
        """The sums as plain values, for a worker to send."""
        return {
            "scenarios": {name: each.pack() for name, each in self.scenarios.items()},
            "before": {name: each.pack() for name, each in self.before.items()},
            "machines": self.machines,
            "lost": self.lost,
        }

    def add_packed(self, packed: Mapping[str, Any]) -> None:
        """Add what a worker has sent."""
        for name, data in packed["scenarios"].items():
            _add(self.scenarios, name, Counters.parse(data))
        for name, data in packed["before"].items():
            _add(self.before, name, Counters.parse(data))
        self.machines += packed["machines"]
        self.lost += packed["lost"]


def _add(sums: dict[str, Counters], name: str, counters: Counters) -> None:
    sums[name] = sums[name] + counters if name in sums else counters


class Collector:
    """Takes the counters of the files that were asked for, from the machines of one pytest process."""

    def __init__(self, rig: Callable[[], Rig], asked: tuple[str, ...]) -> None:
        self._rig = rig
        self.asked = asked
        self.sums = Sums()
        self._profiled: Profiled | None = None
        self._files: tuple[str, ...] = ()
        self._names: dict[str, str] = {}
        self._starts: dict[Shape, Start] = {}

    def profiled(self) -> Profiled:
        """What the run's kernel counts. Raises KernrigError when there are several kernels, this one counts nothing, or
        not the files that were asked for."""
        if self._profiled is None:
            kernels = self._rig().settings.kernels
            if len(kernels) != 1:
                raise KernrigError(
                    "lines of one kernel at a time are counted",
                    hint="give one --kr-kernel with --kr-coverage",
                )
            check(kernels[0])
            profiled = Profiled.of(self._rig().kernel(kernels[0]))
            self._files = profiled.files(self.asked)
            objects = profiled.objects_with(self._files)
            self._names = {profiled.counters(name): name for name in objects}
            self._profiled = profiled
        return self._profiled

    @property
    def files(self) -> tuple[str, ...]:
        """The source files that were asked for, directories replaced by what is in them."""
        self.profiled()
        return self._files

    def prepare(self, shape: Shape) -> None:
        """Ask a clone of that shape what its template has counted, if nobody has; to be called while no machine is
        held. Raises what making a machine raises."""
        rig = self._rig()
        if rig.settings.isolation != "clone" or shape in self._starts:
            return
        self.profiled()
        with rig.lease(rig.settings.kernels[0], shape) as lease:
            for _ in lease.machine.job(_call(_NOTHING), deadline=_deadline()):
                pass
            self._starts[shape] = self._read(lease.machine)
        self.sums.add_before(self._starts[shape])

    def begin(self, machine: Machine, shape: Shape | None) -> Start:
        """What the machine has counted before its scenario: `shape` is that of a fresh clone, None for a machine of
        another kind, which is asked."""
        if shape is not None and shape in self._starts:
            return self._starts[shape]
        try:
            start = self._read(machine)
        except _UNABLE:
            return {}
        self.sums.add_before(start)
        return start

    def take(self, machine: Machine, start: Start) -> None:
        """Add what the machine has counted since. Never raises for a machine that is gone, or too ill to answer."""
        try:
            if machine.ended():
                raise MachineLostError("it ended with its scenario")
            end = self._read(machine)
        except _UNABLE as error:
            self.sums.lost.append(str(error))
        else:
            self.sums.add(start, end)

    def _read(self, machine: Machine) -> dict[str, Counters]:
        self.profiled()
        found: dict[str, Counters] = {}
        for message in machine.job(_call(_READER, sorted(self._names)), deadline=_deadline()):
            if message["type"] == "error":
                raise KernrigError(f"the counters could not be read: {message['text']}")
            if message["type"] == "result":
                for path, text in message["value"].items():
                    data = zlib.decompress(base64.b64decode(text))
                    found[self._names[path]] = Counters.parse(data)
        return found


def _call(target: str, *arguments: object) -> dict[str, Any]:
    return {"op": "call", "target": target, "args": list(arguments), "kwargs": {}}


def _deadline() -> Deadline:
    return Deadline.after(READ_SECONDS, "the kernel's counters")
