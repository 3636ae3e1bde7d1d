# SPDX-License-Identifier: MIT
"""Each flag of an update on each type of map: what the caller is told is what the tracer is told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source
from harness.guest.bpf.syscall import BpfError
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


def knows_cpu_flags(map: Map) -> bool:
    """Whether a per-CPU map's value can be given for one CPU, or once for all; nothing is written in finding out."""
    try:
        map.update(1, 0, flags=uapi.BPF_F_CPU | 0xFFFF << 32)
    except BpfError as error:
        return error.errno == errno.ERANGE
    return False


@pytest.mark.parametrize("kind", TYPES)
def test_the_tracer_is_told_the_callers_errno(new_map: NewMap, trace: Trace, kind: str) -> None:
    """MTRACE-SCN-001, MTRACE-HOOK-001 to -007, -022."""
    map_type, map_flags, steps = TYPES[kind]
    for name, who in ACTORS.items():
        map = new_map(map_type, 2, key_size=8 if kind == "LPM_TRIE" else 4, flags=map_flags)
        expected = list(steps)
        if map.percpu and name == "system call" and knows_cpu_flags(map):
            # kernel/bpf/hashtab.c:htab_map_check_update_flags looks for greater numbers only since there are such flags
            expected = [(flags, key, 0 if flags == BOTH else error) for flags, key, error in steps]
        tracer = trace(map)
        told = [who.update(map, key, number, flags) for number, (flags, key, _) in enumerate(steps)]
        assert told == [error for _, _, error in expected]
        events = tracer.events()
        assert [(event.flags, event.number, event.error) for event in events] == expected
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


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize("kind", ["PERCPU_HASH", "LRU_PERCPU_HASH", "PERCPU_ARRAY"])
def test_a_value_for_one_cpu_or_once_for_all_is_told_as_one(new_map: NewMap, trace: Trace, kind: str) -> None:
    """MTRACE-SCN-001, MTRACE-GAP-010: flags BPF_F_CPU, with the CPU above it, and BPF_F_ALL_CPUS."""
    map = new_map(TYPES[kind][0], 2)
    if not knows_cpu_flags(map):
        pytest.skip("this kernel lacks BPF_F_CPU")
    tracer = trace(map)
    map.update(1, 40, flags=uapi.BPF_F_ALL_CPUS)
    map.update(1, 41, flags=uapi.BPF_F_CPU | 1 << 32)
    assert map[1] == [40, 41]
    assert [(event.flags, event.value) for event in tracer.events()] == [
        (uapi.BPF_F_ALL_CPUS, (40).to_bytes(8, "little")),
        (uapi.BPF_F_CPU | 1 << 32, (41).to_bytes(8, "little")),
    ]
