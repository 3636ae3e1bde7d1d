# SPDX-License-Identifier: MIT
"""What a pointer is worth inside and outside of a read-side critical section of RCU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    call,
    call_label,
    exit_,
    jeq,
    jne,
    label,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r10,
    stdw,
)
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, accepted, bench_with, check, kfunc, refuses
from scenarios.kptr.kfuncs import value_of
from scenarios.kptr.owning_map import OWNED, SEEN, owning_map

pytestmark = [pytest.mark.requires("kfunc:bpf_rcu_read_lock", "kfunc:bpf_task_acquire")]

# Their memory is freed after a grace period only (kernel/bpf/verifier.c:rcu_protected_types); so is every structure
# that the kernel does not know, of which programs make objects by themselves.
RCU_SAFE = ("task_struct", "cgroup", "bpf_cpumask", "bpf_crypto_ctx", "prog_test_ref_kfunc", "kr_unknown")


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


def lock() -> Item:
    """The beginning of a section."""
    return kfunc("bpf_rcu_read_lock")


def unlock() -> Item:
    """The end of a section."""
    return kfunc("bpf_rcu_read_unlock")


def test_owned_object_can_be_relied_on_within_a_section(bench: Bench) -> None:
    """KPTR-ACC-001 to -004, -022: if its memory waits for a grace period; what owns nothing may point to anything."""
    for pointee in present():
        with owning_map(pointee) as map:
            value, seen, owned = value_of(map), ldxdw(r1, r6, SEEN), ldxdw(r1, r6, OWNED)
            told = {
                "not owned": bench.type_of(value, seen),
                "not owned, in a section": bench.type_of(value, lock(), seen, sleepable=True),
                "owned, in a program that cannot sleep": bench.type_of(value, owned),
                "owned, no section": bench.type_of(value, owned, sleepable=True),
                "owned, in a section": bench.type_of(value, lock(), owned, sleepable=True),
                "owned, behind a section": bench.type_of(value, lock(), unlock(), owned, sleepable=True),
            }
            assert told == {
                "not owned": "untrusted_ptr_or_null_",
                "not owned, in a section": "untrusted_ptr_or_null_",
                "owned, in a program that cannot sleep": "rcu_ptr_or_null_",
                "owned, no section": "untrusted_ptr_or_null_",
                "owned, in a section": "rcu_ptr_or_null_",
                "owned, behind a section": "untrusted_ptr_or_null_",
            }, pointee


def present() -> list[str]:
    """Those of RCU_SAFE that this kernel has and lets maps own."""
    kernel = btf.vmlinux()
    known = [each for each in RCU_SAFE if kernel.find(each, uapi.BTF_KIND_STRUCT) is not None]
    return [*known, "kr_unknown"]


def parent() -> Item:
    """r7 = the current task's parent, read out of the task."""
    offset = btf.vmlinux().offset("task_struct", "real_parent")
    return [call(uapi.BPF_FUNC_get_current_task_btf), ldxdw(r7, r0, offset)]


def acquire(task: Reg = r7) -> Item:
    """Acquire a task, which only one that can be relied on can be, and release it."""
    return [
        mov(r1, task),
        kfunc("bpf_task_acquire"),
        jeq(r0, 0, 2),
        mov(r1, r0),
        kfunc("bpf_task_release"),
    ]


def unless_null(task: Reg = r7) -> Item:
    """End the program, and the section that it is in, if there is no task."""
    return [jne(task, 0, 3), unlock(), mov(r0, 0), exit_()]


def copy_from_user() -> Item:
    """A helper that may sleep."""
    return [mov(r1, r10), add(r1, -8), mov(r2, 8), mov(r3, 0), call(uapi.BPF_FUNC_copy_from_user)]


def create_context() -> Item:
    """A kfunc that may sleep."""
    return [
        stdw(r10, -8, 0),
        stdw(r10, -16, 0),
        mov(r1, r10),
        add(r1, -16),
        mov(r2, 8),
        mov(r3, r10),
        add(r3, -8),
        kfunc("bpf_crypto_ctx_create"),
        jeq(r0, 0, 2),
        mov(r1, r0),
        kfunc("bpf_crypto_ctx_release"),
    ]


UNRELIABLE = "R1 must be a rcu pointer|R1 must be referenced or trusted"
UNFINISHED = "bpf_rcu_read_unlock is missing|inside bpf_rcu_read_lock-ed region"

