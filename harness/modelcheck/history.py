# SPDX-License-Identifier: MIT
"""What several threads did at once: operations with their times and answers, and what each may have been in a model.

The kernel serialises changes and queries of a list by a lock (RTNL, for cgroups cgroup_mutex), so each has its effect
at one moment between invocation and return, with one exception: closing a link. Its descriptor goes first, the id
next, the element last, and only when no other call holds the link (kernel/bpf/syscall.c:bpf_link_put_direct,
bpf_link_free; kernel/bpf/mprog.c:bpf_mprog_tuple_put, which leaves it to a work queue). Where a call that names the
link overlaps its close, `steps` takes that apart.
"""

from __future__ import annotations

import errno
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from harness.guest.bpf.uapi import BPF_F_ID, BPF_F_LINK, BPF_F_REPLACE
from harness.oracle.calls import CLOSED, Call, Close
from harness.oracle.families import CGROUP_PARENT, HOOKS
from harness.oracle.mprog import View
from harness.oracle.mprog_calls import Attach, LinkCreate, LinkDetach, LinkUpdate, Query
from harness.oracle.world import LinkInfo, World

KERNEL = "kernel"


@dataclass(frozen=True)
class Frame(Call):
    """A frame that met the programs of a hook, each of which let it go on: a reader of the list, without the lock."""

    op: ClassVar[str] = "frame"
    hook: str


@dataclass(frozen=True)
class Info(Call):
    """BPF_OBJ_GET_INFO_BY_FD of a link."""

    op: ClassVar[str] = "info"
    link: str


@dataclass(frozen=True)
class Answer:
    """An errno and what was seen: a query's view, the programs that a frame met, a link's info."""

    errno: int = 0
    seen: View | tuple[str, ...] | LinkInfo | None = None
    rule: str = field(default="", compare=False)


@dataclass(frozen=True)
class Operation:
    """A call of one thread; times are in ns of one clock, taken right before and after the system call."""

    thread: str
    call: Call
    invoked: float
    returned: float
    answer: Answer = Answer()

    def overlaps(self, begin: float, end: float) -> bool:
        return self.invoked <= end and self.returned >= begin

    @property
    def harmless(self) -> bool:
        """Whether it can't have changed anything: a reader, or refused (MPROG-LAW-007)."""
        return bool(self.answer.errno) or self.reads

    @property
    def reads(self) -> bool:
        return isinstance(self.call, (Query, Frame, Info))


def in_order(operations: Iterable[Operation]) -> list[Operation]:
    """By invocation; two calls of one thread never touch, however coarse the clock is."""
    ordered: list[Operation] = []
    last: dict[str, int] = {}
    for operation in sorted(operations, key=lambda each: (each.invoked, each.returned)):
        before = last.get(operation.thread)
        if before is not None and ordered[before].returned >= operation.invoked:
            ordered[before] = replace(ordered[before], returned=operation.invoked - 0.5)
        last[operation.thread] = len(ordered)
        ordered.append(operation)
    return ordered


# What a call may have been, besides itself, when it overlaps the close of a link that it names.


@dataclass(frozen=True)
class _Shut(Call):
    """The descriptor goes; the link stays."""

    link: str


@dataclass(frozen=True)
class _Release(Call):
    """The last hold on a link without descriptor goes, and the element with it."""

    link: str


@dataclass(frozen=True)
class _Held(Call):
    """An update or detach that found the link by a descriptor that is closed by now."""

    call: LinkUpdate | LinkDetach


@dataclass(frozen=True)
class _DeadId(Call):
    """A call whose anchor is the id of a link that is on its way out: the id is gone, the element is not."""

    call: Any


def answer(world: World, call: Call) -> Answer | None:
    """Carry out a call of a history in the model; None if it is none that can take place in this state."""
    links = world.objects.links
    match call:
        case Frame():
            return Answer(seen=world.view(call.hook).progs)
        case Info():
            info = world.link_infos().get(call.link)
            return Answer(seen=info) if info else Answer(errno.EBADF)
        case _Shut():
            if call.link not in links or not links[call.link].open:
                return None
            links[call.link] = replace(links[call.link], open=False)
            return Answer()
        case _Release():
            if call.link not in links or links[call.link].open:
                return None
            # As if it had been open for this one close.
            links[call.link] = replace(links[call.link], open=True)
            world.do(Close(call.link))
            return Answer()
        case _Held():
            name = call.call.link
            if name not in links or links[name].open:
                return None
            links[name] = replace(links[name], open=True)
            outcome = world.do(call.call)
            links[name] = replace(links[name], open=False)
        case _DeadId():
            if call.call.anchor not in links or links[call.call.anchor].open:
                return None
            outcome = world.do(replace(call.call, anchor=CLOSED))
        case _:
            outcome = world.do(call)
    return Answer(outcome.errno, outcome.view, outcome.rule)


