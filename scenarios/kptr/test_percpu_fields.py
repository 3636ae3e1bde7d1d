# SPDX-License-Identifier: MIT
"""A field for objects per CPU takes nothing else: some kernels took what is none, and let it go as if it were."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, Reg, call, jeq, ldxdw, mov, r0, r1, r2, r6, r7, r8, stdw, stxdw
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, accepted, bench_with, check, refuses
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.pointers import pointer_map
from scenarios.kptr.workshop import Workshop

pytestmark = [pytest.mark.requires("percpu_kptr"), pytest.mark.usefixtures("panic_on_oops")]


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


def test_field_per_cpu_takes_no_object_of_the_kernel(bench: Bench) -> None:
    """KPTR-HAZ-002, KPTR-PCPU-006: up to 7.1 it did, though nothing there knows how to let go of one."""
    with pointer_map("percpu_kptr", "kr_obj") as map:
        percpu = Bench(map, bench.k, {})
        with refused(EACCES, log="invalid kptr access, R2 type=.*ptr_(kr_obj)? expected=ptr_kr_obj"):
            percpu.load(
                percpu.value,
                percpu.k.new(),
                exchange(mov(r2, r7), 0),
                jeq(r0, 0, "out"),
                percpu.release(r0),
            )


def test_field_per_cpu_is_written_by_exchange_only(bench: Bench) -> None:
    """KPTR-ACC-010, KPTR-PCPU-004, KPTR-TAG-003: like one that owns."""
    with pointer_map("percpu_kptr", "kr_unknown") as map:
        percpu = Bench(map, bench.k, {})
        check(
            percpu,
            {
                "look": accepted(lambda b: [b.value, ldxdw(r0, r6, 0)]),
                "0": refuses(EACCES, "store to referenced kptr", lambda b: [b.value, stdw(r6, 0, 0)]),
                "0 in a register": refuses(
                    EACCES, "store to referenced kptr", lambda b: [b.value, mov(r1, 0), stxdw(r6, 0, r1)]
                ),
                "what is there": refuses(
                    EACCES,
                    "store to referenced kptr",
                    lambda b: [b.value, ldxdw(r1, r6, 0), stxdw(r6, 0, r1)],
                ),
            },
        )


def new_percpu(w: Workshop) -> Item:
    """r7 = a new object per CPU."""
    return [mov(r1, w.t.plain.id), w.kfunc("bpf_percpu_obj_new"), jeq(r0, 0, "out"), mov(r7, r0)]


def drop_percpu(w: Workshop, object: Reg) -> Item:
    """Drop one."""
    return [mov(r1, object), w.kfunc("bpf_percpu_obj_drop")]


def test_field_per_cpu_takes_no_plain_object(workshop: Workshop, store: Map) -> None:
    """KPTR-HAZ-003, KPTR-PCPU-006: up to 7.1 it did, and let it go as if each CPU had one."""
    w = workshop
    with refused(EACCES, log="invalid kptr access, R2 type=ptr_"):
        w.load(
            w.value(store),
            w.new(w.t.plain),
            w.exchange(mov(r2, r7), "percpu"),
            jeq(r0, 0, "out"),
            drop_percpu(w, r0),
        )


def test_object_per_cpu_can_be_read_when_it_was_given_away(workshop: Workshop, store: Map) -> None:
    """KPTR-XCHG-017: within a section of RCU, without which it is gone like any other."""
    w = workshop
    given = [
        w.value(store),
        new_percpu(w),
        w.exchange(mov(r2, r7), "percpu"),
        mov(r8, r0),
        mov(r1, r7),
        call(uapi.BPF_FUNC_this_cpu_ptr),
        ldxdw(r0, r0, 0),
        jeq(r8, 0, "out"),
        drop_percpu(w, r8),
    ]
    w.load(given).close()
    with refused(EACCES, log="R1 type=scalar expected=percpu_ptr_|R7 !read_ok"):
        w.load(given, sleepable=True)
