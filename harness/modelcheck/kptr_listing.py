# SPDX-License-Identifier: MIT
"""A sequence of calls about owned objects as the text of a scenario for scenarios/kptr."""

from __future__ import annotations

from collections.abc import Sequence

from harness.modelcheck.facility import by_op, name_of
from harness.oracle import kptr_calls as all_calls
from harness.oracle.calls import Call
from harness.oracle.kptr import Features, World
from harness.oracle.refusal import UNTRIED

KINDS = by_op(all_calls)

_HEAD = """\
from harness.guest.kptr_player import Player
from harness.guest.playing import settled


def test_as_the_model_says() -> None:
    with Player() as kernel:
"""


def scenario(calls: Sequence[Call], features: Features) -> str:
    """The imports and a test function that makes the calls and asserts what the model says: errno and result, then
    references to the static objects, counters and users of the module where they change."""
    world = World(features)
    lines = []
    before = world.look().numbers()
    for call in calls:
        outcome = world.do(call)
        if outcome.errno == UNTRIED:
            lines.append(f"# {outcome.rule}: {call}")
            continue
        why = f"  # {name_of(outcome.errno)}, {outcome.rule}" if outcome.errno else ""
        answer = (outcome.errno, outcome.result)
        lines.append(f"assert kernel.do({call.to_json()}) == {answer}{why}")
        numbers = world.look().numbers()
        if outcome.deferred:
            lines.append(f"assert settled(kernel.look, {numbers}.__eq__, 1) == {numbers}")
        elif numbers != before:
            lines.append(f"assert kernel.look() == {numbers}")
        before = numbers
    body = "".join(f"        {line}\n" for line in lines or ["pass"])
    return _HEAD + body
