# SPDX-License-Identifier: MIT
"""The tracers of this folder, attached to a map and read from Python."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog

HERE = Path(__file__).parent
OPERATIONS = {1: "update", 2: "delete"}


@dataclass(frozen=True)
class Event:
    """One traced operation; `error` is its errno's name, or None."""

    operation: str
    key: int
    value: int = 0
    error: str | None = None


class Tracer:
    """The programs of tracer.bpf.c behind two functions of the kernel, noting what happens to one map."""

    def __init__(self, stack: ExitStack, map: Map, update: str, delete: str) -> None:
        self._object = stack.enter_context(Object.open(HERE / "tracer.bpf.o"))
        for prog, function in (("on_update", update), ("on_delete", delete)):
            self._object.tune_prog(prog, attach_target=function)
        self._object.set_number("traced_id", map.id)
        self._object.load()
        for prog in ("on_update", "on_delete"):
            loaded = stack.enter_context(self._object.prog(prog))
            stack.enter_context(Link.tracing(loaded, uapi.BPF_TRACE_FEXIT))

    def events(self) -> list[Event]:
        """What was noted so far, in order; it is forgotten then."""
        count = self._object.number("count")
        records = struct.iter_unpack("=QQQq", self._object.variable("events").raw)
        found = [
            Event(OPERATIONS[operation], key, value, errno.errorcode[-result] if result else None)
            for (operation, key, value, result), _ in zip(records, range(count), strict=False)
        ]
        self._object.set_number("count", 0)
        return found


Trace = Callable[..., Tracer]


@pytest.fixture
def trace() -> Iterator[Trace]:
    """A factory of tracers: `trace(map)` for a hash map, or `trace(map, update, delete)` with functions to hook."""
    with ExitStack() as stack:

        def attach(
            map: Map, update: str = "htab_map_update_elem", delete: str = "htab_map_delete_elem"
        ) -> Tracer:
            require(f"fentry:{update}", f"fentry:{delete}")
            return Tracer(stack, map, update, delete)

        yield attach


@pytest.fixture
def new_map() -> Iterator[Callable[..., Map]]:
    """A factory of maps with 4-byte keys and 8-byte values, closed when the scenario ends."""
    with ExitStack() as stack:

        def make(map_type: int = uapi.BPF_MAP_TYPE_HASH, max_entries: int = 16, *, flags: int = 0) -> Map:
            return stack.enter_context(Map.create(map_type, 4, 8, max_entries, flags=flags, name="traced"))

        yield make


class Migration:
    """The programs and maps of migration.bpf.c; `mirroring` and `copying` attach them."""

    def __init__(self, stack: ExitStack, *, destination: Map | None) -> None:
        self._object = stack.enter_context(Object.open(HERE / "migration.bpf.o"))
        if destination is not None:
            self._object.tune_map("new_state", reuse=destination)
        self._object.load()
        self.old = stack.enter_context(self._object.map("old_state"))
        self.new = stack.enter_context(self._object.map("new_state"))
        self.mirror_update, self.mirror_delete, self._copy = (
            stack.enter_context(self._object.prog(name))
            for name in ("mirror_update", "mirror_delete", "copy")
        )
        self.old.key_format = self.new.key_format = "=II"
        self["old_id"] = self.old.id
        self["copy_flags"] = uapi.BPF_NOEXIST
        self["look_again"] = 1
        self._stack = stack

    def __getitem__(self, variable: str) -> int:
        return self._object.number(variable)

    def __setitem__(self, variable: str, value: int) -> None:
        self._object.set_number(variable, value)

    def mirroring(self) -> Self:
        """Attach the tracer of deletes, then that of updates: from now on each change of the old map is mirrored."""
        for prog in (self.mirror_delete, self.mirror_update):
            self._stack.enter_context(Link.tracing(prog, uapi.BPF_TRACE_FEXIT))
        return self

    def copy(self) -> int:
        """Walk the old map once; returns how many elements this pass has added to the new one."""
        before = self["copied"]
        with Link.iterator(self._copy, map=self.old) as walk:
            assert walk.read_iterator() == b""
        return self["copied"] - before

    def expected(self) -> dict[object, object]:
        """The old map's content, transformed."""
        return {key[::-1]: value for key, value in self.old.items() if isinstance(key, tuple)}


def misses(prog: Prog) -> int:
    """How often the program was skipped because it was running already on that CPU."""
    return prog.info().recursion_misses


@pytest.fixture
def migration() -> Iterator[Callable[..., Migration]]:
    """A factory of migrations, optionally into a given map of the same key and value size."""
    require("fentry:htab_map_update_elem", "fentry:htab_map_delete_elem")
    with ExitStack() as stack:
        yield lambda destination=None: Migration(stack, destination=destination)