@dataclass(frozen=True)
class Step:
    """An operation, or a part of one, as the search takes it: `calls` is what it may have been in the model."""

    operation: Operation
    calls: tuple[Call, ...]
    due: float  # about when it is likely to have taken place at the latest

    @property
    def reads(self) -> bool:
        return self.operation.reads

    @property
    def invoked(self) -> float:
        return self.operation.invoked

    @property
    def returned(self) -> float:
        return self.operation.returned


def steps(operations: Sequence[Operation]) -> list[Step]:
    """The steps of the operations, by invocation."""
    users: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        for link in links_of(operation.call):
            users[link].append(operation)
    more: dict[int, list[Call]] = defaultdict(list)
    made = []
    for operation in operations:
        call = operation.call
        others = [each for each in users.get(getattr(call, "name", ""), ()) if each is not operation]
        shut = (
            isinstance(call, Close)
            and not operation.answer.errno
            and any(each.overlaps(operation.invoked, operation.returned) for each in others)
        )
        if shut and isinstance(call, Close):
            made.append(Step(operation, (_Shut(call.name),), operation.returned))
            made.append(_release(call.name, operation, others, more))
        else:
            made.append(Step(operation, (call,), operation.returned))
    made = [
        replace(step, calls=(*step.calls, *more.get(id(step.operation), ()))) if more else step
        for step in made
    ]
    return sorted(made, key=lambda step: step.invoked)


def _release(link: str, close: Operation, others: Sequence[Operation], more: dict[int, list[Call]]) -> Step:
    """The second part of the link's close; what the others may have been goes to `more`, by their identity."""
    end = close.returned
    near = [each for each in others if each.overlaps(close.invoked, close.returned)]
    for each in near:
        if isinstance(each.call, (LinkUpdate, LinkDetach)):
            more[id(each)].append(_Held(each.call))
            end = max(end, each.returned)
    by_id = [
        each
        for each in others
        if names_anchor(each.call, BPF_F_ID) == link and each.overlaps(close.invoked, end)
    ]
    if by_id or any(names_anchor(each.call, 0) == link for each in near):
        end = math.inf
    for each in by_id:
        more[id(each)].append(_DeadId(each.call))
    released = Operation(KERNEL, _Release(link), close.invoked, end)
    return Step(released, (released.call,), close.returned)


def names_anchor(call: Call, naming: int) -> str | None:
    """The link that the call has as its anchor, by id (BPF_F_ID) or by descriptor (0)."""
    flags = getattr(call, "flags", 0)
    anchor: str | None = getattr(call, "anchor", None)
    return anchor if flags & BPF_F_LINK and flags & BPF_F_ID == naming else None


def links_of(call: Call) -> set[str]:
    """The links that a call names."""
    named = {getattr(call, "link", None), getattr(call, "name", None)}
    named |= {names_anchor(call, BPF_F_ID), names_anchor(call, 0)}
    return {name for name in named if name}


def parts(operations: Sequence[Operation]) -> list[list[Operation]]:
    """The history in parts that have no state in common; each has to be explained for itself.

    Lists are independent (MPROG-LIFE-001), and programs stay open while threads race, so parts share them freely.
    What joins two lists is a call about their common device, a cgroup's parent, or a link that is named elsewhere than
    at its hook.
    """
    owner: dict[str, str] = {
        operation.call.link: operation.call.hook
        for operation in operations
        if isinstance(operation.call, LinkCreate)
    }
    group: dict[str, str] = {name: name for name in HOOKS}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for below, above in CGROUP_PARENT.items():
        group[root(below)] = root(above)
    touched = [sorted(_hooks(operation.call, owner)) for operation in operations]
    for hooks in touched:
        for hook in hooks:
            group[root(hook)] = root(hooks[0])
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation, hooks in zip(operations, touched, strict=True):
        found[root(hooks[0]) if hooks else ""].append(operation)
    return list(found.values())


def _hooks(call: Call, owner: dict[str, str]) -> set[str]:
    hooks = {owner[link] for link in links_of(call) if link in owner}
    if hook := getattr(call, "hook", None):
        hooks.add(hook)
    if device := getattr(call, "device", None):
        hooks |= {name for name, hook in HOOKS.items() if hook.target == device}
    return hooks


def without_torn_frames(operations: Sequence[Operation]) -> list[Operation]:
    """Without frames during which two or more programs were put in others' places.

    That is done in the array that readers walk along, without waiting for them (MPROG-ATTACH-037, MPROG-LIFE-009), so
    that a frame may meet the first slot as it was before the first change and the last slot as it is after the second.
    """
    in_place = [
        each
        for each in operations
        if not each.answer.errno
        and (
            isinstance(each.call, LinkUpdate)
            or (isinstance(each.call, Attach) and each.call.flags & BPF_F_REPLACE)
        )
    ]
    return [
        each
        for each in operations
        if not isinstance(each.call, Frame)
        or sum(change.overlaps(each.invoked, each.returned) for change in in_place) < 2
    ]
