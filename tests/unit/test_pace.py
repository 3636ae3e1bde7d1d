# SPDX-License-Identifier: MIT
"""How long to wait for a machine: by what was measured in it, and by whether it still says something."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from harness.deadline import SLOW_FACTOR_VARIABLE, Deadline, DeadlineError
from harness.guest import pace
from harness.vm import boot
from harness.vm.blueprint import Accel, Blueprint
from harness.vm.control import ControlPort
from harness.vm.process import QemuProcess


def blueprint(accel: str) -> Blueprint:
    nothing: Any = None
    return Blueprint(nothing, Accel(accel, "by this test"), nothing, nothing, nothing)


def test_the_work_is_small_and_takes_time() -> None:
    assert 0 < pace.seconds() < 1


@pytest.mark.parametrize(
    ("accel", "measured", "slow", "stretch"),
    [
        ("tcg", 1.0, 8.0, 1.0),
        ("tcg", 24.0, 8.0, 1.0),
        ("tcg", 120.0, 40.0, 5.0),
        ("kvm", 0.9, 1.0, 1.0),
        ("kvm", 6.0, 6.0, 6.0),
    ],
)
def test_a_slow_kernel_gets_more_time_and_a_fast_one_no_less(
    accel: str, measured: float, slow: float, stretch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SLOW_FACTOR_VARIABLE, raising=False)
    assert (blueprint(accel).slow(measured), blueprint(accel).stretch(measured)) == (slow, stretch)
    monkeypatch.setenv(SLOW_FACTOR_VARIABLE, "3")
    assert (blueprint(accel).slow(measured), blueprint(accel).stretch(measured)) == (3 * slow, stretch)


@dataclass
class _Console:
    sizes: list[int]

    def size(self) -> int:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]


@dataclass
class _Guest:
    """A guest that says hello when it was asked so often; its console grows by what `sizes` tell."""

    console: _Console
    silent: int
    asked: list[float] = field(default_factory=list)

    def receive(self, deadline: Deadline) -> dict[str, Any]:
        self.asked.append(deadline.check())
        if len(self.asked) <= self.silent:
            raise deadline.error("nothing")
        return {"hello": 1}


def hello(guest: _Guest) -> dict[str, Any]:
    return boot._hello(cast(ControlPort, guest), cast(QemuProcess, guest), 100.0, "the kernel to boot")


def test_a_boot_may_take_long_as_long_as_it_says_something() -> None:
    guest = _Guest(_Console([10, 20, 20, 30, 30]), silent=2)
    assert hello(guest) == {"hello": 1}
    assert len(guest.asked) == 3


def test_a_silent_boot_is_given_up_at_its_first_deadline() -> None:
    guest = _Guest(_Console([10]), silent=99)
    with pytest.raises(DeadlineError):
        hello(guest)
    assert len(guest.asked) == 1


def test_a_boot_that_never_ends_is_given_up_though_it_talks() -> None:
    guest = _Guest(_Console(list(range(1000))), silent=99)
    with pytest.raises(DeadlineError):
        hello(guest)
    assert len(guest.asked) == 10
