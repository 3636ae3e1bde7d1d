# SPDX-License-Identifier: MIT
"""Looks for a sequence of calls on which kernel and model differ, and shrinks it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from harness.cache import digest
from harness.deadline import DeadlineError
from harness.modelcheck.facility import Divergence, Facility, from_json
from harness.modelcheck.shrinking import Play, shortest
from harness.oracle.calls import Call
from harness.vm.machine import MachineLostError
from harness.vmfixture import GuestError

if TYPE_CHECKING:
    from harness.vmfixture import Vm

# A sequence takes a tenth of a second when nothing else runs.
PLAY_SECONDS = 30.0


@dataclass
class Figures:
    """How much was compared: sequences, operations in them, seconds from the first to the last of them all, and
    seconds that the operations themselves took in the guest."""

    sequences: int = 0
    operations: int = 0
    seconds: float = 0.0
    guest_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second, all included."""
        return self.operations / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        inner = self.operations / self.guest_seconds if self.guest_seconds else 0.0
        rates = f"{self.rate:.0f} a second ({inner:.0f} while a sequence is played)"
        return f"{self.sequences} sequences, {self.operations} operations, {rates}"


@dataclass
class Stage:
    """The machine on which sequences are played; replaced when a sequence has left it dirty or dead."""

    vm: Vm
    facility: Facility
    figures: Figures = field(default_factory=Figures)
    begin: float = 0.0

    def play(self, calls: Sequence[Call]) -> Divergence | None:
        """Play one sequence on a fresh stage; where kernel and model differ, if they do."""
        self.begin = self.begin or time.monotonic()
        try:
            played: dict[str, Any] = self.vm.call(
                self.facility.player, **self.facility.request(calls), seconds=PLAY_SECONDS
            )
        except (MachineLostError, GuestError, DeadlineError) as error:
            self.vm.renew()
            return Divergence(None, "the sequence", "comes to an end", f"{type(error).__name__}: {error}")
        self.figures.sequences += 1
        self.figures.operations += self.facility.operations(calls, played)
        self.figures.guest_seconds += played["seconds"]
        found = self.facility.compare(calls, played)
        if self.vm.dirty:
            self.vm.renew()
            found = found or Divergence(None, "the sequence leaves in the guest", "nothing", "something")
        self.figures.seconds = time.monotonic() - self.begin
        return found


def replay(folder: Path, play: Play, facility: Facility) -> None:
    """Play the kept counterexamples, the files FOLDER/*.json. Raises AssertionError when one still is one."""
    __tracebackhide__ = True
    for file in sorted(folder.glob("*.json")):
        calls = from_json(json.loads(file.read_text()), facility.calls)
        if found := play(calls):
            raise AssertionError(_told(calls, found, facility, file))


def search(play: Play, facility: Facility, *, examples: int, seed: int, folder: Path) -> None:
    """Play random sequences for so many examples, and before them what an earlier search has left in the folder.

    Raises AssertionError with the shortest sequence found on which kernel and model differ; it is then kept there.
    """
    __tracebackhide__ = True
    replay(folder, play, facility)
    try:
        hunt(play, facility, examples=examples, seed=seed)
    except Found as end:
        calls, found = shortest(end.calls, end.divergence, play, facility.plainer)
        raise AssertionError(_told(calls, found, facility, _keep(calls, folder))) from None


def check(vm: Vm, kind: type[Facility], kept: Path, found: Path) -> Figures | None:
    """Compare the machine's kernel with the model as the user's settings say: first the sequences in the two folders,
    `kept` for good and `found` by earlier runs, then random ones. What was compared; None if the kernel lacks the
    facility. Raises AssertionError as `search` does."""
    __tracebackhide__ = True
    facility = kind.on(vm)
    if facility is None:
        return None
    stage = Stage(vm, facility)
    replay(kept, stage.play, facility)
    settings = vm.settings
    search(stage.play, facility, examples=settings.examples, seed=settings.seed, folder=found)
    return stage.figures


def hunt(play: Play, facility: Facility, *, examples: int, seed: int) -> None:
    """Play random sequences for so many examples, as much of each part of the facility. Raises Found at the first on
    which kernel and model differ."""
    parts = facility.parts()
    share = max(1, examples // facility.weight // len(parts))
    for number, part in enumerate(parts):
        _hunt(play, part, share, seed * len(parts) + number)


def _hunt(play: Play, strategy: SearchStrategy[tuple[Call, ...]], examples: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def kernel_agrees_with_model(calls: tuple[Call, ...]) -> None:
        if found := play(calls):
            raise Found(calls, found)

    kernel_agrees_with_model()


class Found(Exception):
    """A sequence on which kernel and model differ, and how."""

    def __init__(self, calls: Sequence[Call], divergence: Divergence) -> None:
        super().__init__(str(divergence))
        self.calls = calls
        self.divergence = divergence


def _keep(calls: Sequence[Call], folder: Path) -> Path:
    text = "[\n" + ",\n".join(json.dumps(call.to_json()) for call in calls) + "\n]\n"
    file = folder / f"{digest(text)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def _told(calls: Sequence[Call], found: Divergence, facility: Facility, file: Path) -> str:
    return (
        f"kernel and model differ on a sequence of {len(calls)} calls: {found}\n\n"
        f"As a scenario that expects what the model says:\n\n{facility.scenario(calls)}\n"
        f"It is played first from now on: {file}\n"
    )
