# SPDX-License-Identifier: MIT
"""What the guest's player answered against what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.modelcheck.facility import Divergence, name_of, why
from harness.oracle.calls import Call
from harness.oracle.families import HOOKS, Features, Hook
from harness.oracle.mprog import View
from harness.oracle.mprog_calls import LinkCreate, Query, named_by
from harness.oracle.objects import PROGRAMS
from harness.oracle.world import LinkInfo, Outcome, World


def request(calls: Sequence[Call], features: Features) -> dict[str, Any]:
    """The arguments of harness.guest.mprog_player:play."""
    world = World(features)
    for call in calls:
        world.do(call)
    words = {word for call in calls for word in call.to_json().values() if isinstance(word, str)}
    for name in world.objects.progs:
        if world.objects.progs[name].open:
            world.objects.close_prog(name)
    loaded = words | {name for name in world.objects.progs if name not in PROGRAMS}
    return {
        "calls": [call.to_json() for call in calls],
        "hooks": {name: (hook.target, hook.attach_number) for name, hook in _used(calls).items()},
        "progs": {name: type for name, type in PROGRAMS.items() if name in words},
        "alive": sorted(world.alive_progs() & loaded),
    }


def _used(calls: Sequence[Call]) -> dict[str, Hook]:
    used = {name for call in calls if (name := getattr(call, "hook", None))}
    # A device that is only configured needs to be there, too.
    devices = {name for call in calls if (name := getattr(call, "device", None))}
    used |= {name for name in ("in", "other", "primary", "not_primary") if HOOKS[name].target in devices}
    return {name: hook for name, hook in HOOKS.items() if name in used}


def compare(calls: Sequence[Call], features: Features, played: Mapping[str, Any]) -> Divergence | None:
    """The first difference between what was played and the model; None when there is none."""
    world = World(features)
    names = Names(calls, played["ids"])
    for place, (call, (error, raw)) in enumerate(zip(calls, played["answers"], strict=True)):
        hook = hook_of(call, world)
        outcome = world.do(call)
        if error != outcome.errno:
            model = why(outcome.errno, outcome.rule)
            return Divergence(place, f"call {place + 1}, {call}, returns", model, _told(error))
        seen = outcome if isinstance(call, Query) else _look(world, hook)
        if found := _differ(seen, raw, names):
            return Divergence(place, f"after call {place + 1}, {call}, a query of {hook} shows", *found)
    return _compare_end(world, played, names)


def _compare_end(world: World, played: Mapping[str, Any], names: Names) -> Divergence | None:
    for hook, raw in played["views"].items():
        if found := _differ(_look(world, hook), raw, names):
            return Divergence(None, f"at the end a query of {hook} shows", *found)
    links = {name: LinkInfo(names.prog(id), attached) for name, (id, attached) in played["links"].items()}
    if links != world.link_infos():
        return Divergence(None, "at the end the links are", str(world.link_infos()), str(links))
    loaded = set(played["ids"])
    for name in [name for name, prog in world.objects.progs.items() if prog.open]:
        world.objects.close_prog(name)
    alive = sorted(world.alive_progs() & loaded)
    if alive != played["alive"]:
        return Divergence(None, "all programs closed, there are still", str(alive), str(played["alive"]))
    defunct = {name: LinkInfo(info.prog, False) for name, info in world.link_infos().items()}
    links = {name: LinkInfo(names.prog(id), attached) for name, (id, attached) in played["defunct"].items()}
    if links != defunct:
        return Divergence(None, "all devices and cgroups removed, the links are", str(defunct), str(links))
    if played["left"]:
        return Divergence(None, "everything closed, there are still", "[]", str(played["left"]))
    return None


def hook_of(call: Call, world: World) -> str | None:
    """The hook that the call is about, that of its link if it names one; ask before the call is done."""
    if hook := getattr(call, "hook", None):
        return str(hook)
    link = world.objects.links.get(named_by(call))
    return link.hook if link else None


def _look(world: World, hook: str | None) -> Outcome | None:
    return world.do(Query(hook)) if hook else None


def _differ(outcome: Outcome | None, raw: Sequence[Any] | None, names: Names) -> tuple[str, str] | None:
    """(model, kernel) in words, if they differ."""
    if outcome is None or raw is None:
        return None
    error = raw[0]
    if error != outcome.errno:
        return why(outcome.errno, outcome.rule), _told(error)
    if outcome.view is None:
        return None
    view = view_of(raw, names)
    return None if view == outcome.view else (str(outcome.view), str(view))


def view_of(raw: Sequence[Any], names: Names) -> View:
    """What a player told of a query, in terms of names."""
    error, revision, count, flags, progs, links = raw
    return View(
        revision,
        count,
        flags,
        tuple(names.prog(id) for id in progs),
        None if links is None else tuple(names.link(id) for id in links),
        error,
    )


class Names:
    """The names of ids; "?7" for one that no name has got. The calls tell which are links."""

    def __init__(self, calls: Sequence[Call], ids: Mapping[str, int]) -> None:
        links = {call.link for call in calls if isinstance(call, LinkCreate)}
        self._links = {id: name for name, id in ids.items() if name in links}
        self._progs = {id: name for name, id in ids.items() if name not in links}

    def prog(self, id: int) -> str:
        """The program's name."""
        return self._progs.get(id, f"?{id}")

    def link(self, id: int) -> str | None:
        """The link's name; None for id 0."""
        return self._links.get(id, f"?{id}") if id else None


def _told(error: int) -> str:
    """The errno's name; what the player says of an array that was written behind its end."""
    return "success, but written behind the end of an array" if error == -1 else name_of(error)
