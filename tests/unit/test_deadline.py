# SPDX-License-Identifier: MIT
from __future__ import annotations

import time

import pytest

from harness.deadline import Deadline, DeadlineError, slow_factor


@pytest.mark.parametrize(
    ("text", "factor"), [("3", 3.0), ("2.5", 2.5), ("0.1", 1.0), ("soon", 1.0), ("", 1.0)]
)
def test_slow_factor_never_hurries(text: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNRIG_SLOW", text)
    assert slow_factor() == factor


def test_only_what_depends_on_the_guest_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNRIG_SLOW", "4")
    assert Deadline.after(10, "x").seconds == 40
    assert Deadline.after(10, "x", scaled=False).seconds == 10


def test_time_left() -> None:
    deadline = Deadline.after(50, "x", scaled=False)
    assert 49 < deadline.remaining() <= 50
    assert 49 < deadline.check() <= 50
    assert not deadline.passed()


def test_passed_deadline_says_what_was_waited_for() -> None:
    deadline = Deadline("the kernel to boot", 12, time.monotonic() - 1)
    assert deadline.passed()
    assert deadline.remaining() == 0
    with pytest.raises(DeadlineError, match=r"^waited 12 s for the kernel to boot: it is silent$"):
        deadline.check("it is silent")
    assert isinstance(deadline.error(), TimeoutError)
