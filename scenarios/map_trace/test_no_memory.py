# SPDX-License-Identifier: MIT
"""Tracers that come and go while each allocation fails in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, atomic_add, exit_, ld_map_value, mov, r0, r1, r2
from harness.guest.bpf.attrs import IterMapInfo, LinkCreateIter, LinkCreateTracing
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import load_iterator, load_tracing
from harness.guest.failslab import Trial, closing, prepared, starve

FUNCTION = "array_map_update_elem"
FENTRY, FEXIT = uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT

pytestmark = pytest.mark.requires("failslab", f"fentry:{FUNCTION}")


@dataclass(frozen=True)
class Counted:
    """A program that counts the calls of FUNCTION in word `index` of `counts`."""

    prog: Prog
    counts: Map
    index: int

    def sees(self) -> int:
        """How many of three writes it counts; it is as before when they are done."""
        before = self._count()
        with Map.create(uapi.BPF_MAP_TYPE_ARRAY) as traced:
            for value in range(3):
                traced[0] = value
        return self._count() - before

    def _count(self) -> int:
        raw = self.counts.lookup(0)
        assert raw is not None
        return int.from_bytes(raw[8 * self.index : 8 * self.index + 8], "little")


@pytest.fixture
def tracers() -> Iterator[tuple[Counted, Counted, Counted]]:
    """Two tracers at the function's end and one at its beginning, not attached."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 24, 1) as counts:

        def load(index: int, attach_type: int) -> Counted:
            code = asm(
                mov(r2, 1),
                ld_map_value(r1, counts, 8 * index),
                atomic_add(r1, 0, r2),
                mov(r0, 0),
                exit_(),
            )
            return Counted(load_tracing(FUNCTION, code, attach_type=attach_type), counts, index)

        loaded = load(0, FEXIT), load(1, FEXIT), load(2, FENTRY)
        yield loaded
        for each in loaded:
            each.prog.close()


def test_attaching_a_tracer_without_memory_leaves_the_others(
    tracers: tuple[Counted, Counted, Counted],
) -> None:
    """MTRACE-NOMEM-001: the function's first tracer, and one besides another, which misses nothing."""
    one, more, entry = tracers

    @contextmanager
    def scene(newcomer: Counted, attach_type: int, *others: Counted) -> Iterator[Trial]:
        links = [Link.tracing(each.prog, FEXIT) for each in others]

        def look() -> list[int]:
            return [each.sees() for each in tracers]

        def attached(fd: int) -> None:
            assert (newcomer.sees(), *(each.sees() for each in others)) == (3,) * (1 + len(others))
            os.close(fd)

        attributes = LinkCreateTracing(prog_fd=newcomer.prog.fd, attach_type=attach_type)
        yield Trial(prepared(uapi.BPF_LINK_CREATE, attributes), look, attached)
        for link in links:
            link.close()

    assert starve(lambda: scene(more, FEXIT)).refused
    assert starve(lambda: scene(entry, FENTRY, one, more)).refused


@pytest.mark.known_issue(
    "TRACER-CLOSE-NO-MEMORY",
    reason="what is left of a tracer that could not be taken out is freed all the same",
    splat="bpf_tracing_link_release",
)
@pytest.mark.parametrize("alone", [True, False], ids=["the last one", "besides others"])
def test_a_tracer_goes_without_memory(
    panic_on_oops: None, tracers: tuple[Counted, Counted, Counted], alone: bool
) -> None:
    """MTRACE-NOMEM-002: the close of its link succeeds, nothing of it runs any more, and the others miss nothing."""
    one, going, entry = tracers
    others = () if alone else (one, entry)

    @contextmanager
    def scene() -> Iterator[Trial]:
        links = [Link.tracing(each.prog, FENTRY if each is entry else FEXIT) for each in others]

        def gone(_: int) -> None:
            assert going.sees() == 0
            assert [each.sees() for each in others] == [3] * len(others)

        last = Link.tracing(going.prog, FEXIT)
        yield Trial(closing(last.release()), lambda: None, gone)
        for link in links:
            link.close()

    assert starve(scene, refusals=()).refused == 0


def test_an_iterator_over_a_map_without_memory_is_refused() -> None:
    """MTRACE-NOMEM-003: its link is not made, and the map may go."""
    with (
        Map.create(uapi.BPF_MAP_TYPE_ARRAY) as walked,
        load_iterator("bpf_map_elem", asm(mov(r0, 0), exit_())) as prog,
    ):

        @contextmanager
        def scene() -> Iterator[Trial]:
            attributes = LinkCreateIter(prog_fd=prog.fd, attach_type=uapi.BPF_TRACE_ITER)
            attributes.point("iter_info", IterMapInfo(map_fd=walked.fd))
            attributes.iter_info_len = 16
            yield Trial(prepared(uapi.BPF_LINK_CREATE, attributes), lambda: None, os.close)

        assert starve(scene).refused
        number = walked.id
    assert number not in Map.ids()
