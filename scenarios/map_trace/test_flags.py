# SPDX-License-Identifier: MIT
"""Each flag of an update on each type of map: what the caller is told is what the tracer is told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source
from harness.guest.bpf.uapi import BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from scenarios.map_trace.actors import ACTORS
from scenarios.map_trace.conftest import Trace

NewMap = Callable[..., Map]
BOTH = BPF_NOEXIST | BPF_EXIST
FULL = errno.E2BIG
# Flags, key, errno: in a map with room for two elements, which is empty at first.
HASH = (
    (BPF_EXIST, 1, errno.ENOENT),
    (BPF_NOEXIST, 1, 0),
    (BPF_NOEXIST, 1, errno.EEXIST),
    (BPF_EXIST, 1, 0),
    (BPF_ANY, 1, 0),
    (BOTH, 1, errno.EINVAL),
    (BPF_ANY, 0, 0),
)
HASH_WHEN_FULL = ((BPF_ANY, 3, FULL), (BPF_NOEXIST, 3, FULL), (BPF_EXIST, 3, errno.ENOENT))
ARRAY = (
    (BPF_ANY, 1, 0),
    (BPF_NOEXIST, 1, errno.EEXIST),
    (BPF_EXIST, 1, 0),
    (BOTH, 1, errno.EINVAL),
    (BPF_ANY, 2, errno.E2BIG),
    (BPF_NOEXIST, 2, errno.E2BIG),
)
TRIE = (
    *HASH[1:4],
    (BPF_ANY, 1, 0),
    (BOTH, 1, errno.EINVAL),
    (BPF_EXIST, 0, errno.ENOENT),
    (BPF_ANY, 33, errno.EINVAL),
)
TYPES: dict[str, tuple[int, int, Sequence[tuple[int, int, int]]]] = {
    "HASH": (uapi.BPF_MAP_TYPE_HASH, 0, (*HASH, *HASH_WHEN_FULL)),
    "HASH without preallocation": (
        uapi.BPF_MAP_TYPE_HASH,
        uapi.BPF_F_NO_PREALLOC,
        (*HASH, *HASH_WHEN_FULL),
    ),
    "LRU_HASH": (uapi.BPF_MAP_TYPE_LRU_HASH, 0, HASH),
    "PERCPU_HASH": (uapi.BPF_MAP_TYPE_PERCPU_HASH, 0, (*HASH, *HASH_WHEN_FULL)),
    "LRU_PERCPU_HASH": (uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH, 0, HASH),
    "ARRAY": (uapi.BPF_MAP_TYPE_ARRAY, 0, ARRAY),
    "PERCPU_ARRAY": (uapi.BPF_MAP_TYPE_PERCPU_ARRAY, 0, ARRAY),
    "LPM_TRIE": (uapi.BPF_MAP_TYPE_LPM_TRIE, uapi.BPF_F_NO_PREALLOC, TRIE),
}


@pytest.mark.parametrize("kind", TYPES)
def test_the_tracer_is_told_the_callers_errno(new_map: NewMap, trace: Trace, kind: str) -> None:
    """MTRACE-SCN-001, MTRACE-HOOK-001 to -007, -022."""
    map_type, map_flags, steps = TYPES[kind]
    for name, who in ACTORS.items():
        map = new_map(map_type, 2, key_size=8 if kind == "LPM_TRIE" else 4, flags=map_flags)
        tracer = trace(map)
        told = [who.update(map, key, number, flags) for number, (flags, key, _) in enumerate(steps)]
        assert told == [error for _, _, error in steps]
        events = tracer.events()
        assert [(event.flags, event.number, event.error) for event in events] == list(steps)
        assert [event.value[:8] for event in events if event.value] == [
            number.to_bytes(8, "little") for number in range(len(steps))
        ]
        assert {event.source for event in events} == {Source(name)}


def test_what_the_system_call_refuses_itself_comes_to_no_map(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-SCN-001: BPF_F_LOCK for a value without lock; a program's goes as far as the map's function."""
    for map_type in (uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_ARRAY):
        map = new_map(map_type)
        tracer = trace(map)
        assert ACTORS["system call"].update(map, 1, 1, BPF_F_LOCK) == errno.EINVAL
        assert tracer.events() == []
        assert ACTORS["program"].update(map, 1, 1, BPF_F_LOCK) == errno.EINVAL
        (event,) = tracer.events()
        assert (event.flags, event.error, event.source) == (BPF_F_LOCK, errno.EINVAL, Source.PROGRAM)


def test_a_frozen_map_is_changed_by_programs_only(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-SCN-001: EPERM for user space, and no event."""
    map = new_map()
    tracer = trace(map)
    map.freeze()
    assert ACTORS["system call"].update(map, 1, 1) == ACTORS["system call"].delete(map, 1) == errno.EPERM
    assert tracer.seen == 0
    assert ACTORS["program"].update(map, 1, 1) == ACTORS["program"].delete(map, 1) == 0
    assert {event.source for event in tracer.events()} == {Source.PROGRAM}
    assert tracer.seen == 2
