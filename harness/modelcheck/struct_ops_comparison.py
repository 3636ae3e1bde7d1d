# SPDX-License-Identifier: MIT
"""What the guest's player answered about congestion controls against what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.modelcheck.facility import Divergence, name_of, why
from harness.oracle.calls import Call
from harness.oracle.refusal import UNTRIED
from harness.oracle.struct_ops import Features, Look, World
from harness.oracle.struct_ops_calls import OTHER_STRUCT, OTHER_TYPE, PROGRAMS

TYPE = "tcp_congestion_ops"
_TYPES = {OTHER_TYPE: "sched_cls", OTHER_STRUCT: "bpf_dummy_ops"}


def request(calls: Sequence[Call], features: Features) -> dict[str, Any]:
    """The arguments of harness.guest.struct_ops_player:play."""
    world = World(features)
    outcomes = [world.do(call) for call in calls]
    words = {word for call in calls for word in call.to_json().values() if isinstance(word, str)}
    progs = [name for name in PROGRAMS if name in words]
    world.progs.clear()
    return {
        "calls": [call.to_json() for call in calls],
        "progs": {name: _TYPES.get(name, TYPE) for name in progs},
        "untried": [place for place, outcome in enumerate(outcomes) if outcome.errno == UNTRIED],
        "alive": sorted(world.alive_progs() & set(progs)),
    }


def compare(calls: Sequence[Call], features: Features, played: Mapping[str, Any]) -> Divergence | None:
    """The first difference between what was played and the model; None when there is none."""
    world = World(features)
    names = {id: name for name, id in played["ids"].items() if name not in PROGRAMS}
    seen: list[Any] = [[], {}, {}]
    for place, (call, (error, raw)) in enumerate(zip(calls, played["answers"], strict=True)):
        outcome = world.do(call)
        if error != outcome.errno:
            expected = why(outcome.errno, outcome.rule)
            return Divergence(place, f"call {place + 1}, {call}, returns", expected, name_of(error))
        seen = seen if raw is None else raw
        look = world.look()
        for what, model, kernel in (
            ("the registered names are", list(look.available), seen[0]),
            ("(state, refcnt) of maps are", look.maps, {name: tuple(each) for name, each in seen[1].items()}),
            ("(map, hung up) of links are", _links(look), _seen_links(seen[2], names)),
        ):
            if model != kernel:
                return Divergence(place, f"after call {place + 1}, {call}, {what}", str(model), str(kernel))
    return _compare_end(world, played)


def _compare_end(world: World, played: Mapping[str, Any]) -> Divergence | None:
    look = world.look()
    progs = {name: played["ids"][name] for name in PROGRAMS if name in played["ids"]}
    for what, model, kernel in (
        ("values are", _values(world, progs), {name: tuple(each) for name, each in played["values"].items()}),
        ("sockets use", look.socks, played["socks"]),
        ("the default is", look.default, played["default"]),
    ):
        if model != kernel:
            return Divergence(None, f"at the end {what}", str(model), str(kernel))
    world.progs.clear()
    alive = sorted(world.alive_progs() & set(progs))
    if alive != played["alive"]:
        return Divergence(None, "all programs closed, there are still", str(alive), str(played["alive"]))
    if played["left"]:
        return Divergence(None, "everything closed, there are still", "[]", str(played["left"]))
    return None


def _values(world: World, progs: Mapping[str, int]) -> dict[str, tuple[dict[str, int], str]]:
    """What look-ups show besides the head. STOPS-CMD-002, -003: program ids in the place of descriptors."""
    shown: dict[str, tuple[dict[str, int], str]] = {}
    for name, table in world.maps.items():
        if not table.open:
            continue
        if table.value is None:
            shown[name] = ({}, "")
            continue
        bits = {"flags": table.value.bits} if table.value.bits else {}
        shown[name] = (
            {member: progs[prog] for member, prog in table.value.progs.items()} | bits,
            table.value.name,
        )
    return shown


def _links(look: Look) -> dict[str, tuple[str | None, bool]]:
    """STOPS-LINK-021, -023."""
    return {name: (map, map is None) for name, map in look.links.items()}


def _seen_links(raw: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, tuple[str | None, bool]]:
    return {name: (names.get(id, f"?{id}") if id else None, hung) for name, (id, hung) in raw.items()}
