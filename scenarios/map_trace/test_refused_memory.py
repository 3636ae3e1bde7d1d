# SPDX-License-Identifier: MIT
"""A tracer's write may find no memory: where interrupts are off, nobody refills what was set aside for the map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object

NewMap = Callable[..., Map]
ELEMENTS = 256
MORE = 1000


@pytest.mark.requires("fentry:htab_lru_map_delete_node")
@pytest.mark.parametrize(
    ("flags", "short"),
    [
        pytest.param(uapi.BPF_F_NO_PREALLOC, True, id="no preallocation"),
        pytest.param(0, False, id="preallocated"),
    ],
)
def test_a_tracer_of_evictions_is_refused_memory_and_counts_that(
    new_map: NewMap, flags: int, short: bool
) -> None:
    """MTRACE-REC-008, MTRACE-HOOK-024: an LRU evicts many elements at once, under its lock.

    A map without preallocation has a few elements for each CPU, which an interrupt's work fills up
    (kernel/bpf/memalloc.c:unit_alloc): ENOMEM when they are gone. What was refused is in the tracer's count only, and
    writes succeed again when interrupts were on.
    """
    lru = new_map(uapi.BPF_MAP_TYPE_LRU_HASH, ELEMENTS)
    notes = new_map(uapi.BPF_MAP_TYPE_HASH, MORE, key_size=8, flags=flags)
    with Object.open(Path(__file__).with_name("evictions.bpf.o")) as programs:
        programs.tune_map("notes", reuse=notes)
        programs.load()
        programs.set_number("traced_id", lru.id)
        with programs.prog("note_eviction") as prog, Link.tracing(prog, uapi.BPF_TRACE_FEXIT):
            for key in range(MORE):
                lru[key] = key
        evicted, noted, refused, troubles = (
            programs.number(name) for name in ("evicted", "noted", "refused", "troubles")
        )
    assert evicted == MORE - len(list(lru.keys())) > 0
    assert (noted + refused, troubles) == (evicted, 0)
    assert (refused > 0) is short
    assert len(list(notes.keys())) == noted > 0
