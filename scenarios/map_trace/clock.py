# SPDX-License-Identifier: MIT
"""The programs of changes.bpf.c: changes that pass by the maps' functions, and a clock that ticks in softirq."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.prog import Prog
from harness.guest.waiting import wait_until
from scenarios.map_trace.actors import SMALLEST_PACKET

OBJECT = Path(__file__).parent / "changes.bpf.o"
FIRST_TICK = 1 << 31
"""Keys from here on are the clock's."""


class Changes:
    """The object, loaded; its programs run by name."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._object = stack.enter_context(Object.open(OBJECT)).load()
        self.plain, self.locked, self.clock, self.globals = (
            stack.enter_context(self._object.map(name)) for name in ("plain", "locked", "clock", ".bss")
        )

    def __getitem__(self, variable: str) -> int:
        return self._object.number(variable)

    def __setitem__(self, variable: str, value: int) -> None:
        self._object.set_number(variable, value)

    def run(self, program: str) -> None:
        """Run a classifier once; it must return 0."""
        with self._object.prog(program) as prog:
            assert prog.test_run(SMALLEST_PACKET).retval == 0, program

    def iterate(self, map: Map) -> None:
        """Let the iterator program write 2 into each element."""
        with self._object.prog("iterate") as prog, Link.iterator(prog, map=map) as walk:
            walk.read_iterator()

    @contextmanager
    def ticking(self, period_us: int = 200) -> Iterator[None]:
        """The clock updates an element of `plain` every so often within the block, where it has begun to."""
        self["period_ns"] = 1000 * period_us
        before = self["ticks"]
        self.run("start")
        try:
            wait_until(lambda: self["ticks"] > before, timeout=1, what="the clock to tick")
            yield
        finally:
            self.run("stop")

    @contextmanager
    def slow_tracer(self, patience: int) -> Iterator[Prog]:
        """The tracer that counts changes of `plain` in the variable `seen`, and loops `patience` times each time."""
        self["plain_id"], self["patience"] = self.plain.id, patience
        with self._object.prog("slow") as prog, Link.tracing(prog, uapi.BPF_TRACE_FEXIT):
            yield prog
