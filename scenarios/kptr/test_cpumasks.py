# SPDX-License-Identifier: MIT
"""Masks of CPUs: what programs may do with one, what each operation gives, and who counts its users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    Operand,
    Reg,
    add,
    and_,
    asm,
    call,
    exit_,
    ja,
    jeq,
    jne,
    label,
    ldxdw,
    lsh,
    mov,
    or_,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r8,
    r9,
    r10,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, accepted, bench_with, check, kfunc, refuses
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, owning_map

pytestmark = pytest.mark.requires("kfunc:bpf_cpumask_create", "kfunc:bpf_rcu_read_lock")

MAY_BE_NULL = "NULL pointer passed to trusted"
UNRELIABLE = "must be a rcu pointer|must be referenced or trusted"
LEAK = "Unreleased reference"


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


@pytest.fixture
def owner() -> Iterator[Map]:
    with owning_map("bpf_cpumask") as map:
        yield map


def op(name: str, *arguments: Operand) -> Item:
    """Call bpf_cpumask_NAME."""
    return [
        *(mov(register, argument) for register, argument in zip((r1, r2, r3), arguments, strict=False)),
        kfunc(f"bpf_cpumask_{name}"),
    ]


def new(register: Reg = r7) -> Item:
    """A fresh mask; without memory for one the program ends."""
    return [op("create"), jeq(r0, 0, "out"), mov(register, r0)]


def two_perhaps() -> Item:
    """r7 and r8 = two fresh masks, which are looked at; or on to "behind_looks" if one is missing."""
    return [
        op("create"),
        mov(r7, r0),
        op("create"),
        mov(r8, r0),
        jeq(r7, 0, "behind_looks"),
        jeq(r8, 0, "behind_looks"),
        op("test_cpu", 0, r7),
        op("test_cpu", 0, r8),
    ]


def lock() -> Insn:
    return kfunc("bpf_rcu_read_lock")


def unlock() -> Insn:
    return kfunc("bpf_rcu_read_unlock")


def task_member(name: str) -> Item:
    """r8 = a pointer that the current task has."""
    return [
        call(uapi.BPF_FUNC_get_current_task_btf),
        ldxdw(r8, r0, btf.vmlinux().offset("task_struct", name)),
    ]


def unless_null(register: Reg) -> Item:
    """End the program, and the section that it is in, if there is nothing."""
    return [jne(register, 0, 3), unlock(), mov(r0, 0), exit_()]


def shared(owner: Map) -> Item:
    """r8 = the map's mask."""
    return [value_of(owner), lock(), ldxdw(r8, r6, OWNED)]


def release_result() -> Item:
    """Release r0, if it is anything."""
    return [jeq(r0, 0, "out"), op("release", r0)]


def for_any(make: Callable[[], Item]) -> Callable[[Bench], Item]:
    return lambda _: make()


def test_program_that_keeps_account_of_its_masks_loads(bench: Bench, owner: Map) -> None:
    """KPTR-MASK-001: with one step less or other, each is one of those refused below."""
    programs: dict[str, Callable[[], Item]] = {
        "made and released": lambda: [new(), op("release", r7)],
        "made, one more user, both released": lambda: [
            new(),
            op("acquire", r7),
            mov(r8, r0),
            op("release", r7),
            op("release", r8),
        ],
        "two made, of which each may be missing": lambda: [
            two_perhaps(),
            label("behind_looks"),
            jeq(r7, 0, "first_missing"),
            op("release", r7),
            label("first_missing"),
            jeq(r8, 0, "out"),
            op("release", r8),
        ],
        "put into the map, what was there released": lambda: [
            value_of(owner),
            new(),
            exchange(mov(r2, r7)),
            release_result(),
        ],
        "taken from the map and released": lambda: [value_of(owner), exchange(mov(r2, 0)), release_result()],
        "the map's, looked at and changed in a section": lambda: [
            shared(owner),
            unless_null(r8),
            op("set_cpu", 0, r8),
            op("test_cpu", 0, r8),
            unlock(),
        ],
        "the kernel's, looked at": lambda: [lock(), task_member("cpus_ptr"), op("empty", r8), unlock()],
        "within the kernel's, looked at": lambda: [
            call(uapi.BPF_FUNC_get_current_task_btf),
            mov(r8, r0),
            add(r8, btf.vmlinux().offset("task_struct", "cpus_mask")),
            op("first_zero", r8),
        ],
    }
    check(
        bench,
        {name: accepted(for_any(make), sleepable=True) for name, make in programs.items()},
    )


