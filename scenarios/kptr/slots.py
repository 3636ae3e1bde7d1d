# SPDX-License-Identifier: MIT
"""A map that owns objects of kr_kptr, and small programs that move them, each loaded when it is first needed.

The verbs are those of `Pocket`, whose programs are compiled: loading these takes a tenth of the time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Self

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    exit_,
    jeq,
    jne,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r9,
    r10,
    stdw,
    stxw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from scenarios.kptr.kfuncs import Kfuncs, exchange
from scenarios.kptr.owning_map import OWNED, VALUE_SIZE

PACKET = bytes(64)
# struct __sk_buff: two members that a test run takes from its caller
_MARK, _CB, _CONTEXT_SIZE = 8, 48, 192

KEY = -4
"""Where in the stack the programs keep the key."""


class Slots:
    """The map, which it closes, and its programs, of which each works on one value: r6 is that, r8 the context."""

    def __init__(self, map: Map) -> None:
        self.map = map
        self.kfuncs = Kfuncs()
        self._progs: dict[Callable[[], Item], Prog] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close programs and map; again is harmless."""
        self.close_programs()
        self.map.close()

    def close_programs(self) -> None:
        """Close the programs, which hold the map; they come again when they are needed."""
        for prog in self._progs.values():
            prog.close()
        self._progs.clear()

    def put(self, id: int, key: int = 0) -> int:
        """Make an object and put it into the value; the id of the one that was there (0: none; -1: no value)."""
        return self.run(self.put_body, key, id)

    def put_static(self, id: int, key: int = 0) -> int:
        """Put a new reference to a static object into the value; returns as `put`."""
        return self.run(self._put_static, key, id)

    def take(self, key: int = 0) -> int:
        """Take the object out and release it; returns as `put`."""
        return self.run(self._take, key)

    def peek(self, key: int = 0) -> int:
        """The id of the object in the value, which stays; returns as `put`."""
        return self.run(self._peek, key)

    def overwrite(self, key: int = 0) -> int:
        """Update the value from a program; the helper's result."""
        return self.run(self._overwrite, key)

    def delete(self, key: int = 0) -> int:
        """Delete the element from a program; the helper's result."""
        return self.run(self._delete, key)

    def run(self, body: Callable[[], Item], key: int = 0, id: int = 0, *, repeat: int = 0) -> int:
        """Run the program whose instructions behind the look-up `body` makes; what it returns (the last time)."""
        if body not in self._progs:
            self._progs[body] = self.kfuncs.load(self.value_of_key(), body())
        context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=I", context, _MARK, key)
        struct.pack_into("=I", context, _CB, id)
        returned = self._progs[body].test_run(PACKET, ctx=bytes(context), repeat=repeat).retval
        return returned - (1 << 32) if returned >> 31 else returned

    def value_of_key(self) -> Item:
        """r6 = the value of the run's key; without one, the program returns -1."""
        return [
            mov(r8, r1),
            ldxw(r1, r8, _MARK),
            stxw(r10, KEY, r1),
            ld_map_fd(r1, self.map),
            mov(r2, r10),
            add(r2, KEY),
            call(uapi.BPF_FUNC_map_lookup_elem),
            jne(r0, 0, 2),
            mov(r0, -1),
            exit_(),
            mov(r6, r0),
        ]

    def acquire(self, kfunc: str) -> Item:
        """r7 = an object of the run's id, which the program owns."""
        return [ldxw(r1, r8, _CB), self.kfuncs.call(kfunc), jeq(r0, 0, "out"), mov(r7, r0)]

    def let_go(self) -> Item:
        """Release the object in r0, if there is one, and return its id."""
        return [
            jeq(r0, 0, "out"),
            mov(r7, r0),
            ldxw(r9, r7, self.id_offset),
            self.kfuncs.release(),
            mov(r0, r9),
            exit_(),
        ]

    def delete_element(self) -> Item:
        """r0 = the result of deleting the element of the run's key."""
        return [
            ld_map_fd(r1, self.map),
            mov(r2, r10),
            add(r2, KEY),
            call(uapi.BPF_FUNC_map_delete_elem),
        ]

    def update_element(self) -> Item:
        """r0 = the result of writing zeros over the element of the run's key."""
        return [
            [stdw(r10, KEY - 4 - at, 0) for at in range(8, VALUE_SIZE + 8, 8)],
            ld_map_fd(r1, self.map),
            mov(r2, r10),
            add(r2, KEY),
            mov(r3, r10),
            add(r3, KEY - 4 - VALUE_SIZE),
            mov(r4, uapi.BPF_ANY),
            call(uapi.BPF_FUNC_map_update_elem),
        ]

    @property
    def id_offset(self) -> int:
        """Where an object has its id, in bytes."""
        return self.kfuncs.btf.offset("kr_obj", "id")

    def put_body(self) -> Item:
        """The program of `put`, for runs of it in great number."""
        return [self.acquire("kr_obj_new"), exchange(mov(r2, r7)), self.let_go()]

    def _put_static(self) -> Item:
        return [self.acquire("kr_obj_find"), exchange(mov(r2, r7)), self.let_go()]

    def _take(self) -> Item:
        return [exchange(mov(r2, 0)), self.let_go()]

    def _peek(self) -> Item:
        return [
            ldxdw(r1, r6, OWNED),
            jeq(r1, 0, "out"),
            ldxw(r0, r1, self.id_offset),
            exit_(),
        ]

    def _overwrite(self) -> Item:
        return [self.update_element(), jeq(r0, 0, "out"), exit_()]

    def _delete(self) -> Item:
        return [self.delete_element(), jeq(r0, 0, "out"), exit_()]
