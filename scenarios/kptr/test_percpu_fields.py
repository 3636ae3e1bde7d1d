# SPDX-License-Identifier: MIT
"""A field for objects per CPU takes nothing else: some kernels took what is none, and let it go as if it were."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES

import pytest

from harness.guest.bpf.asm import jeq, ldxdw, mov, r0, r1, r2, r6, r7, stdw, stxdw
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, accepted, bench_with, check, refuses
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.pointers import pointer_map

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
