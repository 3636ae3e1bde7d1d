# SPDX-License-Identifier: MIT
"""bpf_kptr_xchg takes out of a field that owns, and puts in what the program owns: nothing else loads."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    call,
    exit_,
    jeq,
    jne,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r10,
    stxdw,
    stxw,
)
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, Case, accepted, bench_with, check, kfunc, refuses
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE, owning_map
from scenarios.kptr.pointers import map_with


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with("kr_obj") as bench:
        yield bench


def with_task(*items: Item) -> Item:
    """Around `items`, r8 = a task that the program owns."""
    return [
        call(uapi.BPF_FUNC_get_current_task_btf),
        mov(r1, r0),
        kfunc("bpf_task_acquire"),
        jeq(r0, 0, "out"),
        mov(r8, r0),
        *items,
        mov(r1, r8),
        kfunc("bpf_task_release"),
    ]


NO_OWNER = "must be referenced|expects referenced|R2 type=.* expected"
"""What is said of an argument that the program does not own: its type's flags tell, or that it has no reference."""

# No errno stands where 6.1 says EACCES and later kernels EINVAL.
FIRST: dict[str, Case] = {
    # KPTR-XCHG-002
    "stack": refuses(
        EACCES,
        "R1 type=fp expected=map_value",
        lambda b: [mov(r2, 0), mov(r1, r10), add(r1, -8), call(uapi.BPF_FUNC_kptr_xchg)],
    ),
    "context": refuses(
        EACCES, "R1 type=ctx expected=map_value", lambda b: [mov(r2, 0), call(uapi.BPF_FUNC_kptr_xchg)]
    ),
    "value that may be NULL": refuses(
        EACCES,
        "R1 type=map_value_or_null expected=map_value",
        lambda b: [
            # where a constant key of an array is known to be in it, the look-up's result is no NULL
            call(uapi.BPF_FUNC_get_prandom_u32),
            stxw(r10, -4, r0),
            ld_map_fd(r1, b.map),
            mov(r2, r10),
            add(r2, -4),
            call(uapi.BPF_FUNC_map_lookup_elem),
            mov(r1, r0),
            mov(r2, 0),
            call(uapi.BPF_FUNC_kptr_xchg),
        ],
    ),
    "kernel's object": refuses(
        EACCES,
        "R1 type=.*ptr_ expected=map_value",
        lambda b: [b.k.new(), mov(r6, r7), exchange(mov(r2, 0), 8)],
    ),
    # KPTR-XCHG-004
    "unknown offset": refuses(
        None,
        "R1 doesn't have constant offset",
        lambda b: [b.value, ldxdw(r1, r6, 0), and_(r1, 8), add(r6, r1), exchange(mov(r2, 0), 8)],
    ),
    # KPTR-XCHG-006, -007
    "data": refuses(EACCES, "off=0 doesn't point to kptr", lambda b: [b.value, exchange(mov(r2, 0), 0)]),
    "inside the pointer": refuses(
        EACCES, "off=28 doesn't point to kptr", lambda b: [b.value, exchange(mov(r2, 0), OWNED + 4)]
    ),
    "end of the value": refuses(
        EACCES,
        "invalid access to map value|doesn't point",
        lambda b: [b.value, exchange(mov(r2, 0), VALUE_SIZE)],
    ),
    "pointer that does not own": refuses(
        EACCES, "off=8 kptr isn't referenced kptr", lambda b: [b.value, exchange(mov(r2, 0), SEEN)]
    ),
}

SECOND: dict[str, Case] = {
    # KPTR-XCHG-008, -009
    "object of the program": accepted(
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7)), jeq(r0, 0, "out"), b.release(r0)]
    ),
    "NULL": accepted(lambda b: [b.value, b.take, b.release(r7)]),
    "object that was in the same value": accepted(
        lambda b: [b.value, b.take, exchange(mov(r2, r7)), jeq(r0, 0, "out"), b.release(r0)]
    ),
    # KPTR-XCHG-010
    "object that may be NULL": refuses(
        EACCES,
        "Possibly NULL pointer passed to helper (arg|R)2",
        lambda b: [b.value, exchange(mov(r2, 0)), exchange(mov(r2, r0)), jeq(r0, 0, "out"), b.release(r0)],
        "kptr_untrusted_tag",
    ),
    # KPTR-XCHG-011
    "number": refuses(EACCES, "R2 type=scalar expected", lambda b: [b.value, exchange(mov(r2, 1))]),
    "map's value": refuses(EACCES, "R2 type=map_value expected", lambda b: [b.value, exchange(mov(r2, r6))]),
    "pointer out of a field that does not own": refuses(
        EACCES,
        "R2 type=untrusted_ptr_ expected",
        lambda b: [b.value, ldxdw(r7, r6, SEEN), jeq(r7, 0, "out"), exchange(mov(r2, r7))],
    ),
    "pointer out of the field itself": refuses(
        EACCES,
        "R2 type=untrusted_ptr_ expected",
        lambda b: [b.value, ldxdw(r7, r6, OWNED), jeq(r7, 0, "out"), exchange(mov(r2, r7))],
    ),
    "context": refuses(
        EACCES, "R2 type=ctx expected", lambda b: [mov(r7, r1), b.value, exchange(mov(r2, r7))]
    ),
    # KPTR-XCHG-012, -013
    "middle of an object": refuses(
        EACCES, "invalid kptr access, R2", lambda b: [b.value, b.k.new(), add(r7, 8), exchange(mov(r2, r7))]
    ),
    "unknown place in an object": refuses(
        EACCES,
        "variable .*access var_off=.* disallowed|invalid kptr access, R2",
        lambda b: [b.value, b.k.new(), ldxdw(r1, r6, 0), and_(r1, 8), add(r7, r1), exchange(mov(r2, r7))],
    ),
    "object of another type": refuses(
        EACCES,
        "invalid kptr access, R2 type=(trusted_)?ptr_task_struct expected=ptr_kr_obj",
        lambda b: [b.value, with_task(exchange(mov(r2, r8)))],
        "kfunc:bpf_task_acquire",
    ),
}

