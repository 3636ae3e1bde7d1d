# SPDX-License-Identifier: MIT
"""Which members of a value's type are special fields: how many, where, how deep, of which type."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, exit_, jeq, label, ldxdw, ldxw, mov, r0, r1, r6
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from scenarios.kptr.kfuncs import value_of
from scenarios.kptr.pointers import map_with, owning_tag, types_are_parsed_early, viewing_tag
from scenarios.kptr.special import Types, made_of

TASK = "task_struct"


def pointer(b: Types) -> int:
    """A pointer that looks at a task."""
    return b.pointer(viewing_tag(), to=b.declare(TASK))


def value(b: Types, size: int, *members: tuple[int, int]) -> int:
    """A value of this size with members of these types at these offsets."""
    b.sizes["value"] = size
    return b.struct("value", size, [(f"m{number}", type, at) for number, (type, at) in enumerate(members)])


def kinds(build: Callable[[Types], int], *offsets: int) -> list[str]:
    """See `made_of`, for several places in a value."""
    return [made_of(build, offset) for offset in offsets]


def row(length: int) -> Callable[[Types], int]:
    """Makes a value of so many pointers."""

    def build(b: Types) -> int:
        one = pointer(b)
        return value(b, length * 8, *((one, number * 8) for number in range(length)))

    return build


def test_value_has_so_many_pointers_and_no_more() -> None:
    """KPTR-MAP-010: eleven fields, up to 6.1 eight; with one more, none is special."""
    limit = 11 if has("local_kptr") else 8
    assert kinds(row(limit), 0, (limit - 1) * 8) == ["viewing", "viewing"]
    assert made_of(row(limit + 1)) == ("types: E2BIG" if types_are_parsed_early() else "data")


@pytest.mark.requires("local_kptr")
def test_fields_that_overlap_spoil_the_value() -> None:
    """KPTR-MAP-012."""
    spoiled = "types: EEXIST" if types_are_parsed_early() else "data"
    assert made_of(lambda b: value(b, 16, (pointer(b), 0), (pointer(b), 8))) == "viewing"
    assert made_of(lambda b: value(b, 16, (pointer(b), 0), (pointer(b), 0))) == spoiled
    lock = "bpf_spin_lock"
    assert made_of(lambda b: value(b, 16, (pointer(b), 0), (b.special(lock), 0))) == spoiled
    assert made_of(lambda b: value(b, 16, (pointer(b), 0), (b.special(lock), 4))) == spoiled
    assert made_of(lambda b: value(b, 16, (pointer(b), 0), (b.special(lock), 8))) == "viewing"


@pytest.mark.requires("local_kptr")
def test_second_field_of_a_kind_that_there_is_one_of_spoils_the_value() -> None:
    """KPTR-MAP-011: timers are no part of objects, and so are counted only when the map is made."""
    timer, lock = "bpf_timer", "bpf_spin_lock"
    assert made_of(lambda b: value(b, 40, (pointer(b), 0), (b.special(timer), 8))) == "viewing"
    two_timers = made_of(
        lambda b: value(b, 40, (pointer(b), 0), (b.special(timer), 8), (b.special(timer), 24))
    )
    assert two_timers == "data"
    two_locks = made_of(lambda b: value(b, 16, (pointer(b), 0), (b.special(lock), 8), (b.special(lock), 12)))
    assert two_locks == ("types: E2BIG" if types_are_parsed_early() else "data")


def test_pointer_that_is_not_aligned_is_data() -> None:
    """KPTR-MAP-013: and, up to 6.1, so are its neighbours."""
    neighbour = made_of(lambda b: value(b, 24, (pointer(b), 4), (pointer(b), 16)), 16)
    assert neighbour == ("viewing" if has("local_kptr") else "data")
    assert made_of(lambda b: value(b, 24, (pointer(b), 4), (pointer(b), 16)), 4) == "data"
    # a structure that has nothing special after all is not what its types were parsed for
    assert made_of(lambda b: value(b, 16, (pointer(b), 4)), 4) == (
        "types: EFAULT" if types_are_parsed_early() else "data"
    )


def nested(b: Types) -> int:
    """A value of a structure, an array of structures, and arrays of pointers of one and two dimensions."""
    one = pointer(b)
    inner = b.struct("inner", 16, [("data", b.u64, 0), ("pointer", one, 8)])
    outer = b.struct("outer", 24, [("data", b.u64, 0), ("inner", inner, 8)])
    flat, deep = b.array(one, 2, b.u32), b.array(b.array(one, 2, b.u32), 2, b.u32)
    return value(b, 120, (outer, 0), (b.array(inner, 3, b.u32), 24), (flat, 72), (deep, 88))


def test_pointers_deep_in_the_value_count() -> None:
    """KPTR-MAP-023: each of an array's for one; before 6.11 they are data."""
    deep = made_of(nested, 16) != "data"
    assert deep or not types_are_parsed_early()
    assert kinds(nested, 16, 32, 48, 64, 72, 80, 88, 96, 104, 112) == ["viewing" if deep else "data"] * 10
    assert kinds(nested, 0, 8, 24, 40) == ["data"] * 4


@pytest.mark.parametrize("count", [11, 12])
def test_array_has_as_many_pointers_as_a_value_may(count: int) -> None:
    """KPTR-MAP-010, -023: an array is not looked at when the types load, so that the map is made all the same."""
    deep = made_of(nested, 16) != "data"

    def build(b: Types) -> int:
        return value(b, 8 * count, (b.array(pointer(b), count, b.u32), 0))

    assert kinds(build, 0, 8, 80) == ["viewing" if deep and count == 11 else "data"] * 3


def test_array_of_structures_that_there_is_one_of_spoils_the_value() -> None:
    """KPTR-MAP-011, -023: such as of locks, next to a pointer."""

    def build(b: Types) -> int:
        return value(b, 16, (pointer(b), 0), (b.array(b.special("bpf_spin_lock"), 2, b.u32), 8))

    expected = {"types: EINVAL", "data"} if made_of(nested, 16) != "data" else {"viewing"}
    assert made_of(build) in expected


def test_pointee_is_the_kernels_structure_of_that_name() -> None:
    """KPTR-MAP-009: whatever the program's own of that name looks like; since 6.4 a structure of a name that the kernel
    does not know is the program's own.
    """
    size = 16
    far = btf.vmlinux().offset(TASK, "pid")

    def small(b: Types, name: str) -> int:
        target = b.struct(name, size, [("data", b.u64, 0), ("more", b.u64, 8)])
        return value(b, 8, (b.pointer(viewing_tag(), to=target), 0))

    def read(name: str, offset: int) -> None:
        b = Types()
        with map_with(b, small(b, name), 8) as map:
            code = asm(
                value_of(map),
                ldxdw(r1, r6, 0),
                jeq(r1, 0, "out"),
                ldxw(r0, r1, offset),
                label("out"),
                mov(r0, 0),
                exit_(),
            )
            Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS).close()

    read(TASK, far)
    if has("kptr_untrusted_tag"):
        read("kr_unknown", 0)
        with refused(log="access beyond struct kr_unknown"):
            read("kr_unknown", far)
    unknown = made_of(lambda b: value(b, 8, (b.pointer(owning_tag(), to=b.declare("kr_unknown")), 0)))
    assert unknown == ("owning" if has("kptr_untrusted_tag") else "data")