def test_program_that_loses_or_forges_a_mask_is_refused(bench: Bench, owner: Map) -> None:
    """KPTR-MASK-001, KPTR-ACC-003: only masks made for programs are changed, and only those owned are handed on."""
    programs: dict[str, tuple[int | None, str, Callable[[], Item]]] = {
        "made and kept": (EINVAL, LEAK, lambda: new()),
        "not tested": (EACCES, MAY_BE_NULL, lambda: [op("create"), op("release", r0)]),
        "two made, the first kept if the second is missing": (
            EINVAL,
            LEAK,
            lambda: [
                two_perhaps(),
                op("release", r7),
                op("release", r8),
                ja("out"),
                label("behind_looks"),
                jeq(r8, 0, "out"),
                op("release", r8),
            ],
        ),
        "two made, the second released though it may be missing": (
            EACCES,
            MAY_BE_NULL,
            lambda: [
                two_perhaps(),
                label("behind_looks"),
                jeq(r7, 0, "out"),
                op("release", r7),
                op("release", r8),
            ],
        ),
        "released twice": (
            None,
            "R1 (type=scalar expected|must be referenced)|expects referenced PTR_TO_BTF_ID",
            lambda: [new(), op("release", r7), op("release", r7)],
        ),
        "one more user, one released": (EINVAL, LEAK, lambda: [new(), op("acquire", r7), op("release", r7)]),
        "put into the map, what was there kept": (
            EINVAL,
            LEAK,
            lambda: [value_of(owner), new(), exchange(mov(r2, r7))],
        ),
        "taken from the map and kept": (EINVAL, LEAK, lambda: [value_of(owner), exchange(mov(r2, 0))]),
        "one more user of the kernel's": (
            EINVAL,
            "expected pointer to STRUCT bpf_cpumask|" + UNRELIABLE,
            lambda: [
                lock(),
                task_member("cpus_ptr"),
                op("acquire", r8),
                jeq(r0, 0, 1),
                op("release", r0),
                unlock(),
            ],
        ),
        "the kernel's changed": (
            EINVAL,
            "expected pointer to STRUCT bpf_cpumask",
            lambda: [lock(), task_member("cpus_ptr"), op("set_cpu", 0, r8), unlock()],
        ),
        "a pointer of the kernel's that nobody vouches for": (
            EINVAL,
            UNRELIABLE,
            lambda: [lock(), task_member("user_cpus_ptr"), unless_null(r8), op("test_cpu", 0, r8), unlock()],
        ),
        "nothing": (EACCES, MAY_BE_NULL, lambda: op("empty", 0)),
        "the map's, without a section": (
            EINVAL,
            UNRELIABLE,
            lambda: [value_of(owner), ldxdw(r8, r6, OWNED), jeq(r8, 0, "out"), op("test_cpu", 0, r8)],
        ),
        "the map's, behind its section": (
            EINVAL,
            UNRELIABLE,
            lambda: [shared(owner), unless_null(r8), unlock(), op("test_cpu", 0, r8)],
        ),
        "the map's, not tested": (
            EACCES,
            MAY_BE_NULL,
            lambda: [shared(owner), op("test_cpu", 0, r8), unlock()],
        ),
        "the map's, released in place": (
            EINVAL,
            "expects refcounted PTR_TO_BTF_ID|must be referenced or trusted|expects referenced",
            lambda: [shared(owner), unless_null(r8), op("release", r8), unlock()],
        ),
    }
    check(
        bench,
        {
            name: refuses(errno, says, for_any(make), sleepable=True)
            for name, (errno, says, make) in programs.items()
        },
    )


