# SPDX-License-Identifier: MIT
"""Objects of every size that the allocator has a cache for, made and freed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    asm,
    atomic_add,
    call,
    exit_,
    fetch_add,
    ja,
    jeq,
    jne,
    label,
    ld_map_fd,
    ld_map_value,
    ldxdw,
    ldxw,
    lsh,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r8,
    r9,
    r10,
    stxdw,
    stxw,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import argument_offset, load_tracing
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.local_types import Local, LocalBtf
from scenarios.kptr.workshop import Workshop

pytestmark = [pytest.mark.requires("local_kptr")]

SIZES = [16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048]
PERCPU_SIZES = [8, 16, 32, 64, 96, 128, 192, 256, 512]
BATCH = 64
PACKET = bytes(64)


@pytest.fixture
def sized(workshop: Workshop) -> Iterator[tuple[Workshop, list[Local]]]:
    """A workshop whose stores have a pointer to an object of each size, and the types of those."""
    b = LocalBtf()
    b.struct("kr_obj")
    types = [
        b.struct(f"kr_{size}", ("held", "kptr kr_obj"), *((f"d{i}", "u64") for i in range(1, size // 8)))
        for size in SIZES
    ]
    store = b.struct("kr_store", ("data", "u64"), *((f"p{type.size}", f"kptr {type.name}") for type in types))
    with b.builder.load() as loaded:
        yield Workshop(replace(workshop.t, btf=loaded, key=b.u32, functions=b.functions, store=store)), types


def next_value(w: Workshop, store: Map, counter: Map) -> Item:
    """r6 = the value whose turn it is."""
    return [
        ld_map_value(r1, counter),
        mov(r2, 1),
        fetch_add(r1, 0, r2),
        and_(r2, BATCH - 1),
        stxw(r10, -4, r2),
        ld_map_fd(r1, store),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "out"),
        mov(r6, r0),
    ]


@pytest.mark.parametrize("by", ["program", "map"])
def test_batch_of_every_size_is_freed(sized: tuple[Workshop, list[Local]], kr_kptr: KrKptr, by: str) -> None:
    """KPTR-LAW-006, KPTR-OBJ-007: two batches of 64 of each size; what was made is what is freed, once each."""
    w, types = sized
    made = BATCH * len(types)
    with ExitStack() as stack:
        counter = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1))
        store = stack.enter_context(w.t.map(max_entries=BATCH))
        fields = [(type, f"p{type.size}") for type in types]
        fill, empty = (
            stack.enter_context(w.load(next_value(w, store, counter), verbs))
            for verbs in (
                [[w.counted(type, type.size), w.stash(r7, field)] for type, field in fields],
                [[w.unstash(field), w.drop(r7)] for _, field in fields],
            )
        )
        fill.test_run(PACKET, repeat=BATCH)
        assert kr_kptr.counters()["live"] == made
        empty.test_run(PACKET, repeat=BATCH)
        counts = kr_kptr.counters()
        assert (counts["live"], counts["dtor_calls"]) == (0, made)

        fill.test_run(PACKET, repeat=BATCH)
        if by == "program":
            empty.test_run(PACKET, repeat=BATCH)
            assert kr_kptr.counters()["live"] == 0
        else:
            assert kr_kptr.counters()["live"] == made
    wait_until(lambda: kr_kptr.count("freed") == 2 * made, timeout=10, what="all objects to be freed")
    assert kr_kptr.count("dtor_calls") == 2 * made


@pytest.fixture
def sized_percpu(workshop: Workshop) -> Iterator[tuple[Workshop, list[Local]]]:
    """As `sized`, of objects that have a copy per CPU and nothing but numbers in it."""
    b = LocalBtf()
    types = [b.struct(f"kr_{size}", *((f"d{i}", "u64") for i in range(size // 8))) for size in PERCPU_SIZES]
    store = b.struct(
        "kr_store", ("data", "u64"), *((f"p{type.size}", f"percpu_kptr {type.name}") for type in types)
    )
    with b.builder.load() as loaded:
        yield Workshop(replace(workshop.t, btf=loaded, key=b.u32, functions=b.functions, store=store)), types


@pytest.fixture
def dropped_percpu() -> Iterator[Callable[[], int]]:
    """How many per-CPU objects were dropped by a map."""
    name = "__bpf_obj_drop_impl"
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as calls:
        code = asm(
            ldxdw(r3, r1, argument_offset(name, "percpu")),
            and_(r3, 1),
            ld_map_value(r1, calls),
            atomic_add(r1, 0, r3),
            mov(r0, 0),
            exit_(),
        )
        with (
            load_tracing(name, code, attach_type=uapi.BPF_TRACE_FENTRY) as prog,
            Link.tracing(prog, uapi.BPF_TRACE_FENTRY),
        ):
            yield lambda: calls.number(0)


def field(type: Local) -> str:
    return f"p{type.size}"


class Batch:
    """Per-CPU objects of all sizes, of each one in each value of a store, all stamped with numbers of their own."""

    def __init__(self, w: Workshop, types: list[Local], store: Map, stack: ExitStack) -> None:
        self._w = w
        counter = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1))

        def on_each(step: Callable[[Local, str], Item]) -> Prog:
            """A program for the value whose turn it is: a step for each of its objects, r8 the object's number."""
            return stack.enter_context(
                w.load(
                    next_value(w, store, counter),
                    [ldxw(r8, r10, -4), lsh(r8, 8), mov(r9, 0)],
                    [[add(r8, 1), step(type, here := f"next{type.size}"), label(here)] for type in types],
                    [mov(r0, r9), ja("exit")],
                )
            )

        self._fill, self._look, self._empty = (on_each(step) for step in (self._put, self._read, self._take))

    def _copy(self, type: Local, missing: str) -> Item:
        """r0 = the copy of this CPU of the value's object."""
        at = self._w.t.store.at[field(type)]
        return [ldxdw(r1, r6, at), jeq(r1, 0, missing), call(uapi.BPF_FUNC_this_cpu_ptr)]

    def _put(self, type: Local, next: str) -> Item:
        w = self._w
        return [
            [ldxdw(r1, r6, w.t.store.at[field(type)]), jne(r1, 0, next)],
            [mov(r1, type.id), w.kfunc("bpf_percpu_obj_new"), jeq(r0, 0, next)],
            w.exchange(mov(r2, r0), field(type)),
            [jeq(r0, 0, f"was_empty{type.size}"), self._drop(), label(f"was_empty{type.size}")],
            self._copy(type, next),
            [stxdw(r0, at, r8) for at in ends(type)],
        ]

    def _read(self, type: Local, next: str) -> Item:
        compare: Item = [[ldxdw(r1, r0, at), jne(r1, r8, next)] for at in ends(type)]
        return [self._copy(type, next), compare, add(r9, 1)]

    def _take(self, type: Local, next: str) -> Item:
        return [self._w.exchange(mov(r2, 0), field(type)), jeq(r0, 0, next), self._drop(), add(r9, 1)]

    def _drop(self) -> Item:
        return [mov(r1, r0), self._w.kfunc("bpf_percpu_obj_drop")]

    def fill(self) -> None:
        """Make an object for each pointer that is empty; those for which there is no memory at once stay so."""
        self._fill.test_run(PACKET, repeat=BATCH)

    def intact(self) -> int:
        """The number of objects that hold their stamp."""
        return sum(self._look.test_run(PACKET).retval for _ in range(BATCH))

    def empty(self) -> int:
        """Drop all, and say how many."""
        return sum(self._empty.test_run(PACKET).retval for _ in range(BATCH))


def ends(type: Local) -> set[int]:
    """Where the first and the last eight bytes are."""
    return {0, type.size - 8}


@pytest.mark.requires("percpu_kptr", "fentry:__bpf_obj_drop_impl")
def test_batch_of_every_size_per_cpu_is_freed(
    sized_percpu: tuple[Workshop, list[Local]], dropped_percpu: Callable[[], int]
) -> None:
    """KPTR-LAW-006, KPTR-PCPU-002: two batches of 64 of each, none in another's memory; a map drops the second."""
    w, types = sized_percpu
    made = BATCH * len(types)
    with ExitStack() as stack:
        batch = Batch(w, types, stack.enter_context(w.t.map(max_entries=BATCH)), stack)

        def filled() -> bool:
            batch.fill()
            return batch.intact() == made

        # the allocator gets memory for a few at a time, in an interrupt
        wait_until(filled, timeout=5, what="a batch of objects that hold what was written")
        assert batch.empty() == made
        assert batch.intact() == 0

        wait_until(filled, timeout=5, what="the second batch")
        dropped = dropped_percpu()
    wait_until(lambda: dropped_percpu() - dropped == made, timeout=5, what="the map to drop all objects")
