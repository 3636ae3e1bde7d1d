# SPDX-License-Identifier: MIT
"""Objects of every size that the allocator has a cache for, made and freed in batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    call,
    fetch_add,
    jeq,
    ld_map_fd,
    ld_map_value,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r10,
    stxw,
)
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.local_types import Local, LocalBtf
from scenarios.kptr.workshop import Workshop

pytestmark = [pytest.mark.requires("local_kptr")]

SIZES = [16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048]
BATCH = 64


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
    all_types = replace(workshop.t, btf=b.builder.load(), key=b.u32, functions=b.functions, store=store)
    with all_types.btf:
        yield Workshop(all_types), types


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
        fill.test_run(bytes(64), repeat=BATCH)
        assert kr_kptr.counters()["live"] == made
        empty.test_run(bytes(64), repeat=BATCH)
        counts = kr_kptr.counters()
        assert (counts["live"], counts["dtor_calls"]) == (0, made)

        fill.test_run(bytes(64), repeat=BATCH)
        if by == "program":
            empty.test_run(bytes(64), repeat=BATCH)
            assert kr_kptr.counters()["live"] == 0
        else:
            assert kr_kptr.counters()["live"] == made
    wait_until(lambda: kr_kptr.count("freed") == 2 * made, timeout=10, what="all objects to be freed")
    assert kr_kptr.count("dtor_calls") == 2 * made
