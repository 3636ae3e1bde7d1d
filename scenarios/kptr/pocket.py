# SPDX-License-Identifier: MIT
"""The pocket: a map that owns objects of kr_kptr, with verbs that run its programs (pocket.bpf.c)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from harness.guest.bpf import uapi
from harness.guest.bpf.object import Object
from scenarios.kptr.owning_map import owning_map

OBJECT = Path(__file__).with_name("pocket.bpf.o")
PACKET = bytes(64)


class Pocket:
    """A map of `map_type` and its programs; closing drops the last references to all of them."""

    def __init__(self, map_type: int = uapi.BPF_MAP_TYPE_ARRAY, *, flags: int = 0) -> None:
        self.object = Object.open(OBJECT)
        self.map = owning_map("kr_obj", map_type, flags=flags)
        self.object.tune_map("pocket", reuse=self.map)
        self.object.load()
        self._progs = {name: self.object.prog(name) for name in self.object.program_names()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close programs and map; again is harmless."""
        for prog in self._progs.values():
            prog.close()
        self.map.close()
        self.object.close()

    def put(self, id: int, key: int = 0) -> int:
        """Make an object and put it into the value; the id of the one that was there (0: none)."""
        return self._run("put_new", key, id)

    def put_static(self, id: int, key: int = 0) -> int:
        """Put a new reference to a static object into the value; the id of what was there."""
        return self._run("put_static", key, id)

    def take(self, key: int = 0) -> int:
        """Take the object out and release it; its id (0: none)."""
        return self._run("take", key)

    def peek(self, key: int = 0) -> int:
        """The id of the object in the value, which stays (0: none)."""
        return self._run("peek", key)

    def overwrite(self, key: int = 0) -> int:
        """Update the value from a program; the helper's result."""
        return self._run("overwrite", key)

    def delete(self, key: int = 0) -> int:
        """Delete the element from a program; the helper's result."""
        return self._run("delete", key)

    def exchange_from_here(self, times: int) -> None:
        """Put as many new objects, one after the other, into value 0 from the CPU that this runs on."""
        self._progs["put_from_here"].test_run(PACKET, repeat=times)

    @property
    def crossed(self) -> int:
        """How often `exchange_from_here` got an object out that another CPU had put in."""
        return self.object.number("crossed")

    def _run(self, name: str, key: int, id: int = 0) -> int:
        self.object.set_number("key", key)
        self.object.set_number("id", id)
        returned = self._progs[name].test_run(PACKET).retval
        return returned - (1 << 32) if returned >> 31 else returned
