# SPDX-License-Identifier: MIT
"""A program's state moves to a new map while it goes on changing: tracers first, then a copy by iterator."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from threading import Event, Thread

import pytest

from harness.guest.waiting import wait_until
from scenarios.map_trace.conftest import Migration, misses

MakeMigration = Callable[..., Migration]


def test_the_iterator_copies_each_element_once_and_says_when_it_is_through(migration: MakeMigration) -> None:
    """MTRACE-ITER-001 to -003, MTRACE-ITER-007: a second pass finds nothing to add."""
    moving = migration()
    for number in range(200):
        moving.old[number, number % 7] = number + 1000
    before = dict(moving.old.items())
    assert moving.copy() == 200
    assert (moving["walked"], moving["ends"], moving["failures"]) == (200, 1, 0)
    assert dict(moving.new.items()) == moving.expected()
    assert dict(moving.old.items()) == before
    assert moving.copy() == 0


@pytest.mark.vm(cpus=2)
def test_nothing_is_lost_or_brought_back_while_another_thread_changes_the_state(
    migration: MakeMigration,
) -> None:
    """MTRACE-MIG-001 to -005, MTRACE-LAW-001, -004: the new map has what the old one has when its writer stops."""
    keys = [(pid, fd) for pid in range(64) for fd in range(4)]
    moving = migration()
    for key in keys:
        moving.old[key] = 0
    started, stop = Event(), Event()

    def write() -> None:
        # On a CPU of its own: a tracer that is preempted by the other thread would skip that thread's change.
        os.sched_setaffinity(0, {1})
        chance = random.Random(1)
        version = 0
        present = set(keys)
        # Half of the keys never change: only the copy brings those over.
        busy = keys[::2]
        while not stop.is_set():
            version += 1
            key = chance.choice(busy)
            if chance.random() < 0.3 and key in present:
                moving.old.delete(key)
                present.remove(key)
            else:
                moving.old.update(key, version)
                present.add(key)
            if version == 100:
                started.set()

    os.sched_setaffinity(0, {0})
    writer = Thread(target=write)
    writer.start()
    try:
        assert started.wait(30)
        moving.mirroring()
        assert moving.copy() > 0
        wait_until(lambda: moving.copy() == 0, timeout=5, what="a pass that adds nothing")
    finally:
        stop.set()
        writer.join()
    assert dict(moving.new.items()) == moving.expected()
    assert moving["failures"] == 0
    assert misses(moving.mirror_update) == moving["mirrored_updates"] > 0
    assert misses(moving.mirror_delete) == moving["mirrored_deletes"] > 0
