# SPDX-License-Identifier: MIT
from __future__ import annotations

import time

import pytest

from harness.errors import KernrigError
from harness.guest.waiting import WaitTimeout, slow_factor, wait_until


def test_a_true_value_is_returned_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("slept"))
    assert wait_until(lambda: [7], timeout=1, what="a list") == [7]


def test_the_predicate_is_asked_until_it_holds() -> None:
    answers = iter([0, None, "", "here"])
    assert wait_until(lambda: next(answers), timeout=5, what="a word") == "here"


def test_the_error_names_the_wait_the_deadline_and_the_last_value() -> None:
    with pytest.raises(WaitTimeout, match=r"deadline 0\.01 s\) for the moon to rise; last seen: 0") as caught:
        wait_until(lambda: 0, timeout=0.01, what="the moon to rise")
    assert caught.value.last == 0


def test_the_predicate_is_asked_once_more_after_a_machine_that_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def stand_still(_: float) -> None:
        clock[0] += 100

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", stand_still)
    assert wait_until(lambda: clock[0] > 50, timeout=1, what="it") is True


def test_pauses_grow_but_stay_short(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(WaitTimeout):
        wait_until(lambda: False, timeout=1, what="nothing")
    assert pauses[0] < 0.001
    assert pauses[1] == 2 * pauses[0]
    assert max(pauses) == 0.05
    assert sum(pauses) == pytest.approx(1)


def test_deadlines_are_scaled_for_slow_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNRIG_SLOW", "3")
    with pytest.raises(WaitTimeout, match=r"deadline 0\.03 s"):
        wait_until(lambda: False, timeout=0.01, what="it")


@pytest.mark.parametrize(("text", "factor"), [("", 1.0), ("0.2", 1.0), ("20", 20.0)])
def test_the_factor_is_at_least_one(monkeypatch: pytest.MonkeyPatch, text: str, factor: float) -> None:
    monkeypatch.setenv("KERNRIG_SLOW", text)
    assert slow_factor() == factor


@pytest.mark.parametrize("text", ["slow", "-1", "0", "inf", "nan"])
def test_a_factor_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("KERNRIG_SLOW", text)
    with pytest.raises(KernrigError, match="KERNRIG_SLOW"):
        slow_factor()
