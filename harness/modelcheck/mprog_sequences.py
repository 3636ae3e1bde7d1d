# SPDX-License-Identifier: MIT
"""Strategies of hypothesis for sequences of calls about ordered lists of programs.

The model goes along while a sequence is drawn, so that calls name what is there, and now and then what is not: most
calls shall succeed, and each way to fail shall come up. What comes first in a choice is what shrinking leads to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_ALLOW_OVERRIDE,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_PREORDER,
    BPF_F_QUERY_EFFECTIVE,
    BPF_F_REPLACE,
)
from harness.oracle import cgroup_list, mprog
from harness.oracle.calls import CLOSED, Call, Close, Pin, Reopen, Unpin
from harness.oracle.families import HOOKS, Features
from harness.oracle.mprog_calls import (
    MAP,
    AddQdisc,
    Attach,
    DeleteQdisc,
    Detach,
    Fill,
    LinkCreate,
    LinkDetach,
    LinkUpdate,
    MoveDevice,
    Query,
    RemoveDevice,
)
from harness.oracle.objects import PROGRAMS
from harness.oracle.world import World

T = TypeVar("T")

# A job costs as much as hundreds of calls, so sequences are long from the first on; shrinking makes them short.
CALLS = (140, 60, 100, 180, 220)
UNKNOWN_BIT = 1 << 20


@dataclass(frozen=True)
class Part:
    """What sequences are about: these hooks; `full`: one of them is filled first."""

    hooks: tuple[str, ...]
    full: bool = False


_TCX, _NETKIT, _CGROUP = ("in", "out", "other"), ("primary", "peer", "in"), ("group", "below")
PARTS = (
    *(Part(hooks) for hooks in (_TCX, _CGROUP, _NETKIT)),
    *(Part(hooks, full=True) for hooks in (_TCX, _CGROUP, _NETKIT)),
    Part(tuple(HOOKS)),
    Part(_TCX),
)

_PLACES = (
    *(0, 0, 0, BPF_F_BEFORE, BPF_F_AFTER, BPF_F_BEFORE, BPF_F_AFTER),
    *(BPF_F_REPLACE, BPF_F_REPLACE, BPF_F_REPLACE | BPF_F_BEFORE, BPF_F_REPLACE | BPF_F_AFTER),
    *(BPF_F_BEFORE | BPF_F_AFTER, BPF_F_REPLACE | BPF_F_BEFORE | BPF_F_AFTER),
)
_CGROUP_PLACES = (
    *(
        0,
        0,
        BPF_F_BEFORE,
        BPF_F_AFTER,
        BPF_F_BEFORE,
        BPF_F_AFTER,
        BPF_F_REPLACE,
        BPF_F_REPLACE,
        BPF_F_REPLACE,
    ),
    *(BPF_F_BEFORE | BPF_F_AFTER, BPF_F_REPLACE | BPF_F_BEFORE),
)
_NAMINGS = (0, 0, BPF_F_ID, BPF_F_LINK, BPF_F_LINK | BPF_F_ID)
_MODES = (*(BPF_F_ALLOW_MULTI,) * 40, 0, BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI)
_STRAY_BITS = (*(0,) * 40, UNKNOWN_BIT, BPF_F_ALLOW_MULTI, BPF_F_PREORDER)

_OPS = (
    *("attach",) * 14,
    *("link",) * 8,
    *("detach",) * 8,
    *("update",) * 5,
    *("close",) * 3,
    *("link_detach",) * 2,
    *("query",) * 2,
    *("qdisc",) * 2,
    *("hold",) * 3,
    "device",
)
_OPS_AT_A_FULL_LIST = ("detach", "detach", "attach", "attach", "link")


# Making a strategy costs more than drawing from it.
_SIXTEEN, _FOUR = st.integers(0, 15), st.integers(0, 3)
_LENGTH = st.sampled_from(CALLS)


@functools.lru_cache(maxsize=10_000)
def _among(choices: tuple[T, ...]) -> st.SearchStrategy[T]:
    return st.sampled_from(choices)


@st.composite
def sequences(draw: st.DrawFn, features: Features, part: Part | None = None) -> tuple[Call, ...]:
    """A sequence for a kernel with these features, about one part or any."""
    part = part or draw(_among(PARTS))
    stage = [hook for hook in part.hooks if _has(features, hook)] or ["in"]
    drawer = _Drawer(draw, World(features), stage)
    calls: list[Call] = []
    if part.full:
        calls.append(drawer.fill())
    calls += [drawer.call() for _ in range(draw(_LENGTH))]
    return tuple(calls)


def _has(features: Features, hook: str) -> bool:
    return features.netkit or HOOKS[hook].family != "netkit"


@dataclass
class _Drawer:
    """Draws one call after the other; `world` is what they lead to."""

    draw: st.DrawFn
    world: World
    stage: Sequence[str]
    links: int = 0
    # A list that was just filled, and how many calls are about it, before it is too short again.
    full: str = ""
    about_full: int = 0

    def pick(self, choices: Sequence[T]) -> T:
        picked: T = self.draw(_among(tuple(choices)))
        return picked

    def call(self) -> Call:
        call: Call = getattr(self, f"_{self.pick(_OPS_AT_A_FULL_LIST if self.about_full else _OPS)}")()
        self.world.do(call)
        return call

    def fill(self) -> Fill:
        hook = self.pick(self.stage)
        capacity = cgroup_list.CAPACITY if HOOKS[hook].family == "cgroup" else mprog.CAPACITY
        call = Fill(hook, self.pick((capacity, capacity, capacity - 1)))
        self.full, self.about_full = hook, 10
        self.world.do(call)
        return call

    # Calls

    def _attach(self) -> Attach:
        hook = self.hook()
        flags, anchor = self.place(hook)
        replace = None
        if flags & BPF_F_REPLACE or self.rarely():
            replace = self.prog(hook, inside=True)
        # A program in its own place: EEXIST for tcx, no error for a cgroup (MPROG-CGROUP-011).
        itself = not self.mostly() if HOOKS[hook].family == "cgroup" else self.rarely()
        prog = replace if replace and itself else self.prog(hook)
        return Attach(hook, prog, flags, anchor, replace, self.revision(hook))

    def _link(self) -> LinkCreate:
        hook = self.hook()
        flags, anchor = self.place(hook, link=True)
        self.links += 1
        return LinkCreate(f"l{self.links}", hook, self.prog(hook), flags, anchor, self.revision(hook))

    def _detach(self) -> Detach:
        hook = self.hook()
        prog = self.prog(hook, inside=True) if self.pick((True, False)) else None
        if HOOKS[hook].family == "cgroup" and not self.rarely():
            return Detach(hook, prog, revision=self.revision(hook))
        flags, anchor = self.place(hook)
        if not self.rarely():
            flags &= ~BPF_F_REPLACE
        return Detach(hook, prog, flags, anchor, self.revision(hook))

    def _update(self) -> LinkUpdate:
        link = self.link()
        hook = self.world.objects.links[link].hook if link in self.world.objects.links else self.stage[0]
        flags = self.pick((0, 0, 0, BPF_F_REPLACE, BPF_F_REPLACE, BPF_F_REPLACE, UNKNOWN_BIT, BPF_F_LINK))
        old = None
        if flags & BPF_F_REPLACE or self.rarely():
            current = self.world.objects.links.get(link)
            old = current.prog if current and self.mostly() else self.prog(hook)
        return LinkUpdate(link, self.prog(hook), flags, old)

    def _link_detach(self) -> LinkDetach:
        return LinkDetach(self.link())

    def _close(self) -> Close:
        progs = [name for name, prog in self.world.objects.progs.items() if prog.open]
        links = list(self.world.objects.links)
        wanted = links if links and not self.rarely() else progs
        return Close(self.pick(wanted or [CLOSED]))

    def _hold(self) -> Call:
        links = self.world.objects.links
        pinned = [name for name, link in links.items() if link.pinned]
        closed = [name for name, link in links.items() if not link.open]
        op = self.pick((Pin, Pin, Unpin, Reopen))
        if op is Unpin and pinned and not self.rarely():
            return Unpin(self.pick(pinned))
        if op is Reopen:
            return Reopen(self.pick(closed) if closed else self.link(), self.pick((False, True)))
        # Pinning what is no link pins a program or a map: no matter of lists.
        return op(self.pick([*links, *self.ever(), CLOSED]))

    def _query(self) -> Query:
        hook = self.hook()
        count = self.pick((64, 0, 1, 2, 3, self.world.view(hook).count))
        flags = self.pick((0, 0, 0, BPF_F_QUERY_EFFECTIVE, 1 << 5))
        return Query(hook, count, flags, self.pick((0, 0, 0, 0, 1)), self.mostly())

    def _qdisc(self) -> Call:
        device = self.pick(("d0", "d1"))
        kind = self.world.qdiscs.get(device)
        # What a delete without a qdisc returns depends on whether there ever was one, and is no matter of lists.
        if kind and not self.rarely():
            return DeleteQdisc(device, kind)
        return AddQdisc(device, self.pick(("clsact", "ingress")))

    def _device(self) -> Call:
        if self.world.away and self.mostly():
            return MoveDevice(self.pick(sorted(self.world.away)))
        devices = ("d0", "d1", "nk", "nk_peer") if self.world.features.netkit else ("d0", "d1")
        # Rarely: what follows on the device is ENODEV, after a removal for good.
        if not self.mostly():
            return MoveDevice(self.pick(devices))
        return RemoveDevice(self.pick(devices)) if self.rarely() else self._query()

    # Operands

    def rarely(self) -> bool:
        return self.draw(_SIXTEEN) == 15

    def mostly(self) -> bool:
        return self.draw(_FOUR) != 3

    def hook(self) -> str:
        if self.about_full:
            self.about_full -= 1
            return self.full
        return self.pick(self.stage)

    def prog(self, hook: str, *, inside: bool = False) -> str:
        """A program; with `inside` rather one of the list, without rather another."""
        if self.rarely():
            return self.pick((*PROGRAMS, MAP, CLOSED, *self.world.objects.links))
        present = sorted(set(self.world.view(hook).progs))
        fitting = self.fitting(hook)
        wanted = present if inside else [name for name in fitting if name not in present]
        return self.pick(wanted if wanted and self.mostly() else fitting)

    def fitting(self, hook: str) -> list[str]:
        type = self.world.family(hook).prog_type
        return [name for name, each in PROGRAMS.items() if each == type]

    def link(self) -> str:
        there = list(self.world.objects.links)
        if there and not self.rarely():
            return self.pick(there)
        return self.pick((CLOSED, MAP, "a", *self.ever()))

    def ever(self) -> list[str]:
        """Links that are or were."""
        return [f"l{number}" for number in range(1, self.links + 1)]

    def place(self, hook: str, *, link: bool = False) -> tuple[int, str | None]:
        """(flags, anchor)."""
        cgroup = HOOKS[hook].family == "cgroup"
        flags = self.pick(_CGROUP_PLACES if cgroup else _PLACES)
        if link and flags & BPF_F_REPLACE and not self.rarely():
            flags &= ~BPF_F_REPLACE
        anchor = None
        if flags & (BPF_F_BEFORE | BPF_F_AFTER) or self.rarely():
            naming = self.pick(_NAMINGS)
            if cgroup and not self.rarely():  # what else is refused at once: MPROG-CGROUP-015
                naming = (naming & ~BPF_F_LINK) | (BPF_F_LINK if link else 0)
            flags |= naming
            anchor = self.anchor(hook, flags)
        if cgroup:
            preorder = BPF_F_PREORDER if self.pick((False, False, False, True)) else 0
            flags |= (0 if link else self.pick(_MODES)) | preorder
        return flags | self.pick(_STRAY_BITS), anchor

    def anchor(self, hook: str, flags: int) -> str | None:
        """What the flags can name; the id of one kind is never sent as that of the other: they may be the same."""
        objects = self.world.objects
        if flags & BPF_F_LINK:
            there = [name for name in objects.links if objects.links[name].hook == hook]
            rest = [*objects.links, *objects.links, *self.ever(), CLOSED, None]
            odd = [MAP, "a"]
        else:
            there = list(self.world.view(hook).progs)
            rest = [*PROGRAMS, CLOSED, None]
            odd = [MAP, *objects.links]
        if there and self.mostly():
            return self.pick(there)
        return self.pick([*rest, *odd] if not flags & BPF_F_ID else rest)

    def revision(self, hook: str) -> int:
        if self.mostly():
            return 0
        shown = self.world.view(hook).revision
        stored = self.world.entries[hook].revision if hook in self.world.entries else shown
        return self.pick((stored, stored, shown, stored + 1, max(stored - 1, 0), 1, 1 << 40))
