# SPDX-License-Identifier: MIT
"""What the guest's player answered about owned objects against what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.guest.kptr_mover import Place, Places
from harness.guest.kptr_player import template_row
from harness.modelcheck.facility import Divergence, name_of, why
from harness.oracle.calls import Call
from harness.oracle.kptr import Features, Look, World
from harness.oracle.kptr_calls import Load
from harness.oracle.refusal import UNTRIED


def request(calls: Sequence[Call], features: Features) -> dict[str, Any]:
    """The arguments of harness.guest.kptr_player:play."""
    world = World(features)
    outcomes, expected = [], []
    loaded: set[Places] = set()
    for call in calls:
        outcomes.append(world.do(call))
        if isinstance(call, Load) and not outcomes[-1].errno:
            loaded.add(_places(call, world))
        expected.append(world.look().numbers())
    return {
        "calls": [call.to_json() for call in calls],
        "untried": [place for place, outcome in enumerate(outcomes) if outcome.errno == UNTRIED],
        "expected": expected,
        "deferred": [place for place, outcome in enumerate(outcomes) if outcome.deferred],
        "templates": [template_row(places) for places in loaded],
    }


def _places(call: Load, world: World) -> Places:
    first, second = world.maps[call.map], world.maps[call.other]
    return (
        Place(first.kind_name, call.field, first.inner or ""),
        Place(second.kind_name, call.other_field, second.inner or ""),
    )


def compare(calls: Sequence[Call], features: Features, played: Mapping[str, Any]) -> Divergence | None:
    """The first difference between what was played and the model; None when there is none."""
    world = World(features)
    for place, (call, (error, result, numbers)) in enumerate(zip(calls, played["answers"], strict=False)):
        outcome = world.do(call)
        if error != outcome.errno:
            model = why(outcome.errno, outcome.rule)
            return Divergence(place, f"call {place + 1}, {call}, returns", model, name_of(error))
        if result != outcome.result:
            what = f"call {place + 1}, {call}, brings"
            return Divergence(place, what, str(outcome.result), str(result))
        look = world.look()
        if numbers is not None and numbers != look.numbers():
            what = f"after call {place + 1}, {call}, there are"
            return Divergence(place, what, str(look), _shown(numbers))
    if played["left"] != [[]]:
        what = "everything closed, there are still [maps and programs], references, objects alive, users"
        return Divergence(None, what, "[[]]", str(played["left"]))
    return None


def _shown(numbers: Sequence[int]) -> str:
    names = [field.name for field in fields(Look)]
    refs = len(numbers) - len(names) + 1
    return str(Look(tuple(numbers[:refs]), *numbers[refs:]))
