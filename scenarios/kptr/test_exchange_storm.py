# SPDX-License-Identifier: MIT
"""One CPU exchanges objects in a value while user space, on another, writes over it, removes it and makes it anew."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    atomic_add,
    call,
    ja,
    jeq,
    jne,
    label,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    stxdw,
    xor,
)
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import VALUE_SIZE
from scenarios.kptr.workshop import Workshop

pytestmark = pytest.mark.vm(cpus=2)
ZEROS = bytes(VALUE_SIZE)
ENOUGH = 100
"""So often each of the things that a storm is about must have happened."""


@contextmanager
def on_another_cpu(act: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Do this over and over on the last CPU, while the context's body runs on the first; whether it went on so far."""
    first, *_, last = sorted(os.sched_getaffinity(0))
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        os.sched_setaffinity(0, {last})
        try:
            while not stop.is_set():
                act()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    os.sched_setaffinity(0, {first})
    thread.start()
    try:
        yield lambda: not failures
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


@dataclass(frozen=True)
class Kind:
    """A map type, and what user space does to the value of key 0, over and over."""

    map_type: int
    disturb: Callable[[Map], None]
    flags: int = 0


def write_over(map: Map) -> None:
    map.update(0, ZEROS, flags=uapi.BPF_EXIST)


def remove_and_make_anew(map: Map) -> None:
    map.delete(0)
    map.update(0, ZEROS, flags=uapi.BPF_NOEXIST)


HASH, LRU_HASH, PERCPU_HASH = (
    uapi.BPF_MAP_TYPE_HASH,
    uapi.BPF_MAP_TYPE_LRU_HASH,
    uapi.BPF_MAP_TYPE_PERCPU_HASH,
)
KINDS = {
    "array_write_over": Kind(uapi.BPF_MAP_TYPE_ARRAY, write_over),
    "hash_write_over": Kind(HASH, write_over),
    "hash_remove": Kind(HASH, remove_and_make_anew),
    "hash_without_preallocation_remove": Kind(HASH, remove_and_make_anew, uapi.BPF_F_NO_PREALLOC),
    "lru_hash_remove": Kind(LRU_HASH, remove_and_make_anew),
    "percpu_array_write_over": Kind(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, write_over),
    "percpu_hash_remove": Kind(PERCPU_HASH, remove_and_make_anew, uapi.BPF_F_NO_PREALLOC),
}
# Kernels without it lose an object now and then, which test_hazards.py shows without luck (KPTR-FREE-015).
MENDED = {"hash_without_preallocation_remove": pytest.mark.requires("element_destructor")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MENDED.get(name, ())) for name in KINDS])
def test_exchanges_and_user_spaces_changes_add_up(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, name: str
) -> None:
    """KPTR-LAW-001 to -003, KPTR-HAZ-004, -009, KPTR-FREE-015, KPTR-XCHG-019: each object that was made came out once,
    by an exchange, by user space's change, or at the end of the map.
    """
    kind = KINDS[name]
    slots = make_slots(kind.map_type, flags=kind.flags)
    slots.map.update(0, ZEROS)
    slots.put(1)
    before = kr_kptr.counters()
    changes = 0

    with on_another_cpu(lambda: slots.run(slots.put_body, id=2, repeat=100)) as goes_on:

        def both_did_enough() -> bool:
            nonlocal changes
            for _ in range(20):
                kind.disturb(slots.map)
            changes += 20
            counts = kr_kptr.counters()
            exchanged = counts["released"] - before["released"]
            destroyed = counts["dtor_calls"] - before["dtor_calls"]
            found_released = destroyed > ENOUGH or not updates_release
            return not goes_on() or (exchanged > ENOUGH and changes > ENOUGH and found_released)

        wait_until(both_did_enough, timeout=10, what="exchanges and changes to meet")

    slots.close()
    wait_until(lambda: kr_kptr.count("live") == 0, timeout=5, what="the map to release what was left")
    end = kr_kptr.counters()
    assert end["created"] == end["released"] + end["dtor_calls"] - before["dtor_calls"]
    wait_until(lambda: kr_kptr.count("freed") == end["created"], timeout=5, what="all objects to be freed")


# what the reader below counts, by offset
NONE, WHOLE, CHANGED = 0, 8, 16
PATTERN = 0x5A5A5A5A
READS = 30


@pytest.mark.requires("local_kptr")
def test_reader_sees_a_live_object_or_none(workshop: Workshop, store: Map) -> None:
    """KPTR-ACC-003, KPTR-XCHG-019, KPTR-FREE-017: what a reader found in its RCU section stays what it was until the
    section ends, while another CPU drops it and allocates others in its place.
    """
    w, plain = workshop, workshop.t.plain
    counts = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 24, 1)

    def count(offset: int) -> Item:
        return [ld_map_value(r1, counts), mov(r2, 1), atomic_add(r1, offset, r2)]

    def stash() -> Item:
        return [
            w.new(plain),
            call(uapi.BPF_FUNC_get_prandom_u32),
            stxdw(r7, plain.at["key"], r0),
            xor(r0, PATTERN),
            stxdw(r7, plain.at["data"], r0),
            w.stash(r7, "plain"),
        ]

    writer = w.load(w.value(store), stash(), stash(), w.unstash("plain"), w.drop(r7))
    look = [
        ldxdw(r1, r7, plain.at["key"]),
        jne(r1, r8, "changed"),
        ldxdw(r2, r7, plain.at["data"]),
        xor(r2, PATTERN),
        jne(r2, r8, "changed"),
    ]
    reader = w.load(
        w.value(store),
        ldxdw(r7, r6, w.t.store.at["plain"]),
        jeq(r7, 0, "none"),
        ldxdw(r8, r7, plain.at["key"]),
        [look] * READS,
        count(WHOLE),
        ja("out"),
        label("none"),
        count(NONE),
        ja("out"),
        label("changed"),
        count(CHANGED),
    )
    packet = bytes(64)
    with writer, reader, counts, on_another_cpu(lambda: writer.test_run(packet, repeat=200)) as goes_on:

        def seen(offset: int) -> int:
            return int.from_bytes((counts.lookup(0) or b"")[offset : offset + 8], "little")

        def read_enough() -> bool:
            reader.test_run(packet, repeat=200)
            return not goes_on() or min(seen(NONE), seen(WHOLE)) > ENOUGH

        wait_until(read_enough, timeout=10, what="the reader to find objects, and none")
        assert seen(CHANGED) == 0
