# SPDX-License-Identifier: MIT
"""Strategies of hypothesis for sequences of calls about owned objects.

The model goes along while a sequence is drawn, so that calls name what is there, and now and then what is not: most
calls shall succeed, and each way to fail shall come up. What comes first in a choice is what shrinking leads to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

from harness.guest.bpf.uapi import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from harness.guest.kptr_kinds import (
    COUNT,
    FIELDS,
    KEYS,
    KINDS_OF_MAPS,
    MOVE,
    PEEK,
    PUT_NEW,
    PUT_STATIC,
    REMOVE,
    SHARE,
    STATIC,
    SWAP,
    TAKE,
    WRITE,
)
from harness.oracle.calls import CLOSED, Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.kptr import Element, Features, Program, Table, World
from harness.oracle.kptr_calls import (
    Bind,
    Create,
    DeleteBatch,
    Load,
    Lookup,
    LookupBatch,
    Nest,
    Run,
    Take,
    Unload,
    Update,
    UpdateBatch,
)

T = TypeVar("T")

PLAINEST, FEWEST_CALLS, MOST_CALLS = 20, 300, 500
FEWEST_MAPS, MOST_MAPS, MOST_PROGS = 6, 9, 6
UNKNOWN_FLAG = 1 << 20
FIRST_NEW = 100

# What sequences are about: what becomes of elements, and who holds maps and programs.
_ELEMENTS = (
    *("run",) * 72,
    *("update",) * 24,
    *("delete",) * 8,
    *("take",) * 6,
    *("lookup",) * 3,
    *("update_batch", "delete_batch", "lookup_batch") * 2,
    *("load",) * 3,
    *("create", "nest") * 2,
    *("close", "reopen", "freeze", "unload"),
)
_HOLDERS = (
    *("run",) * 40,
    *("nest",) * 14,
    *("close",) * 14,
    *("update", "delete", "load") * 7,
    *("create", "bind", "pin", "reopen") * 6,
    *("unpin",) * 3,
    *("lookup", "unload"),
)
ABOUT = (_ELEMENTS, _HOLDERS)

_NEEDS_MAPS = (
    "run",
    "update",
    "delete",
    "take",
    "lookup",
    "update_batch",
    "delete_batch",
    "lookup_batch",
    "nest",
)

_VERBS = (
    *(PUT_STATIC,) * 12,
    *(PUT_NEW,) * 6,
    *(TAKE, PEEK, COUNT),
    *(MOVE, SWAP, SHARE) * 3,
    *(WRITE,) * 4,
    *(REMOVE,) * 2,
)
_TAKING = (TAKE, COUNT, MOVE, SWAP, SHARE)
_FLAGS = (0, 0, 0, 0, BPF_EXIST, BPF_NOEXIST)

# Making a strategy costs more than drawing from it.
_THIRTY_TWO, _EIGHT = st.integers(0, 31), st.integers(0, 7)


@functools.lru_cache(maxsize=10_000)
def _among(choices: tuple[T, ...]) -> st.SearchStrategy[T]:
    return st.sampled_from(choices)


@st.composite
def sequences(draw: st.DrawFn, features: Features, ops: tuple[str, ...]) -> tuple[Call, ...]:
    """FEWEST_CALLS to MOST_CALLS calls, as often as `ops` has them, for a kernel with these features."""
    drawer = _Drawer(draw, World(features), ops)
    more = draw(st.integers(0, MOST_CALLS - FEWEST_CALLS))
    # The first that hypothesis draws is the plainest one, which repeats a single call.
    return tuple(drawer.call() for _ in range(FEWEST_CALLS + more if more else PLAINEST))


def _owns(element: Element, field: int | None = None) -> bool:
    objects = element.objects if field is None else [element.objects[field]]
    return any(object is not None for object in objects)


@dataclass
class _Drawer:
    """Draws one call after the other; `world` is what they lead to."""

    draw: st.DrawFn
    world: World
    ops: tuple[str, ...]
    maps: int = 0
    progs: int = 0
    objects: int = FIRST_NEW
    marks: int = 0

    def pick(self, choices: Iterable[T]) -> T:
        picked: T = self.draw(_among(tuple(choices)))
        return picked

    def rarely(self) -> bool:
        return self.draw(_THIRTY_TWO) == 31

    def sometimes(self) -> bool:
        return self.draw(_EIGHT) == 7

    def call(self) -> Call:
        op = self.pick(self.ops)
        if op in _NEEDS_MAPS and not self.sometimes():
            if len(self._open_maps(outer=False)) < FEWEST_MAPS:
                op = "create"
            elif op == "run" and not any(prog.open for prog in self.world.progs.values()):
                op = "load"
        call: Call = getattr(self, f"_{op}")()
        self.world.do(call)
        return call

    # What there is

    def _open_maps(self, *, outer: bool | None = None) -> list[str]:
        return [
            name
            for name, table in self.world.maps.items()
            if table.open and (outer is None or table.kind.outer == outer)
        ]

    def _map(self, *, outer: bool | None = False) -> str:
        """An open map, rather one that owns something; what is none now and then."""
        there = self._open_maps(outer=outer)
        owning = [name for name in there if any(map(_owns, self.world.maps[name].elements.values()))]
        if there and not self.rarely():
            return self.pick(owning if owning and self.draw(_EIGHT) < 5 else there)
        return self.pick((CLOSED, *self.world.progs, *self.world.maps, f"m{self.maps}"))

    def _key(self, table: Table | None, field: int | None = None) -> int:
        """A key, rather one that is there, and whose element owns something, by this pointer if one is given."""
        there = tuple(sorted(table.elements)) if table else ()
        owning = tuple(key for key in there if table and _owns(table.elements[key], field))
        if owning and self.draw(_EIGHT) < 5:
            return self.pick(owning)
        return self.pick(there if there and self.draw(_EIGHT) < 6 else KEYS)

    def _mark(self) -> int:
        self.marks += 1
        return self.marks

    def _flags(self, table: Table | None) -> int:
        if self.rarely():
            return self.pick((BPF_F_LOCK, UNKNOWN_FLAG, BPF_EXIST | BPF_NOEXIST, UNKNOWN_FLAG | BPF_F_LOCK))
        lock = BPF_F_LOCK if table and table.kind.locked and self.draw(_EIGHT) < 5 else 0
        return self.pick(_FLAGS) | lock

    # Maps

    def _create(self) -> Call:
        if len(self.world.maps) >= MOST_MAPS:
            return self._close() if self.sometimes() else self._update()
        self.maps += 1
        kinds = KINDS_OF_MAPS if self.rarely() else self.world.features.kinds
        outers = 3 if self.ops is _HOLDERS else 6
        inners = [
            name
            for name in self._open_maps(outer=False)
            if not self.world.maps[name].kind.locked and self.world.maps[name].kind_name != "task_storage"
        ]
        new = [kind for kind in kinds if kind not in {table.kind_name for table in self.world.maps.values()}]
        kind = self.pick(new if new and not self.sometimes() else kinds)
        if inners and self.draw(_EIGHT) > outers:
            kind = self.pick(("array_of_maps", "hash_of_maps"))
        wanted = [self.world.maps[name].inner for name in self._open_maps(outer=True)]
        if wanted and self.draw(_EIGHT) > 3:
            kind = self.pick(wanted) or kind
        if not KINDS_OF_MAPS[kind].outer:
            return Create(f"m{self.maps}", kind)
        return Create(f"m{self.maps}", kind, self.pick(inners or [CLOSED]))

    def _update(self) -> Call:
        name = self._map()
        table = self.world.maps.get(name)
        return Update(name, self._key(table), self._mark(), self._flags(table))

    def _delete(self) -> Call:
        outers = self._open_maps(outer=True)
        name = self.pick(outers) if outers and self.draw(_EIGHT) > 4 else self._map(outer=None)
        table = self.world.maps.get(name)
        if table and table.kind.outer:
            return Delete(name, self.pick(tuple(table.held) or (0, 1, 2)))
        return Delete(name, self._key(table))

    def _lookup(self) -> Call:
        name = self._map(outer=None)
        table = self.world.maps.get(name)
        if table and table.kind.outer:
            return Lookup(name, self.pick((0, 1, 2)))
        flags = (
            BPF_F_LOCK if (table and table.kind.locked and self.pick((False, True))) or self.rarely() else 0
        )
        return Lookup(name, self._key(table), flags)

    def _take(self) -> Call:
        name = self._map()
        table = self.world.maps.get(name)
        flags = BPF_F_LOCK if (table and table.kind.locked and self.sometimes()) or self.rarely() else 0
        return Take(name, self._key(table), flags)

    def _update_batch(self) -> Call:
        name = self._map()
        table = self.world.maps.get(name)
        locked = table is not None and table.kind.locked and self.sometimes()
        return UpdateBatch(
            name, self._key(table), self.pick((1, 2, 3)), self._mark(), BPF_F_LOCK if locked else 0
        )

    def _delete_batch(self) -> Call:
        name = self._map()
        return DeleteBatch(name, self._key(self.world.maps.get(name)), self.pick((1, 2, 3)))

    def _lookup_batch(self) -> Call:
        name = self._map()
        table = self.world.maps.get(name)
        flags = BPF_F_LOCK if (table and table.kind.locked and self.sometimes()) or self.rarely() else 0
        return LookupBatch(name, self.pick((False, False, True)), flags)

    def _freeze(self) -> Call:
        return Freeze(self._map())

    # Maps of maps

    def _nest(self) -> Call:
        outers = self._open_maps(outer=True)
        if not outers:
            return self._create() if self.sometimes() else self._run()
        outer = self.pick(outers)
        table = self.world.maps[outer]
        alike = [name for name in self._open_maps() if self.world.maps[name].kind_name == table.inner]
        inner = self.pick(alike) if alike and not self.sometimes() else self._map(outer=None)
        flags = 0
        if table.kind_name == "hash_of_maps" or self.rarely():
            flags = self.pick((0, 0, 0, BPF_EXIST, BPF_NOEXIST))
        key = self.pick((0, 1)) if not self.sometimes() else 2
        return Nest(outer, inner, key, flags)

    # Programs

    def _load(self) -> Call:
        if len(self.world.progs) >= MOST_PROGS:
            there = [name for name, prog in self.world.progs.items() if prog.open]
            return Close(self.pick(there)) if there else self._unpin()
        self.progs += 1
        map, other = self._map(outer=None), self._map(outer=None)
        return Load(f"p{self.progs}", map, other, self.pick(FIELDS), self.pick(FIELDS))

    def _bind(self) -> Call:
        return Bind(self._prog(), self._map(outer=None))

    def _prog(self) -> str:
        there = [name for name, prog in self.world.progs.items() if prog.open]
        if there and not self.rarely():
            return self.pick(there)
        return self.pick((CLOSED, *self.world.maps, f"p{self.progs}"))

    def _run(self) -> Call:
        name = self._prog()
        prog = self.world.progs.get(name)
        if prog is None:
            return Run(name)
        (via, table), (other_via, other) = (self._reach(map) for map in prog.maps)
        verb = self.pick(_VERBS)
        if table is not None and not table.elements and not self.sometimes():
            verb = WRITE
        object = mark = flags = 0
        if verb == PUT_NEW:
            self.objects += 1
            object = self.objects
        elif verb == PUT_STATIC:
            object = self.pick(STATIC) if not self.rarely() else len(STATIC)
        elif verb == WRITE:
            mark, flags = self._mark(), self._flags(table)
        key = self._key(table, prog.fields[0] if verb in _TAKING else None)
        full = self._key(other, prog.fields[1] if verb in (MOVE, SHARE) else None)
        return Run(name, verb, key, full, via, other_via, object, mark, flags)

    def _reach(self, name: str) -> tuple[int, Table | None]:
        """A key in a map of maps, and the map that has the elements."""
        table = self.world.maps[name]
        if not table.kind.outer:
            return 0, table
        via = self.pick(tuple(table.held) if table.held and not self.sometimes() else (0, 1))
        return via, self.world.maps.get(table.held.get(via, ""))

    # Descriptors

    def _names(self) -> list[str]:
        return [*self.world.maps, *self.world.progs]

    def _held(self, *, open: bool | None = None, pinned: bool | None = None) -> list[str]:
        everything: dict[str, Table | Program] = {**self.world.maps, **self.world.progs}
        return [
            name
            for name, held in everything.items()
            if open in (None, held.open) and pinned in (None, held.pinned)
        ]

    def _object(self, wanted: list[str]) -> str:
        if wanted and not self.sometimes():
            return self.pick(wanted)
        return self.pick((CLOSED, f"m{self.maps}", f"p{self.progs}", *self._names()))

    def _close(self) -> Call:
        """Rather what somebody else holds."""
        there = self._held(open=True)
        used = {name for prog in self.world.progs.values() for name in prog.holds()}
        used |= {name for table in self.world.maps.values() for name in table.held.values()}
        kept = [name for name in there if name in used or name in self._held(pinned=True)]
        return Close(self._object(kept if kept and self.draw(_EIGHT) < 6 else there))

    def _pin(self) -> Call:
        return Pin(self._object(self._held(open=True, pinned=False)))

    def _unpin(self) -> Call:
        pinned = self._held(pinned=True)
        return Unpin(self._object(pinned)) if pinned or self.rarely() else self._pin()

    def _reopen(self) -> Call:
        closed = self._held(open=False)
        if not closed and not self.sometimes():
            return self._lookup()
        return Reopen(self._object(closed), self.pick((False, True, True)))

    def _unload(self) -> Call:
        return Unload()
