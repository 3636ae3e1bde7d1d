# SPDX-License-Identifier: MIT
"""The races of a migration, one by one: programs pause where it matters. The careless way loses, the cure does not."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import IterCreate
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace_hooks import Operation
from harness.guest.bpf.syscall import bpf
from harness.guest.bpf.uapi import BPF_ANY, BPF_NOEXIST
from scenarios.map_trace.conftest import Migration, Trace, misses

MakeMigration = Callable[..., Migration]
NewMap = Callable[..., Map]
COPYING, UPDATED, DELETED, DROPPING = 1, 2, 4, 8  # places in migration.bpf.c
OLD, NEW = (42, 0), (0, 42)
INTERRUPTING = (7, 1)

settled = pytest.mark.parametrize("settling", [False, True], ids=["careless", "settling"])


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize(
    ("flags", "kept"), [pytest.param(BPF_NOEXIST, 2, id="NOEXIST"), pytest.param(BPF_ANY, 1, id="ANY")]
)
def test_an_update_during_the_copy_survives_only_a_careful_copy(
    migration: MakeMigration, flags: int, kept: int
) -> None:
    """MTRACE-RACE-001: the RFC's own example copies with BPF_ANY, and loses the update."""
    moving = migration()
    moving.old[OLD] = 1
    moving.mirroring()["copy_flags"] = flags
    moving["look_again"] = False
    moving.interleave(moving.copy, (COPYING, lambda: moving.old.update(OLD, 2)))
    assert moving.old[OLD] == 2
    assert moving.new[NEW] == kept


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize("look_again", [True, False], ids=["looking again", "trusting"])
def test_a_delete_during_the_copy_is_undone_unless_the_copier_looks_again(
    migration: MakeMigration, look_again: bool
) -> None:
    """MTRACE-RACE-002: there is nothing to delete in the new map yet, then the copy brings the key back."""
    moving = migration()
    moving.old[OLD] = 1
    moving.mirroring()["look_again"] = look_again
    moving.interleave(moving.copy, (COPYING, lambda: moving.old.delete(OLD)))
    assert OLD not in moving.old
    assert (NEW in moving.new) is not look_again


@pytest.mark.vm(cpus=2)
@settled
def test_a_copier_that_looks_again_once_may_drop_what_came_back(
    migration: MakeMigration, settling: bool
) -> None:
    """MTRACE-RACE-002: the key is made anew between the look and the delete; so one must look until nothing changes."""
    moving = migration()
    moving.old[OLD] = 1
    moving.mirroring()["settling"] = settling
    moving.interleave(
        moving.copy,
        (COPYING, lambda: moving.old.delete(OLD)),
        (DROPPING, lambda: moving.old.update(OLD, 2)),
    )
    assert moving.old[OLD] == 2
    assert moving.new.lookup(NEW) == ((2).to_bytes(8, "little") if settling else None)


@pytest.mark.vm(cpus=2)
@settled
def test_tracers_may_run_in_another_order_than_the_updates(migration: MakeMigration, settling: bool) -> None:
    """MTRACE-RACE-003, MTRACE-LAW-003: who writes what it was told leaves the older value."""
    moving = migration().mirroring()
    moving["settling"] = settling
    moving.interleave(lambda: moving.old.update(OLD, 1), (UPDATED, lambda: moving.old.update(OLD, 2)))
    assert moving.old[OLD] == 2
    assert moving.new[NEW] == (2 if settling else 1)
    assert moving["mirrored_updates"] == 2


@pytest.mark.vm(cpus=2)
@settled
def test_an_updates_tracer_may_run_behind_that_of_a_later_delete(
    migration: MakeMigration, settling: bool
) -> None:
    """MTRACE-RACE-004: a key that is in the new map only."""
    moving = migration().mirroring()
    moving["settling"] = settling
    moving.interleave(lambda: moving.old.update(OLD, 1), (UPDATED, lambda: moving.old.delete(OLD)))
    assert OLD not in moving.old
    assert (NEW in moving.new) is not settling


@pytest.mark.vm(cpus=2)
@settled
def test_a_deletes_tracer_may_run_behind_that_of_a_later_update(
    migration: MakeMigration, settling: bool
) -> None:
    """MTRACE-RACE-004: a key that is in the old map only."""
    moving = migration().mirroring()
    moving["settling"] = settling
    moving.old[OLD] = 1
    moving.interleave(lambda: moving.old.delete(OLD), (DELETED, lambda: moving.old.update(OLD, 2)))
    assert moving.old[OLD] == 2
    assert (NEW in moving.new) is settling


