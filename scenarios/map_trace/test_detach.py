# SPDX-License-Identifier: MIT
"""Tracers come and go while the map is being changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, atomic_add, call, exit_, jne32, label, ld_map_value, mov, r0, r1, r2
from harness.guest.bpf.map import Map
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.waiting import wait_until
from scenarios.map_trace.clock import FIRST_TICK, Changes
from scenarios.map_trace.conftest import Trace

NewMap = Callable[..., Map]
KEYS = 64


class Load:
    """A thread that updates the elements of a map in a row, each with the next number."""

    def __init__(self, map: Map) -> None:
        self.made = 0
        self._map, self._on = map, True
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        while self._on:
            self._map[self.made % KEYS] = self.made
            self.made += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """The thread is at work within the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._on = False
            self._thread.join()

    def go_on(self, count: int = 20) -> None:
        """Wait until so many more updates were made."""
        goal = self.made + count
        wait_until(lambda: self.made >= goal, timeout=2, what=f"{count} more updates")


@pytest.mark.vm(cpus=2)
def test_a_tracer_detached_under_load_sees_nothing_more(programs: Changes, trace: Trace) -> None:
    """MTRACE-SCN-008, MTRACE-RACE-010, upstream prog_tests/recursive_attach.c fentry_attach_stress: a counter stands
    still, and no splat tells of a program that ran on.
    """
    load = Load(programs.plain)
    with programs.ticking(), load.running():
        for _ in range(5):
            tracer = trace(programs.plain, capacity=4096)
            load.go_on()
            tracer.detach()
            load.go_on(1)  # a run that was under way has ended then
            seen = tracer.seen
            load.go_on()
            assert 0 < seen == tracer.seen
            assert seen == tracer.lost + len(tracer.events())


@pytest.mark.vm(cpus=2)
def test_a_tracers_program_is_replaced_without_a_gap(programs: Changes, trace: Trace) -> None:
    """MTRACE-SCN-008: the new one first, then the old one off; each change is seen by one of them, or by both."""
    load = Load(programs.plain)
    with load.running():
        old = trace(programs.plain, capacity=8192)
        load.go_on()
        new = trace(programs.plain, capacity=8192)
        load.go_on()
        old.detach()
        load.go_on()
    seen_by_old, seen_by_new = (
        [int.from_bytes(event.value or b"", "little") for event in tracer.events()] for tracer in (old, new)
    )
    assert seen_by_old == list(range(seen_by_old[0], seen_by_old[-1] + 1))
    assert seen_by_new == list(range(seen_by_new[0], load.made))
    assert seen_by_old[0] < seen_by_new[0] <= seen_by_old[-1] < load.made - 1


def test_two_programs_of_one_tracer_count_alike_in_softirq(programs: Changes, trace: Trace) -> None:
    """MTRACE-SCN-004: before and behind, with ticks all the while; what one missed is in its counter."""
    before, behind = (
        trace(programs.plain, kind=kind, capacity=4096)
        for kind in (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT)
    )
    with programs.ticking():
        wait_until(lambda: behind.seen >= 30, timeout=2, what="30 ticks")
    assert before.seen + before.misses == behind.seen + behind.misses == programs["ticks"]
    assert {event.number >= FIRST_TICK for event in behind.events()} == {True}


class Sleeper:
    """A thread that sleeps once for `seconds`, when it is told to."""

    def __init__(self, seconds: float) -> None:
        self._go = threading.Event()
        self._ready = threading.Event()
        self._seconds = seconds
        self._thread = Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        self.id = threading.get_native_id()
        self._ready.set()
        self._go.wait()
        time.sleep(self._seconds)

    def sleep(self) -> None:
        self._go.set()

    def join(self) -> None:
        self._thread.join()


def test_a_tracer_detached_while_its_function_sleeps_does_not_run_behind_it(new_map: NewMap) -> None:
    """MTRACE-HOOK-022, MTRACE-RACE-010, upstream prog_tests/fexit_sleep.c: the trampoline outlives the link."""
    entered, left = (new_map(uapi.BPF_MAP_TYPE_ARRAY, 1) for _ in range(2))
    sleeper = Sleeper(0.25)
    with ExitStack() as stack:
        stack.callback(sleeper.join)
        stack.callback(sleeper.sleep)
        links = []
        for kind, counter in ((uapi.BPF_TRACE_FENTRY, entered), (uapi.BPF_TRACE_FEXIT, left)):
            code = asm(
                call(uapi.BPF_FUNC_get_current_pid_tgid),
                jne32(r0, sleeper.id, "out"),
                ld_map_value(r1, counter),
                mov(r2, 1),
                atomic_add(r1, 0, r2),
                label("out"),
                mov(r0, 0),
                exit_(),
            )
            prog = stack.enter_context(load_tracing("hrtimer_nanosleep", code, attach_type=kind))
            links.append(stack.enter_context(attach_tracing(prog, kind)))
        sleeper.sleep()
        wait_until(lambda: entered[0] == 1, timeout=1, what="the thread to sleep")
        for link in links:
            link.close()
        detached_in_time = left[0] == 0
        sleeper.join()
        assert detached_in_time, "the thread woke up before the tracer was off"
        assert (entered[0], left[0]) == (1, 0)