@pytest.mark.requires("kfunc:bpf_cpumask_populate")
def test_mask_is_filled_from_memory_that_is_there(bench: Bench) -> None:
    """KPTR-MASK-001: into a mask, from memory of the size that the program says."""
    stack: Item = [stdw(r10, -8, 1), mov(r8, r10), add(r8, -8)]
    check(
        bench,
        {
            "whole": accepted(
                lambda b: [stack, new(), op("populate", r7, r8, 8), op("release", r7)], sleepable=True
            ),
            "destination is no mask": refuses(
                EINVAL,
                "pointer type STRUCT bpf_cpumask must point|invalid read from stack",
                lambda b: [stack, op("populate", r8, r8, 8)],
                sleepable=True,
            ),
            "source is too small": refuses(
                None,
                "leads to invalid memory access",
                lambda b: [stack, new(), op("populate", r7, r8, 16), op("release", r7)],
                sleepable=True,
            ),
        },
    )


def answer(*steps: Item) -> int:
    """What is in r9 behind these steps on three fresh masks, in r6, r7 and r8."""
    code = asm(
        mov(r9, 99),
        op("create"),
        jeq(r0, 0, "out"),
        mov(r6, r0),
        op("create"),
        jeq(r0, 0, "one"),
        mov(r7, r0),
        op("create"),
        jeq(r0, 0, "two"),
        mov(r8, r0),
        mov(r9, 0),
        *steps,
        op("release", r8),
        label("two"),
        op("release", r7),
        label("one"),
        op("release", r6),
        label("out"),
        mov(r0, r9),
        exit_(),
    )
    with Prog.load(code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE) as prog:
        return prog.test_run().retval


def note(*question: Item) -> Item:
    """r9 = r9 * 256 + what r0 is then: of a bool the lowest byte only, the rest being the caller's to clear."""
    return [*question, and_(r0, 0xFF), lsh(r9, 8), or_(r9, r0)]


def cpus(mask: Reg, *numbers: int) -> Item:
    """Set these."""
    return [op("set_cpu", each, mask) for each in numbers]


def holds(mask: Reg) -> Item:
    """Note of CPU 1 and of CPU 0 whether they are in the mask."""
    return [note(op("test_cpu", 1, mask)), note(op("test_cpu", 0, mask))]


def digits(number: int, expected: tuple[int, ...]) -> tuple[int, ...]:
    """The answers of which `note` made the number. Where none is expected, each number that no CPU has is one: there
    may be as many, or as many as the kernel was built for (include/linux/cpumask.h:small_cpumask_bits)."""
    found = number.to_bytes(4, "big")
    assert not any(found[: -len(expected)]), "more was noted than is expected"
    return tuple(
        NONE if wanted == NONE and one >= CPUS else one
        for one, wanted in zip(found[-len(expected) :], expected, strict=True)
    )