# All may sleep, but those that say otherwise.
SECTIONS: dict[str, Callable[[], Item]] = {
    "section around a look at the parent": lambda: [lock(), parent(), unless_null(), acquire(), unlock()],
    "two sections, the second of use": lambda: [
        lock(),
        unlock(),
        lock(),
        parent(),
        unless_null(),
        acquire(),
        unlock(),
    ],
    "task of the program's own, without a section": lambda: [
        call(uapi.BPF_FUNC_get_current_task_btf),
        mov(r7, r0),
        acquire(),
    ],
    "pointer read through behind its section": lambda: [
        lock(),
        parent(),
        unless_null(),
        unlock(),
        ldxw(r0, r7, btf.vmlinux().offset("task_struct", "pid")),
    ],
    "what was acquired outlives the section": lambda: [
        lock(),
        parent(),
        unless_null(),
        mov(r1, r7),
        kfunc("bpf_task_acquire"),
        mov(r7, r0),
        unlock(),
        jeq(r7, 0, "out"),
        mov(r1, r7),
        kfunc("bpf_task_release"),
    ],
    "helper that may sleep behind a section": lambda: [lock(), unlock(), copy_from_user()],
    "section in a subprogram": lambda: [
        call_label("sub"),
        mov(r0, 0),
        exit_(),
        label("sub"),
        lock(),
        parent(),
        unless_null(),
        acquire(),
        unlock(),
    ],
    "subprogram within a section": lambda: [
        lock(),
        parent(),
        unless_null(),
        mov(r1, r7),
        call_label("sub"),
        unlock(),
        mov(r0, 0),
        exit_(),
        label("sub"),
        mov(r7, r1),
        acquire(),
    ],
    "section begun by a subprogram": lambda: [
        call_label("sub"),
        parent(),
        unless_null(),
        acquire(),
        unlock(),
        mov(r0, 0),
        exit_(),
        label("sub"),
        lock(),
    ],
    "section ended by a subprogram": lambda: [
        lock(),
        call_label("sub"),
        mov(r0, 0),
        exit_(),
        label("sub"),
        unlock(),
    ],
}

NO_SECTIONS: dict[str, tuple[str, Callable[[], Item]]] = {
    "parent without a section": (UNRELIABLE, lambda: [parent(), jeq(r7, 0, "out"), acquire()]),
    "parent behind its section": (
        UNRELIABLE,
        lambda: [lock(), parent(), unless_null(), unlock(), acquire()],
    ),
    "parent in another section": (
        UNRELIABLE,
        lambda: [lock(), parent(), unless_null(), unlock(), lock(), acquire(), unlock()],
    ),
    "parent behind a section that a subprogram ended": (
        UNRELIABLE,
        lambda: [
            lock(),
            parent(),
            unless_null(),
            call_label("sub"),
            acquire(),
            mov(r0, 0),
            exit_(),
            label("sub"),
            unlock(),
        ],
    ),
    "end without a beginning": ("unmatched rcu read unlock", lambda: unlock()),
    "second end": ("unmatched rcu read unlock", lambda: [lock(), unlock(), unlock()]),
    "beginning without an end": (UNFINISHED, lambda: lock()),
    "end on one path only": (
        UNFINISHED,
        lambda: [lock(), call(uapi.BPF_FUNC_get_prandom_u32), jeq(r0, 0, "out"), unlock()],
    ),
    "two beginnings, one end": (UNFINISHED + "|nested rcu read lock", lambda: [lock(), lock(), unlock()]),
    "helper that may sleep in a section": (
        "sleepable helper bpf_copy_from_user#148 in (rcu_read_lock|RCU)",
        lambda: [lock(), copy_from_user(), unlock()],
    ),
}


def _for_any_bench(make: Callable[[], Item]) -> Callable[[Bench], Item]:
    return lambda _: make()


def test_section_ends_where_it_began_and_what_was_read_in_it_with_it(bench: Bench) -> None:
    """KPTR-ACC-003, -022: in programs that may sleep; a pointer out of a section can still be read through."""
    whole = {name: accepted(_for_any_bench(make), sleepable=True) for name, make in SECTIONS.items()}
    others = {
        name: refuses(EINVAL, says, _for_any_bench(make), sleepable=True)
        for name, (says, make) in NO_SECTIONS.items()
    }
    check(bench, whole | others)


@pytest.mark.requires("kfunc:bpf_crypto_ctx_create")
def test_kfunc_that_may_sleep_is_not_called_in_a_section(bench: Bench) -> None:
    """KPTR-ACC-003."""
    check(
        bench,
        {
            "outside": accepted(lambda b: create_context(), sleepable=True),
            "inside": refuses(
                None, "sleepable", lambda b: [lock(), create_context(), unlock()], sleepable=True
            ),
        },
    )
