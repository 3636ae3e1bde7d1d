# SPDX-License-Identifier: MIT
"""Programs in softirq change the traced map while a system call changes it, or while the tracer runs."""

from __future__ import annotations

from harness.guest.bpf.map_trace import Event, Source
from harness.guest.waiting import wait_until
from scenarios.map_trace.clock import FIRST_TICK, Changes
from scenarios.map_trace.conftest import Trace, misses

BATCH = 300


def test_a_program_that_interrupts_a_system_call_is_told_from_it(programs: Changes, trace: Trace) -> None:
    """MTRACE-HOOK-020, -024, MTRACE-REC-004: and each change is seen or counted as missed."""
    tracer = trace(programs.plain, capacity=8 * BATCH)
    events: list[Event] = []
    batches = 0

    def interrupted() -> bool:
        nonlocal batches
        batches += 1
        programs.plain.update_batch([(key, key) for key in range(BATCH)])
        events.extend(tracer.events())
        sources = [event.source for event in events]
        first = sources.index(Source.SYSTEM_CALL)
        last = len(sources) - sources[::-1].index(Source.SYSTEM_CALL)
        return sources[first:last].count(Source.PROGRAM) >= 2

    with programs.ticking():
        wait_until(interrupted, timeout=2, what="ticks between the updates of a batch")
    events += tracer.events()
    for event in events:
        assert event.source is (Source.PROGRAM if event.number >= FIRST_TICK else Source.SYSTEM_CALL), event
    assert len(events) == tracer.seen
    assert tracer.seen + tracer.misses == batches * BATCH + programs["ticks"]


def test_a_change_that_interrupts_the_tracer_is_lost_and_counted(programs: Changes) -> None:
    """MTRACE-REC-004: nothing but the counter tells; it tells exactly."""
    updates = 0

    def missed() -> bool:
        nonlocal updates
        updates += 1
        programs.plain[1] = updates
        return misses(tracer) > 0

    with programs.slow_tracer(patience=100_000) as tracer:
        with programs.ticking():
            wait_until(missed, timeout=2, what="a tick while the tracer runs")
        assert programs["seen"] + misses(tracer) == updates + programs["ticks"]
        assert programs["seen"] < updates + programs["ticks"]
