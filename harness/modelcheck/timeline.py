# SPDX-License-Identifier: MIT
"""Tells a reader why a concurrent history has no explanation: what it takes of it, and a time line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields, replace

from harness.guest.bpf import uapi
from harness.modelcheck.facility import why
from harness.modelcheck.history import Answer, Operation
from harness.modelcheck.linearise import Contradiction, Stuck, TooManyOrders, explain
from harness.oracle.calls import Call
from harness.oracle.families import HOOKS
from harness.oracle.mprog import View
from harness.oracle.world import World

SECONDS = 20.0
EXPLAINED_SHOWN = 8
STATES_SHOWN = 3
BAR = 40
SLOTS_SHOWN = 5
FLAGS = ("REPLACE", "BEFORE", "AFTER", "ID", "LINK", "ALLOW_MULTI", "ALLOW_OVERRIDE", "PREORDER")


def shortened(found: Contradiction, world: World, *, seconds: float = SECONDS) -> Contradiction:
    """The same contradiction with less around it: nothing later than it, and of the readers and refused calls only
    those without which there would be an explanation. Calls that changed something have to stay: their effect shows.
    """
    end = time.monotonic() + seconds
    history = [each for each in found.history if each.invoked <= found.operation.returned]
    # What was under way at the end of what is left need not have returned.
    history = [
        replace(each, returned=math.inf)
        if each.returned > found.operation.returned and not each.harmless
        else each
        for each in history
        if each.returned <= found.operation.returned or not each.harmless
    ]
    best = _contradiction(history, world) or found
    size = max(len(best.history) // 2, 1)
    while size:
        progress = False
        for start in range(len(best.history) - size, -1, -size):
            if time.monotonic() > end:
                return best
            rest = [
                each
                for place, each in enumerate(best.history)
                if not start <= place < start + size or not each.harmless
            ]
            if len(rest) < len(best.history) and (again := _contradiction(rest, world)):
                best, progress = again, True
                break
        if not progress:
            size //= 2
    return best


def _contradiction(history: Sequence[Operation], world: World) -> Contradiction | None:
    try:
        found = explain(history, world)
    except TooManyOrders:
        return None
    return found if isinstance(found, Contradiction) else None


def told(found: Contradiction) -> str:
    """The contradiction in words, with a time line of the calls about where it is."""
    start = min(each.invoked for each in found.history)
    lines = [
        f"No serial order of the calls explains this history of {len(found.history)} operations. The first that",
        f"has no place in any order: {_said(found.operation, start)}",
        "",
    ]
    for number, state in enumerate(found.states[:STATES_SHOWN], 1):
        lines.append(
            f"State {number} of {len(found.states)} that were reached, {len(state.explained)} operations being "
            f"explained: {_lists(state.world)}"
        )
        lines += [
            f"  {operation.thread}: {brief(operation.call)}: {_answered(operation.answer)}; "
            f"the model says {_answered(expected)}"
            for operation, expected in state.pending
        ]
    lines += ["", "The last that were explained, in order, then what has no place (ms since the start):"]
    return "\n".join([*lines, *timeline(found.states[0], start)]) + "\n"


def timeline(state: Stuck, start: float) -> list[str]:
    """One line for each operation, in the order of the explanation, with a bar that shows when it was under way, and
    with what came of it if it changed something."""
    explained = state.explained[-EXPLAINED_SHOWN:]
    operations = [*(each for each, _ in explained), *(each for each, _ in state.pending)]
    begin = min(each.invoked for each in operations)
    end = max((each.returned for each in operations if each.returned < math.inf), default=begin)
    scale = BAR / max(end - begin, 1)

    def line(each: Operation) -> str:
        left = min(int((each.invoked - begin) * scale), BAR - 1)
        right = min(max(int((min(each.returned, end) - begin) * scale), left + 1), BAR)
        return f"  {(' ' * left + '=' * (right - left)).ljust(BAR)}| {_said(each, start)}"

    return [
        *(line(each) + ("" if each.harmless else f" -> {_lists(world)}") for each, world in explained),
        "  " + "-" * (BAR + 20),
        *(line(each) for each, _ in state.pending),
    ]


def _said(operation: Operation, start: float) -> str:
    begin, end = ((moment - start) / 1e6 for moment in (operation.invoked, operation.returned))
    until = "      .." if end == math.inf else f"{end:8.3f}"
    return (
        f"{begin:8.3f} - {until}  {operation.thread}: {brief(operation.call)}: {_answered(operation.answer)}"
    )


def brief(call: Call) -> str:
    """The call on one line, without what is at its default."""
    words = [call.op if hasattr(call, "op") else type(call).__name__.strip("_").lower()]
    for each in fields(call):
        value = getattr(call, each.name)
        if isinstance(value, Call):
            words.append(f"({brief(value)})")
        elif each.name == "flags" and value:
            words.append(_flags(value))
        elif value != each.default and each.name != "op":
            words.append(
                str(value) if each.name in ("hook", "prog", "link", "name") else f"{each.name}={value}"
            )
    return " ".join(words)


def _flags(value: int) -> str:
    names = [name for name in FLAGS if value & getattr(uapi, f"BPF_F_{name}")]
    rest = value & ~sum(getattr(uapi, f"BPF_F_{name}") for name in names)
    return "|".join([*names, *([f"{rest:#x}"] if rest else [])])


def _answered(answer: Answer) -> str:
    if answer.errno:
        return why(answer.errno, answer.rule)
    match answer.seen:
        case None:
            return "success"
        case View() as view:
            return f"revision {view.revision}, {_elements(view.progs, view.links)}"
        case tuple() as progs:
            return f"met {_elements(progs, None)}"
    return str(answer.seen)


def _elements(progs: Sequence[str], links: Sequence[str | None] | None) -> str:
    owners = links if links is not None else [None] * len(progs)
    shown = [f"{prog}({link})" if link else prog for prog, link in zip(progs, owners, strict=False)]
    if len(shown) > 2 * SLOTS_SHOWN:
        shown[SLOTS_SHOWN:-SLOTS_SHOWN] = [f"... {len(shown) - 2 * SLOTS_SHOWN} more ..."]
    return f"[{' '.join(shown)}]"


def _lists(world: World) -> str:
    shown = [
        f"{name}: {_answered(Answer(seen=world.view(name)))}"
        for name in HOOKS
        if name in world.entries or name in world.groups
    ]
    return "; ".join(shown) or "nothing attached"
