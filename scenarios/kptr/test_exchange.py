# SPDX-License-Identifier: MIT
"""bpf_kptr_xchg as the only way in and out, and what user space sees of the pointer: nothing."""

from __future__ import annotations

import os
import threading

import pytest

from harness.guest.bpf import uapi
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakePocket
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE

MAP_TYPES = [uapi.BPF_MAP_TYPE_ARRAY, uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_PERCPU_ARRAY]
IDS = ["array", "hash", "percpu_array"]


@pytest.mark.parametrize("map_type", MAP_TYPES, ids=IDS)
def test_exchange_returns_what_was_stored_before(
    kr_kptr: KrKptr, make_pocket: MakePocket, map_type: int
) -> None:
    """KPTR-XCHG-008, -009, KPTR-LAW-003: the previous pointer comes out, owned by the program."""
    pocket = make_pocket(map_type)
    pocket.map.update(0, bytes(VALUE_SIZE))

    out = [pocket.put(11), pocket.put(22), pocket.put(33), pocket.take(), pocket.take()]

    assert out == [0, 11, 22, 33, 0]
    assert kr_kptr.counters() | {"freed": 3} == kr_kptr.counters() | {
        "created": 3,
        "released": 3,
        "live": 0,
        "dtor_calls": 0,
        "freed": 3,
    }


@pytest.mark.parametrize("map_type", MAP_TYPES, ids=IDS)
def test_user_space_reads_zeros_and_cannot_write_the_pointer(
    make_pocket: MakePocket, updates_release: bool, map_type: int
) -> None:
    """KPTR-USER-001 to -003, KPTR-LAW-004: bytes around the field are data, the field itself is not."""
    pocket = make_pocket(map_type)
    pocket.map.update(0, b"\x11" * VALUE_SIZE)
    assert pocket.peek() == 0
    pocket.put(7)

    before = pocket.map.lookup(0)
    pocket.map.update(0, b"\xee" * VALUE_SIZE)
    after = pocket.map.lookup(0)

    assert before == with_zeros_for_pointers(0x11, len(before or b""))
    assert after == with_zeros_for_pointers(0xEE, len(after or b""))
    # a hash's new value lies in another element, the array's in the same one
    keeps = not updates_release and map_type != uapi.BPF_MAP_TYPE_HASH
    assert pocket.peek() == (7 if keeps else 0)


def with_zeros_for_pointers(byte: int, size: int) -> bytes:
    """Values of one byte repeated, one after the other as a per-CPU look-up returns them."""
    value = bytearray([byte]) * VALUE_SIZE
    value[OWNED : OWNED + 8] = value[SEEN : SEEN + 8] = bytes(8)
    return bytes(value) * (size // VALUE_SIZE)


@pytest.mark.vm(cpus=2)
def test_cpus_that_exchange_one_value_lose_and_duplicate_nothing(
    kr_kptr: KrKptr, make_pocket: MakePocket
) -> None:
    """KPTR-XCHG-019, KPTR-LAW-001: every object that was made comes out once, but for the last."""
    pocket = make_pocket()
    cpus = sorted(os.sched_getaffinity(0))
    start = threading.Barrier(len(cpus))

    def exchange(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait()
        pocket.exchange_from_here(5000)

    def all_cpus_exchange() -> bool:
        threads = [threading.Thread(target=exchange, args=(cpu,)) for cpu in cpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return pocket.crossed > 100

    wait_until(all_cpus_exchange, timeout=10, what="the CPUs to get each other's objects")

    counts = kr_kptr.counters()
    assert (counts["released"], counts["live"]) == (counts["created"] - 1, 1)
    pocket.close()
    wait_until(lambda: kr_kptr.count("freed") == counts["created"], timeout=5, what="all objects to be freed")
    assert kr_kptr.count("dtor_calls") == 1
