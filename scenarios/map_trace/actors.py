# SPDX-License-Identifier: MIT
"""Who changes a map: user space by system call, or a program by helper. Both say 0 or an errno."""

from __future__ import annotations

from typing import Protocol

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    jeq,
    label,
    ld_map_fd,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r10,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.errnos import errno_of

KEY, VALUE = -8, -16
SMALLEST_PACKET = bytes(14)


class Actor(Protocol):
    """Keys are of 4 or 8 bytes and values of 8."""

    def update(self, map: Map, key: int, value: int, flags: int = uapi.BPF_ANY) -> int: ...

    def delete(self, map: Map, key: int) -> int: ...


class SystemCall:
    """Changes maps by BPF_MAP_UPDATE_ELEM and BPF_MAP_DELETE_ELEM."""

    def update(self, map: Map, key: int, value: int, flags: int = uapi.BPF_ANY) -> int:
        return errno_of(lambda: map.update(key, value, flags=flags))

    def delete(self, map: Map, key: int) -> int:
        return errno_of(lambda: map.delete(key))


class Program:
    """Changes maps by the helpers, in a program that is loaded for each change and run once."""

    def update(self, map: Map, key: int, value: int, flags: int = uapi.BPF_ANY) -> int:
        return self._run(
            stdw(r10, KEY, key),
            stdw(r10, VALUE, value),
            self._arguments(map),
            mov(r3, r10),
            add(r3, VALUE),
            mov(r4, flags),
            call(uapi.BPF_FUNC_map_update_elem),
        )

    def delete(self, map: Map, key: int) -> int:
        return self._run(stdw(r10, KEY, key), self._arguments(map), call(uapi.BPF_FUNC_map_delete_elem))

    def store(self, map: Map, key: int, value: int) -> int:
        """Look the element up and write through the pointer."""
        return self._run(
            stdw(r10, KEY, key),
            self._arguments(map),
            call(uapi.BPF_FUNC_map_lookup_elem),
            jeq(r0, 0, "out"),
            stdw(r0, 0, value),
            mov(r0, 0),
            label("out"),
        )

    @staticmethod
    def _arguments(map: Map) -> Item:
        return (*ld_map_fd(r1, map), mov(r2, r10), add(r2, KEY))

    @staticmethod
    def _run(*items: Item) -> int:
        with Prog.load(asm(*items, exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS, name="actor") as prog:
            return -prog.test_run(SMALLEST_PACKET).retval & 0xFFFFFFFF


ACTORS: dict[str, Actor] = {"system call": SystemCall(), "program": Program()}
