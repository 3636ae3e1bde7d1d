# SPDX-License-Identifier: MIT
"""The tracers of this folder, attached to a map and read from Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, Self

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Event, Tracer
from harness.guest.bpf.map_trace_hooks import CHANGES, Operation
from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.waiting import wait_until
from scenarios.map_trace.clock import Changes

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Change:
    """The gist of an event: key and value (of per-CPU maps: the first one) as integers, `error` as an errno's name."""

    operation: str
    key: int | None
    value: int | None = None
    error: str | None = None

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(
            event.operation,
            None if event.key is None else int.from_bytes(event.key, "little"),
            None if event.value is None else int.from_bytes(event.value[:8], "little"),
            errno.errorcode[event.error] if event.error else None,
        )


def changes(tracer: Tracer) -> list[Change]:
    """What the tracer has seen since it was asked last."""
    return [Change.of(event) for event in tracer.events()]


class Trace(Protocol):
    """Attaches a tracer to a map, as `Tracer.attach` does."""

    def __call__(self, map: Map, operations: Collection[Operation] = CHANGES, **options: Any) -> Tracer: ...


@pytest.fixture
def trace() -> Iterator[Trace]:
    """A factory of tracers, which must not lose an event; skips where a function can't be traced."""
    with ExitStack() as stack:
        made: list[Tracer] = []

        def attach(map: Map, operations: Collection[Operation] = CHANGES, **options: Any) -> Tracer:
            try:
                tracer = Tracer.attach(map, operations, **options)
            except LookupError as missing:
                pytest.skip(str(missing))
            made.append(stack.enter_context(tracer))
            return tracer

        yield attach
        assert [tracer.lost for tracer in made] == [0] * len(made)


@pytest.fixture
def new_map() -> Iterator[Callable[..., Map]]:
    """A factory of maps, by default hashes with 4-byte keys and 8-byte values, closed when the scenario ends."""
    with ExitStack() as stack:

        def make(
            map_type: int = uapi.BPF_MAP_TYPE_HASH,
            max_entries: int = 16,
            *,
            key_size: int = 4,
            value_size: int = 8,
            **options: Any,
        ) -> Map:
            made = Map.create(map_type, key_size, value_size, max_entries, name="traced", **options)
            return stack.enter_context(made)

        yield make


@pytest.fixture
def programs() -> Iterator[Changes]:
    """The programs of changes.bpf.c."""
    with ExitStack() as stack:
        yield Changes(stack)


class Migration:
    """The programs and maps of migration.bpf.c; `mirroring` and `copying` attach them.

    Other maps may be given that have the same sizes; the functions behind the old one's changes begin with `family`.
    """

    def __init__(
        self, stack: ExitStack, *, source: Map | None, destination: Map | None, family: str = "htab"
    ) -> None:
        self._object = stack.enter_context(Object.open(HERE / "migration.bpf.o"))
        for name, map in (("old_state", source), ("new_state", destination)):
            if map is not None:
                self._object.tune_map(name, reuse=map)
        for what in ("update", "delete"):
            self._object.tune_prog(f"mirror_{what}", attach_target=f"{family}_map_{what}_elem")
        self._object.load()
        # libbpf calls a map that it was given by that one's own name.
        self.old, self.new = (
            stack.enter_context(self._object.map(name) if map is None else map.dup())
            for name, map in (("old_state", source), ("new_state", destination))
        )
        self.mirror_update, self.mirror_delete, self.copier, self.sweeper, self._interrupt = (
            stack.enter_context(self._object.prog(name))
            for name in ("mirror_update", "mirror_delete", "copy", "sweep", "interrupt")
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

    def attach(self, prog: Prog) -> Link:
        """Attach one of the tracers."""
        return self._stack.enter_context(Link.tracing(prog, uapi.BPF_TRACE_FEXIT))

    def mirroring(self) -> Self:
        """Attach the tracer of deletes, then that of updates: from now on each change of the old map is mirrored."""
        for prog in (self.mirror_delete, self.mirror_update):
            self.attach(prog)
        return self

    def copy(self) -> int:
        """Walk the old map once; returns how many elements this pass has added to the new one."""
        before = self["copied"]
        with Link.iterator(self.copier, map=self.old) as walk:
            assert walk.read_iterator() == b""
        return self["copied"] - before

    def repair(self) -> None:
        """Walk both maps, and put right what differs."""
        self["repairing"] = 1
        self.copy()
        with Link.iterator(self.sweeper, map=self.new) as walk:
            assert walk.read_iterator() == b""
        self["repairing"] = 0

    def interrupt(self) -> None:
        """Let a timer change an element of pid 7 in the old map as soon as a program pauses on this CPU."""
        assert self._interrupt.test_run(bytes(14)).retval == 0

    def interleave(self, act: Callable[[], object], *pauses: tuple[int, Callable[[], object]]) -> None:
        """Do something on CPU 1, where programs pause at the keys of pid 42; do other things on CPU 0 in each pause.

        The places are those of migration.bpf.c, in the order in which the programs come to them.
        """
        self["pause_pid"], self["pause_where"] = 42, sum(place for place, _ in pauses)

        def run() -> None:
            os.sched_setaffinity(0, {1})
            act()

        os.sched_setaffinity(0, {0})
        thread = Thread(target=run)
        thread.start()
        try:
            for number, (_, meanwhile) in enumerate(pauses, 1):
                wait_until(lambda n=number: self["paused"] >= n, timeout=2, what=f"pause {number}")  # type: ignore[misc]
                meanwhile()
                self["let_go"] = number
        finally:
            self["let_go"] = len(pauses)
            thread.join()
        assert not self["gave_up"], "a program went on before it was let go"

    def expected(self) -> dict[object, object]:
        """The old map's content, transformed."""
        return {key[::-1]: value for key, value in self.old.items() if isinstance(key, tuple)}


def misses(prog: Prog) -> int:
    """How often the program was skipped because it was running already on that CPU."""
    return prog.info().recursion_misses


@pytest.fixture
def migration() -> Iterator[Callable[..., Migration]]:
    """A factory of migrations, optionally into a given map or out of one."""
    require("fentry:htab_map_update_elem", "fentry:htab_map_delete_elem")
    with ExitStack() as stack:
        yield lambda destination=None, source=None, family="htab": Migration(
            stack, source=source, destination=destination, family=family
        )