def test_a_change_that_interrupts_the_tracer_is_lost_until_the_maps_are_compared(
    migration: MakeMigration,
) -> None:
    """MTRACE-RACE-005, MTRACE-REC-004, MTRACE-LAW-004: one miss more than the tracer's own writes tells."""
    moving = migration().mirroring()
    moving["pause_pid"], moving["pause_where"] = OLD[0], UPDATED
    moving.interrupt()
    moving.old[OLD] = 1
    assert not moving["gave_up"]
    assert INTERRUPTING in moving.old
    assert dict(moving.new.items()) == {NEW: 1}
    assert misses(moving.mirror_update) == moving["own_updates"] + 1
    moving.repair()
    assert dict(moving.new.items()) == moving.expected() == {NEW: 1, INTERRUPTING[::-1]: 1}


def test_a_new_map_that_is_too_small_is_told_by_the_tracers_count_only(
    migration: MakeMigration, new_map: NewMap
) -> None:
    """MTRACE-RACE-006, MTRACE-REC-008, MTRACE-LAW-004: then the migration is given up; the old map has everything."""
    small = migration(new_map(max_entries=4, key_size=8)).mirroring()
    for number in range(10):
        small.old[number, 0] = number
    assert small["failures"] == 6
    assert small.copy() == 0
    assert small["failures"] == 12
    assert len(list(small.new.keys())) == 4
    large = migration(new_map(max_entries=16, key_size=8), small.old).mirroring()
    assert large.copy() == 10
    assert dict(large.new.items()) == large.expected()
    assert (len(large.expected()), large["failures"]) == (10, 0)


def test_an_element_missed_by_a_split_walk_comes_with_the_next_pass(
    migration: MakeMigration, new_map: NewMap
) -> None:
    """MTRACE-RACE-007, MTRACE-ITER-004: it is skipped when one before it in its bucket goes between two reads."""
    moving = migration(source=new_map(max_entries=64, key_size=8))
    for number in range(64):
        moving.old[number, 0] = number
    moving.mirroring()["chatty"] = 1
    with Link.iterator(moving.copier, map=moving.old) as walk:
        descriptor = bpf(uapi.BPF_ITER_CREATE, IterCreate(link_fd=walk.fd))
        try:
            while os.read(descriptor, 1):
                del moving.old[moving["last"], 0]
        finally:
            os.close(descriptor)
    moving["chatty"] = 0
    missed = moving.expected()
    assert 0 < len(missed) < 64
    assert not list(moving.new.keys())
    assert moving.copy() == len(missed)
    assert dict(moving.new.items()) == missed
    assert moving.copy() == 0


@pytest.mark.parametrize("first", ["deletes", "updates"])
def test_the_tracer_of_deletes_comes_first(migration: MakeMigration, first: str) -> None:
    """MTRACE-RACE-008, MTRACE-GAP-011: else what is deleted before it comes stays, whenever the copy is made."""
    moving = migration()
    order = (moving.mirror_delete, moving.mirror_update)
    one, two = order if first == "deletes" else order[::-1]
    moving.attach(one)
    moving.old[OLD] = moving.old[43, 0] = 1
    del moving.old[OLD]
    moving.attach(two)
    moving.copy()
    assert moving.new[0, 43] == 1
    assert (NEW in moving.new) is (first == "updates")
    moving.repair()
    assert dict(moving.new.items()) == moving.expected() == {(0, 43): 1}


def test_what_an_lru_map_evicts_stays_in_the_new_one(
    migration: MakeMigration, new_map: NewMap, trace: Trace
) -> None:
    """MTRACE-RACE-009, MTRACE-GAP-004: a hook on evictions names the keys to drop; or both maps are compared."""
    source = new_map(uapi.BPF_MAP_TYPE_LRU_HASH, max_entries=16, key_size=8)
    moving = migration(source=source, family="htab_lru").mirroring()
    evictions = trace(source, (Operation.EVICT,))
    for number in range(64):
        moving.old[number, 0] = number
    surplus = dict(moving.new.items()).keys() - moving.expected().keys()
    assert surplus
    named = {(0, event.number) for event in evictions.events()}
    assert surplus <= named
    moving.repair()
    assert dict(moving.new.items()) == moving.expected()


@pytest.mark.vm(cpus=2)
def test_a_tracer_that_is_detached_may_still_be_at_work(migration: MakeMigration, trace: Trace) -> None:
    """MTRACE-RACE-010: the maps are alike when the old program has ended, not when the tracer's link has."""
    moving = migration()
    link = moving.attach(moving.mirror_update)
    # The end of a function's last tracer would wait for whoever is in it (kernel/trace/ftrace.c:ftrace_shutdown).
    trace(moving.old, (Operation.UPDATE,))
    met: list[bool] = []

    def detach() -> None:
        link.close()
        met.append(NEW in moving.new)

    moving.interleave(lambda: moving.old.update(OLD, 1), (UPDATED, detach))
    assert met == [False]
    assert moving.new[NEW] == 1
    moving.old[43, 0] = 1
    assert (0, 43) not in moving.new
