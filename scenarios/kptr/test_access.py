# SPDX-License-Identifier: MIT
"""Plain loads and stores of pointers in a map's value: which the verifier takes, and what it takes the pointer for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EACCES

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    add,
    and_,
    call,
    exit_,
    fetch_add,
    jeq,
    jne,
    ld_map_fd,
    ldxb,
    ldxdw,
    ldxh,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r10,
    stb,
    stdw,
    sth,
    stw,
    stxb,
    stxdw,
    stxh,
    stxw,
    xchg,
)
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, Case, accepted, bench_with, check, refuses
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.owning_map import OWNED, SEEN

# struct kr_obj { refcount_t refs; u32 id; u64 cookie; struct rcu_head rcu; }
RCU_HEAD, KR_OBJ_SIZE = 16, 32


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with("thread_info", "sched_entity") as bench:
        yield bench


def doing(*items: Item) -> Callable[[Bench], Item]:
    """A program that has a value in r6 and does this."""
    return lambda bench: [bench.value, items]


def every_size_but_the_right_one() -> dict[str, Case]:
    """KPTR-ACC-005."""
    says = "access size must be BPF_DW"
    found = {}
    for field, at in (("owned", OWNED), ("seen", SEEN)):
        for load, store, store_0 in ((ldxb, stxb, stb), (ldxh, stxh, sth), (ldxw, stxw, stw)):
            for insn in (load(r0, r6, at), store(r6, at, r1), store_0(r6, at, 0)):
                name = f"{field} by {insn.code:#x}"
                found[name] = refuses(EACCES, says, doing(mov(r1, 0), insn))
    return found


def every_offset_that_touches() -> dict[str, Case]:
    """KPTR-ACC-006."""
    found = {}
    for distance in (-7, -4, -1, 1, 4, 7):
        for insn in (
            ldxdw(r0, r6, SEEN + distance),
            stxdw(r6, SEEN + distance, r1),
            stdw(r6, SEEN + distance, 0),
        ):
            name = f"eight bytes {distance} off, by {insn.code:#x}"
            found[name] = refuses(EACCES, "misaligned", doing(mov(r1, 0), insn))
    for size, load in ((1, ldxb), (2, ldxh), (4, ldxw)):
        inner, across = load(r0, r6, SEEN + 8 - size), load(r0, r6, SEEN - size)
        found[f"last {size} bytes of the pointer"] = refuses(EACCES, "misaligned", doing(inner))
        found[f"{size} bytes before the pointer"] = accepted(doing(across))
    return found


def seen(bench: Bench) -> Item:
    """r7 = the pointer that does not own, not NULL."""
    return [bench.value, ldxdw(r7, r6, SEEN), jeq(r7, 0, "out")]


def unknown_0_or_8(bench: Bench) -> Item:
    """r6 = a value, r1 = 0 or 8: the verifier does not know which."""
    return [bench.value, ldxdw(r1, r6, 0), and_(r1, 8)]


def task(offset: int = 0) -> Item:
    """r7 = the current task, or a member of it."""
    return [call(uapi.BPF_FUNC_get_current_task_btf), mov(r7, r0), add(r7, offset)]


def entity() -> int:
    """Where struct sched_entity lies in a task."""
    return btf.vmlinux().offset("task_struct", "se")


def test_all_of_a_pointer_is_loaded_or_stored_or_nothing(bench: Bench) -> None:
    """KPTR-ACC-005, -006: eight bytes at its offset; bytes beside it are data."""
    check(bench, every_size_but_the_right_one() | every_offset_that_touches())


REACHED: dict[str, Case] = {
    # KPTR-ACC-007
    "load at an unknown offset": refuses(
        EACCES,
        "cannot have variable offset",
        lambda b: [unknown_0_or_8(b), add(r6, r1), ldxdw(r0, r6, 0)],
    ),
    "store at an unknown offset": refuses(
        EACCES,
        "cannot have variable offset",
        lambda b: [unknown_0_or_8(b), add(r6, r1), stdw(r6, 16, 0)],
    ),
    "load at an unknown offset that cannot reach it": accepted(
        lambda b: [b.value, ldxdw(r1, r6, 0), and_(r1, 1), add(r6, r1), ldxw(r0, r6, 0)]
    ),
    # KPTR-ACC-008
    "helper is given the whole value": refuses(
        EACCES,
        "accessed indirectly by helper",
        lambda b: [
            b.value,
            ld_map_fd(r1, b.map),
            mov(r2, r10),
            add(r2, -4),
            mov(r3, r6),
            mov(r4, 0),
            call(uapi.BPF_FUNC_map_update_elem),
        ],
    ),
    "helper writes into the last byte of it": refuses(
        EACCES,
        "accessed indirectly by helper",
        lambda b: [b.value, mov(r1, r6), add(r1, SEEN + 7), mov(r2, 4), call(uapi.BPF_FUNC_get_current_comm)],
        sleepable=True,
    ),
    "helper writes right before it": accepted(
        lambda b: [b.value, mov(r1, r6), mov(r2, SEEN), call(uapi.BPF_FUNC_get_current_comm)],
        sleepable=True,
    ),
    # KPTR-ACC-009
    "atomic addition": refuses(
        EACCES, "only be accessed using BPF_MEM", lambda b: [b.value, mov(r1, 0), fetch_add(r6, SEEN, r1)]
    ),
    "atomic exchange": refuses(
        EACCES, "only be accessed using BPF_MEM", lambda b: [b.value, mov(r1, 0), xchg(r6, OWNED, r1)]
    ),
}


def test_pointer_is_reached_by_plain_loads_and_stores_only(bench: Bench) -> None:
    """KPTR-ACC-007 to -009: at an offset that the verifier knows, by no helper, by no atomic instruction."""
    check(bench, REACHED)


STORED: dict[str, Case] = {
    # KPTR-ACC-010
    "0 over an owning pointer": refuses(
        EACCES, "store to referenced kptr disallowed", lambda b: [b.value, stdw(r6, OWNED, 0)]
    ),
    "0 in a register over an owning pointer": refuses(
        EACCES, "store to referenced kptr disallowed", lambda b: [b.value, mov(r1, 0), stxdw(r6, OWNED, r1)]
    ),
    "object over an owning pointer": refuses(
        EACCES,
        "store to referenced kptr disallowed",
        lambda b: [b.value, b.k.new(), stxdw(r6, OWNED, r7), b.release(r7)],
    ),
    "pointer that is not owned over an owning pointer": refuses(
        EACCES, "store to referenced kptr disallowed", lambda b: [seen(b), stxdw(r6, OWNED, r7)]
    ),
    # KPTR-ACC-011 to -013
    "0": accepted(lambda b: [b.value, stdw(r6, SEEN, 0)]),
    "1": refuses(
        EACCES, "imm must be 0 when storing to kptr at off=8", lambda b: [b.value, stdw(r6, SEEN, 1)]
    ),
    "-1": refuses(EACCES, "imm must be 0", lambda b: [b.value, stdw(r6, SEEN, -1)]),
    "0 in a register": accepted(lambda b: [b.value, mov(r1, 0), stxdw(r6, SEEN, r1)]),
    "number that is known to be 0": accepted(
        lambda b: [b.value, ldxdw(r1, r6, 0), jne(r1, 0, "out"), stxdw(r6, SEEN, r1)]
    ),
    # KPTR-ACC-014
    "object that the program owns": accepted(
        lambda b: [b.value, b.k.new(), stxdw(r6, SEEN, r7), b.release(r7)]
    ),
    "object that may be NULL": accepted(lambda b: [b.value, ldxdw(r7, r6, SEEN), stxdw(r6, SEEN, r7)]),
    "owning pointer's object, looked at only": accepted(
        lambda b: [b.value, ldxdw(r7, r6, OWNED), jeq(r7, 0, "out"), stxdw(r6, SEEN, r7)]
    ),
    "object that stays the program's to release": refuses(
        None, "Unreleased reference", lambda b: [b.value, b.k.new(), stxdw(r6, SEEN, r7)]
    ),
    # KPTR-ACC-014, -015: what it points to is in the object, first or not
    "first member": accepted(lambda b: [b.value_of("thread_info"), task(), stxdw(r6, 0, r7)]),
    "member at an offset": accepted(lambda b: [b.value_of("sched_entity"), task(entity()), stxdw(r6, 0, r7)]),
    "beside the member": refuses(
        EACCES,
        "invalid kptr access, R7 type=.*task_struct expected=ptr_sched_entity",
        lambda b: [b.value_of("sched_entity"), task(entity() - 8), stxdw(r6, 0, r7)],
    ),
    # KPTR-ACC-016
    "other structure": refuses(
        EACCES,
        "invalid kptr access, R7 type=.*task_struct expected=ptr_kr_obj or untrusted_ptr_kr_obj",
        lambda b: [b.value, task(), stxdw(r6, SEEN, r7)],
    ),
    "map's value": refuses(
        EACCES, "invalid kptr access, R6 type=map_value", lambda b: [b.value, stxdw(r6, SEEN, r6)]
    ),
    "stack": refuses(EACCES, "invalid kptr access, R10 type=fp", lambda b: [b.value, stxdw(r6, SEEN, r10)]),
    # KPTR-ACC-017
    "pointer at an unknown offset": refuses(
        EACCES,
        "variable untrusted_ptr_ access var_off=.* disallowed",
        lambda b: [seen(b), ldxdw(r1, r6, 0), and_(r1, 8), add(r7, r1), stxdw(r6, SEEN, r7)],
    ),
}


def test_store_leaves_owning_pointers_alone_and_others_typed(bench: Bench) -> None:
    """KPTR-ACC-010 to -017: NULL, or a pointer of the field's structure, into one that does not own; nothing into one
    that does.
    """
    check(bench, STORED)


DEREFERENCED: dict[str, Case] = {
    # KPTR-ACC-001, -002, -019
    "through an owning pointer": accepted(
        lambda b: [b.value, ldxdw(r1, r6, OWNED), jeq(r1, 0, "out"), ldxw(r0, r1)]
    ),
    "through one that does not own": accepted(lambda b: [seen(b), ldxdw(r0, r7, KR_OBJ_SIZE - 8)]),
    "along a pointer in the object": accepted(
        lambda b: [seen(b), ldxdw(r1, r7, RCU_HEAD), ldxdw(r1, r1, 0), ldxdw(r0, r1, 0)]
    ),
    "write": refuses(EACCES, "", lambda b: [seen(b), stdw(r7, 8, 0)]),
    # KPTR-ACC-020
    "past the end": refuses(
        EACCES,
        "access beyond struct kr_obj at off 32 size 8",
        lambda b: [seen(b), ldxdw(r0, r7, KR_OBJ_SIZE)],
    ),
    "before the beginning": refuses(EACCES, "negative access", lambda b: [seen(b), ldxdw(r0, r7, -8)]),
    # KPTR-ACC-021
    "owning pointer without a test": refuses(
        EACCES, "invalid mem access '.*ptr_or_null_'", lambda b: [b.value, ldxdw(r1, r6, OWNED), ldxw(r0, r1)]
    ),
    "other pointer without a test": refuses(
        EACCES,
        "invalid mem access 'untrusted_ptr_or_null_'",
        lambda b: [b.value, ldxdw(r1, r6, SEEN), ldxw(r0, r1)],
    ),
    "what an exchange returned without a test": refuses(
        EACCES, "invalid mem access 'ptr_or_null_'", lambda b: [b.value, exchange(mov(r2, 0)), ldxw(r0, r0)]
    ),
    # KPTR-ACC-001: no reference comes with a look, so there is none to give back
    "and end, with a pointer in hand": accepted(lambda b: [seen(b), mov(r0, 0), exit_()]),
    "and release": refuses(
        None, "expects ref|must be referenced|must point", lambda b: [seen(b), b.release(r7)]
    ),
}


def test_pointer_that_is_not_owned_may_be_read_through(bench: Bench) -> None:
    """KPTR-ACC-001, -002, -019 to -021: once it is tested, within the structure; KPTR-XCHG-016 likewise."""
    check(bench, DEREFERENCED)


def test_pointer_read_out_of_a_pointer_is_no_better(bench: Bench) -> None:
    """KPTR-ACC-001, -002, -019: untrusted, as a helper that wants another one tells."""
    load: list[Insn] = [ldxdw(r1, r6, SEEN)]
    assert bench.type_of(bench.value, load) == "untrusted_ptr_or_null_"
    assert bench.type_of(bench.value, load, jeq(r1, 0, "out")) == "untrusted_ptr_"
    assert bench.type_of(seen(bench), ldxdw(r1, r7, RCU_HEAD)) == "untrusted_ptr_"
    # the module's objects are freed after a grace period, but only the kernel's own list says so for a type
    owned = [bench.value, ldxdw(r1, r6, OWNED)]
    assert bench.type_of(owned) == "untrusted_ptr_or_null_"
    assert bench.type_of(owned, sleepable=True) == "untrusted_ptr_or_null_"