AFTERWARDS: dict[str, Case] = {
    # KPTR-XCHG-015
    "made": refuses(EINVAL, "Unreleased reference", lambda b: b.k.new()),
    "taken out": refuses(EINVAL, "Unreleased reference", lambda b: [b.value, b.take]),
    "put out by another": refuses(
        EINVAL, "Unreleased reference", lambda b: [b.value, b.k.new(), exchange(mov(r2, r7))]
    ),
    "taken out, and known to be there": refuses(
        EINVAL, "Unreleased reference", lambda b: [b.value, b.take, ldxw(r0, r7), mov(r0, 0), exit_()]
    ),
    "dropped on one of two paths": refuses(
        EINVAL,
        "Unreleased reference",
        lambda b: [b.value, ldxdw(r8, r6, 0), b.k.new(), jne(r8, 0, "out"), b.release(r7)],
    ),
    "remembered only in a field that does not own": refuses(
        EINVAL, "Unreleased reference", lambda b: [b.value, b.take, stxdw(r6, SEEN, r7)]
    ),
    # KPTR-XCHG-016
    "read, though maybe NULL": refuses(
        EACCES, "invalid mem access 'ptr_or_null_'", lambda b: [b.value, exchange(mov(r2, 0)), ldxw(r0, r0)]
    ),
    "released, though maybe NULL": refuses(
        None,
        "Possibly NULL pointer|must point to",
        lambda b: [b.value, exchange(mov(r2, 0)), b.release(r0)],
    ),
    # KPTR-XCHG-017
    "read after it was given away": refuses(
        EACCES,
        "invalid mem access 'scalar'|R7 !read_ok",
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7)), ldxw(r0, r7)],
    ),
    "released after it was given away": refuses(
        EINVAL,
        "must point to|expects ref",
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7)), jne(r0, 0, 2), b.release(r7), exit_()],
    ),
    "given away twice": refuses(
        EACCES,
        "R2 type=scalar expected|R7 !read_ok",
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7)), exchange(mov(r2, r7))],
    ),
    "released twice": refuses(
        EINVAL,
        "must point to|expects ref",
        lambda b: [b.k.new(), b.release(r7), b.release(r7)],
    ),
    "read after it was released": refuses(
        EACCES, "invalid mem access 'scalar'", lambda b: [b.k.new(), b.release(r7), ldxw(r0, r7)]
    ),
}


def test_exchange_wants_a_field_that_owns(bench: Bench) -> None:
    """KPTR-XCHG-002, -004, -006, -007: at a known offset in a map's value."""
    check(bench, FIRST)


def test_exchange_wants_an_object_that_the_program_owns_or_null(bench: Bench) -> None:
    """KPTR-XCHG-008 to -013: all of it, of the field's type, tested."""
    check(bench, SECOND)


def test_object_has_one_owner_after_the_exchange(bench: Bench) -> None:
    """KPTR-XCHG-015 to -017: what came out is the program's to release on every path, what went in is not any more."""
    check(bench, AFTERWARDS)


def test_map_without_pointers_has_nothing_to_exchange(bench: Bench) -> None:
    """KPTR-XCHG-003, -005."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, value_size=VALUE_SIZE) as untyped:
        check(
            Bench(untyped, bench.k, {}),
            {"untyped": refuses(None, "has to have BTF", lambda b: [b.value, b.take])},
        )
    b = BtfBuilder()
    value = b.struct(
        "value", VALUE_SIZE, [("data", b.integer("u64", 8), 0), ("untagged", b.ptr(b.struct("kr_obj", 0)), 8)]
    )
    with map_with(b, value, VALUE_SIZE) as data:
        check(
            Bench(data, bench.k, {}),
            {"data": refuses(None, "has no valid kptr", lambda b: [b.value, b.take])},
        )


@pytest.mark.requires("kfunc:bpf_task_acquire")
def test_look_at_an_object_is_no_reference_to_give_away(bench: Bench) -> None:
    """KPTR-XCHG-011: an RCU pointer, and a trusted one that somebody else holds, is not the program's."""
    with owning_map("task_struct") as tasks:
        check(
            Bench(tasks, bench.k, {}),
            {
                "rcu pointer": refuses(
                    None,
                    NO_OWNER,
                    lambda b: [b.value, ldxdw(r7, r6, OWNED), jeq(r7, 0, "out"), exchange(mov(r2, r7))],
                ),
                "trusted pointer": refuses(
                    None,
                    NO_OWNER,
                    lambda b: [b.value, call(uapi.BPF_FUNC_get_current_task_btf), exchange(mov(r2, r0))],
                ),
                "acquired pointer": accepted(
                    lambda b: [b.value, with_task(exchange(mov(r2, r8)), mov(r8, r0), jeq(r8, 0, "out"))]
                ),
            },
        )
