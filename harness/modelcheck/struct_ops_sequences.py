# SPDX-License-Identifier: MIT
"""Strategies of hypothesis for sequences of calls about congestion controls.

The model goes along while a sequence is drawn, so that calls name what is there, and now and then what is not: most
calls shall succeed, and each way to fail shall come up. What comes first in a choice is what shrinking leads to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from harness.guest.bpf.uapi import BPF_F_LINK, BPF_F_REPLACE, BPF_NOEXIST
from harness.oracle.calls import CLOSED, Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.struct_ops import INIT, INUSE, NON_RESTRICTED, READY, UNKNOWN_BITS, Features, World
from harness.oracle.struct_ops_calls import (
    FUNCTIONS,
    PROGRAMS,
    STRAYS,
    Choose,
    Connect,
    Create,
    Default,
    Detach,
    Link,
    Listen,
    Lookup,
    LookupAndDelete,
    NextKey,
    Relink,
    Talk,
    Update,
)

T = TypeVar("T")

FEWEST_CALLS, MOST_CALLS = 100, 300
MOST_MAPS, MOST_SOCKETS = 7, 8
UNKNOWN_FLAG = 1 << 20

NAMES = ("kr_x", "kr_y")
_BAD_NAMES = ("", "kr/x", "x" * 16, "reno", "kr_x" + "y" * 11)
_MANDATORY = ("ssthresh", "undo_cwnd")

_ODD_MAPS = (
    {"flags": UNKNOWN_FLAG},
    {"flags": BPF_F_LINK},
    {"key_size": 8},
    {"entries": 2},
    {"value_type": 0},
    {"value_type": 2},
    {"oversize": 8},
    {"value_type": 2, "oversize": 8},
    {"entries": 0, "oversize": 8},
)

_OPS = (
    *("create",) * 6,
    *("update",) * 9,
    *("delete",) * 4,
    *("link",) * 6,
    *("relink",) * 8,
    *("detach",) * 2,
    *("close_map",) * 2,
    *("close_link",) * 2,
    *("close_socket",) * 3,
    "close_prog",
    *("pin", "unpin", "reopen") * 2,
    *("listen",) * 2,
    *("connect",) * 5,
    *("choose",) * 6,
    *("talk",) * 2,
    *("default",) * 3,
    *("ask",) * 2,
)

# Making a strategy costs more than drawing from it.
_THIRTY_TWO, _EIGHT, _FOUR = st.integers(0, 31), st.integers(0, 7), st.integers(0, 3)


@functools.lru_cache(maxsize=10_000)
def _among(choices: tuple[T, ...]) -> st.SearchStrategy[T]:
    return st.sampled_from(choices)


@st.composite
def sequences(draw: st.DrawFn, features: Features) -> tuple[Call, ...]:
    """FEWEST_CALLS to MOST_CALLS calls for a kernel with these features: short sequences cost nearly as much."""
    drawer = _Drawer(draw, World(features))
    return tuple(drawer.call() for _ in range(draw(st.integers(FEWEST_CALLS, MOST_CALLS))))


@dataclass
class _Drawer:
    """Draws one call after the other; `world` is what they lead to."""

    draw: st.DrawFn
    world: World
    maps: int = 0
    links: int = 0
    socks: int = 0

    def pick(self, choices: Iterable[T]) -> T:
        picked: T = self.draw(_among(tuple(choices)))
        return picked

    def rarely(self) -> bool:
        return self.draw(_THIRTY_TWO) == 31

    def sometimes(self) -> bool:
        return self.draw(_EIGHT) == 7

    def mostly(self) -> bool:
        return self.draw(_FOUR) != 3

    def call(self) -> Call:
        call: Call = getattr(self, f"_{self.pick(_OPS)}")()
        self.world.do(call)
        return call

    # Maps

    def _create(self, *, link: bool = False) -> Call:
        if len(self.world.maps) >= MOST_MAPS and not self.rarely():
            return self._close_map()
        self.maps += 1
        name = f"m{self.maps}"
        flags = BPF_F_LINK if (link or self.mostly()) and self._has_links() else 0
        if not self.rarely():
            return Create(name, flags)
        odd = _ODD_MAPS[self.pick(range(len(_ODD_MAPS)))]
        return Create(name, **{"flags": flags, **odd})

    def _has_links(self) -> bool:
        return self.world.features.struct_ops_link or self.rarely()

    def _update(self, *, link: bool = False) -> Call:
        """Write a value, rather to a map that has none; to a link map if that is wanted."""
        unfilled = [name for name in self._maps_in(INIT) if self.world.maps[name].link or not link]
        if not unfilled and not self.sometimes():
            return self._create(link=link)
        map = self.pick(unfilled) if unfilled and not self.sometimes() else self._map()
        members = [member for member in FUNCTIONS if member in _MANDATORY or self.pick((True, False))]
        if not {"cong_avoid", "cong_control"} & set(members):
            members.append("cong_avoid")
        set_ = self.pick("ab")
        value: dict[str, Any] = {member: f"{member}_{set_}" for member in members}
        value = {
            member: prog if prog in self.world.progs or self.rarely() else f"{member}_{self.pick('ab')}"
            for member, prog in value.items()
        }
        value["name"] = self.pick(NAMES)
        value["bits"] = self.pick((0, NON_RESTRICTED, 0, NON_RESTRICTED, 2))
        for _ in range(2 if self.sometimes() else self.pick((0, 0, 0, 1))):
            value |= self._fault()
        if map not in unfilled and not self.mostly():
            value["stray"] = self.pick(("padding", "state"))  # which is looked at before the map's state
        return Update(map, **value)

    def _fault(self) -> dict[str, Any]:
        """Something wrong with a value; two at once tell which is found first."""
        match self.pick(("missing", "misplaced", "misplaced", "stray", "name", "key", "flags", "bits")):
            case "missing":
                return {self.pick([*_MANDATORY, "cong_avoid", "cong_control"]): None}
            case "misplaced":
                return {
                    self.pick(FUNCTIONS): self.pick((*PROGRAMS, CLOSED, *self.world.maps, *self.world.links))
                }
            case "stray":
                return {"stray": self.pick(STRAYS)}
            case "name":
                return {"name": self.pick(_BAD_NAMES)}
            case "key":
                return {"key": self.pick((1, 0xFFFFFFFF))}
            case "flags":
                return {"flags": self.pick((BPF_NOEXIST, 2, 4, UNKNOWN_FLAG))}
        return {"bits": UNKNOWN_BITS | self.pick((0, 1))}

    def _delete(self) -> Call:
        used = self._maps_in(INUSE)
        if not used and not self.sometimes():
            return self._update()
        map = self.pick(used) if used and not self.sometimes() else self._map()
        return Delete(map, self.pick((0, 0, 0, 7)))

    def _ask(self) -> Call:
        map = self._map()
        match self.pick(("lookup", "next_key", "freeze", "take")):
            case "lookup":
                return Lookup(map, self.pick((0, 1)))
            case "next_key":
                return NextKey(map, self.pick((None, 0, 7)))
            case "freeze":
                return Freeze(map)
        return LookupAndDelete(map)

    def _maps_in(self, state: int) -> list[str]:
        return [name for name, table in self.world.maps.items() if table.open and table.state == state]

    def _map(self, *, state: int | None = None) -> str:
        """A map; what is none now and then."""
        if self.rarely():
            return self.pick((CLOSED, *PROGRAMS[:2], *self.world.links, *self._ever("m", self.maps)))
        there = self._maps_in(state) if state is not None else []
        return self.pick(there or self._open(self.world.maps) or list(self.world.maps) or [CLOSED])

    @staticmethod
    def _ever(letter: str, count: int) -> list[str]:
        return [f"{letter}{number}" for number in range(1, count + 1)]

    # Links

    def _link(self) -> Call:
        if not self._has_links():
            return self._connect()
        if not self._maps_in(READY) and not self.sometimes():
            return self._update(link=True)
        self.links += 1
        name = f"l{self.links}"
        map = self._map() if self.sometimes() else self._map(state=READY)
        return Link(name, map, self.pick((0, 0, UNKNOWN_FLAG)))

    def _relink(self) -> Call:
        if not self._open(self.world.links) and not self.rarely():
            return self._link()
        name = self._some_link()
        link = self.world.links.get(name)
        current = link.map if link else None
        maps = [map for map in self._maps_in(READY) if map != current]
        same = [map for map in maps if current and self._name_of(map) == self._name_of(current)]
        likely = same if same and self.mostly() else maps
        map = self.pick(likely) if likely and not self.sometimes() else self._map()
        flags = self.pick((0, 0, 0, BPF_F_REPLACE, BPF_F_REPLACE, BPF_F_REPLACE))
        old = None
        if flags or self.rarely():
            old = current if current and self.mostly() else self.pick((None, self._map(), CLOSED, map))
        return Relink(name, map, flags | (UNKNOWN_FLAG if self.rarely() else 0), old)

    def _name_of(self, map: str) -> str | None:
        table = self.world.maps.get(map)
        return table.value.name if table and table.value else None

    def _detach(self) -> Call:
        return Detach(self._some_link()) if self.world.links or self.rarely() else self._talk()

    def _some_link(self) -> str:
        there = self._open(self.world.links)
        attached = [name for name in there if self.world.links[name].map]
        if there and not self.rarely():
            return self.pick(attached if attached and not self.sometimes() else there)
        return self.pick((CLOSED, PROGRAMS[0], *self.world.maps, *self._ever("l", self.links)))

    # Descriptors

    def _close_map(self) -> Call:
        there = self._open(self.world.maps)
        return Close(self.pick(there or [CLOSED]))

    def _close_link(self) -> Call:
        there = self._open(self.world.links)
        return Close(self.pick(there)) if there else self._link()

    def _close_socket(self) -> Call:
        return Close(self.pick(self.world.socks)) if self.world.socks else self._connect()

    def _close_prog(self) -> Call:
        there = sorted(self.world.progs)
        return Close(self.pick(there)) if there and self.rarely() else self._choose()

    @staticmethod
    def _open(held: Any) -> list[str]:
        return [name for name, each in held.items() if each.open]

    def _held(self) -> dict[str, Any]:
        return {**self.world.links, **self.world.maps}

    def _pin(self) -> Call:
        return Pin(
            self._object([name for name, each in self._held().items() if each.open and not each.pinned])
        )

    def _unpin(self) -> Call:
        pinned = [name for name, each in self._held().items() if each.pinned]
        return Unpin(self._object(pinned)) if pinned or self.rarely() else self._pin()

    def _reopen(self) -> Call:
        closed = [name for name, each in self._held().items() if not each.open]
        if not closed and not self.sometimes():
            return self._close_map()
        return Reopen(self._object(closed), self.pick((False, True, True)))

    def _object(self, wanted: list[str]) -> str:
        if wanted and not self.sometimes():
            return self.pick(wanted)
        return self.pick((CLOSED, *self._ever("m", self.maps), *self._ever("l", self.links)))

    # Sockets

    def _listen(self) -> Call:
        if len(self.world.socks) >= MOST_SOCKETS:
            return self._close_socket()
        return Listen(self._new_sock(), self._choice())

    def _connect(self) -> Call:
        if len(self.world.socks) >= MOST_SOCKETS:
            return self._close_socket()
        listeners = [name for name, sock in self.world.socks.items() if sock.listens]
        if not listeners:
            return self._listen()
        return Connect(self._new_sock(), self.pick(listeners), self._new_sock(), self._choice())

    def _choose(self) -> Call:
        if not self.world.socks:
            return self._listen()
        return Choose(self.pick(self.world.socks), self._choice() or self.pick(NAMES))

    def _talk(self) -> Call:
        able = [name for name, sock in self.world.socks.items() if sock.peer in self.world.socks]
        return Talk(self.pick(able)) if able else self._connect()

    def _default(self) -> Call:
        return Default(self._choice() or self.pick(("reno", *NAMES)))

    def _new_sock(self) -> str:
        self.socks += 1
        return f"s{self.socks}"

    def _choice(self) -> str | None:
        """The name of an algorithm, rather a registered one."""
        return self.pick((None, *self.world.registered, *self.world.registered, *NAMES, "cubic", "reno"))