CPUS = 2
NONE = -1
# All on a machine of two CPUs.
OPERATIONS: dict[str, tuple[Callable[[], Item], tuple[int, ...]]] = {
    "fresh": (lambda: [note(op("empty", r6)), note(op("full", r6)), holds(r6)], (1, 0, 0, 0)),
    "set": (lambda: [cpus(r6, 1), note(op("empty", r6)), holds(r6)], (0, 1, 0)),
    "set what is not there": (
        lambda: [cpus(r6, 9999), note(op("empty", r6)), note(op("test_cpu", 9999, r6))],
        (1, 0),
    ),
    "clear one": (lambda: [op("setall", r6), op("clear_cpu", 0, r6), holds(r6)], (1, 0)),
    "set all": (lambda: [op("setall", r6), note(op("full", r6)), holds(r6)], (1, 1, 1)),
    "clear all": (lambda: [op("setall", r6), op("clear", r6), note(op("empty", r6)), holds(r6)], (1, 0, 0)),
    "test and set": (
        lambda: [note(op("test_and_set_cpu", 0, r6)), note(op("test_and_set_cpu", 0, r6)), holds(r6)],
        (0, 1, 0, 1),
    ),
    "test and clear": (
        lambda: [
            cpus(r6, 0, 1),
            note(op("test_and_clear_cpu", 0, r6)),
            note(op("test_and_clear_cpu", 0, r6)),
            holds(r6),
        ],
        (1, 0, 1, 0),
    ),
    "first": (
        lambda: [note(op("first", r6)), cpus(r6, 1), note(op("first", r6)), note(op("first_zero", r6))],
        (NONE, 1, 0),
    ),
    "first zero": (
        lambda: [cpus(r6, 0), note(op("first_zero", r6)), op("setall", r6), note(op("first_zero", r6))],
        (1, CPUS),
    ),
    "and": (
        lambda: [cpus(r6, 0, 1), cpus(r7, 1), note(op("and", r8, r6, r7)), holds(r8)],
        (1, 1, 0),
    ),
    "and of nothing in common": (
        lambda: [op("setall", r8), cpus(r6, 0), cpus(r7, 1), note(op("and", r8, r6, r7)), holds(r8)],
        (0, 0, 0),
    ),
    "or": (
        lambda: [
            cpus(r6, 0),
            cpus(r7, 0),
            op("or", r8, r6, r7),
            holds(r8),
            cpus(r7, 1),
            op("or", r8, r6, r7),
            holds(r8),
        ],
        (0, 1, 1, 1),
    ),
    "exclusive or": (lambda: [cpus(r6, 0, 1), cpus(r7, 1), op("xor", r8, r6, r7), holds(r8)], (0, 1)),
    "equal": (
        lambda: [
            cpus(r6, 0),
            note(op("equal", r6, r7)),
            cpus(r7, 0),
            note(op("equal", r6, r7)),
            cpus(r7, 1),
            note(op("equal", r6, r7)),
        ],
        (0, 1, 0),
    ),
    "intersects": (
        lambda: [
            cpus(r6, 0),
            cpus(r7, 1),
            note(op("intersects", r6, r7)),
            cpus(r6, 1),
            note(op("intersects", r6, r7)),
        ],
        (0, 1),
    ),
    "subset": (
        lambda: [
            cpus(r6, 0),
            cpus(r7, 0, 1),
            note(op("subset", r6, r7)),
            note(op("subset", r7, r6)),
        ],
        (1, 0),
    ),
    "copy": (lambda: [cpus(r6, 1), cpus(r7, 0), op("copy", r7, r6), holds(r7), holds(r6)], (1, 0, 1, 0)),
    "any": (
        lambda: [note(op("any_distribute", r6)), cpus(r6, 1), note(op("any_distribute", r6))],
        (NONE, 1),
    ),
    "any of both": (
        lambda: [
            cpus(r6, 0, 1),
            note(op("any_and_distribute", r6, r7)),
            cpus(r7, 1),
            note(op("any_and_distribute", r6, r7)),
        ],
        (NONE, 1),
    ),
    "first of both": (
        lambda: [
            cpus(r6, 0),
            cpus(r7, 1),
            note(op("first_and", r6, r7)),
            cpus(r7, 0),
            note(op("first_and", r6, r7)),
        ],
        (NONE, 0),
    ),
    "number": (
        lambda: [
            note(op("weight", r6)),
            cpus(r6, 1),
            note(op("weight", r6)),
            op("setall", r6),
            note(op("weight", r6)),
        ],
        (0, 1, CPUS),
    ),
    "filled": (
        lambda: [
            stdw(r10, -8, 2),
            mov(r1, r6),
            mov(r2, r10),
            add(r2, -8),
            mov(r3, 8),
            kfunc("bpf_cpumask_populate"),
            note(),
            holds(r6),
        ],
        (0, 1, 0),
    ),
    "filled from too little": (
        lambda: [
            cpus(r6, 0),
            stdw(r10, -8, 2),
            mov(r1, r6),
            mov(r2, r10),
            add(r2, -8),
            mov(r3, 0),
            kfunc("bpf_cpumask_populate"),
            holds(r6),
        ],
        (0, 1),
    ),
}
NEEDS = {
    "first of both": "bpf_cpumask_first_and",
    "any": "bpf_cpumask_any_distribute",
    "any of both": "bpf_cpumask_any_and_distribute",
    "number": "bpf_cpumask_weight",
    "filled": "bpf_cpumask_populate",
    "filled from too little": "bpf_cpumask_populate",
}


@pytest.mark.vm(cpus=2)
def test_operations_on_masks() -> None:
    """KPTR-MASK-001: each answer, and what is in the masks then; a CPU that does not exist is in none."""
    there = {name: of for name, of in OPERATIONS.items() if name not in NEEDS or has(f"kfunc:{NEEDS[name]}")}
    answers = {name: digits(answer(steps()), expected) for name, (steps, expected) in there.items()}
    assert answers == {name: expected for name, (_, expected) in there.items()}
