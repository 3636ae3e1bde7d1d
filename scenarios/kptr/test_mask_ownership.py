# SPDX-License-Identifier: MIT
"""Masks that maps own: their own count of users, and pointers to them deep in a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Operand,
    add,
    asm,
    atomic_add,
    call,
    exit_,
    jeq,
    label,
    ld_map_value,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import load_tracing
from harness.guest.waiting import wait_until
from scenarios.kptr.bench import kfunc
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, owning_map
from scenarios.kptr.pointers import kind, map_with, owning_tag
from scenarios.kptr.special import Types

pytestmark = [
    pytest.mark.requires(
        "kfunc:bpf_cpumask_create",
        "kfunc:bpf_rcu_read_lock",
        "fentry:bpf_cpumask_release_dtor",
    ),
    pytest.mark.vm(cpus=2),
]


@pytest.fixture
def destroyed() -> Iterator[Callable[[], int]]:
    """How often the destructor has run."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as calls:
        code = asm(ld_map_value(r1, calls), mov(r2, 1), atomic_add(r1, 0, r2), mov(r0, 0), exit_())
        with (
            load_tracing("bpf_cpumask_release_dtor", code, attach_type=uapi.BPF_TRACE_FENTRY) as prog,
            Link.raw_tracepoint(prog),
        ):
            yield lambda: calls.number(0)


def run(*items: Item) -> int:
    """What r8 is behind this; it starts at zero."""
    code = asm(mov(r8, 0), *items, label("out"), mov(r0, r8), exit_())
    with Prog.load(code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE) as prog:
        return prog.test_run().retval


def op(name: str, *arguments: Operand) -> Item:
    """Call bpf_cpumask_NAME."""
    return [
        *(mov(register, argument) for register, argument in zip((r1, r2), arguments, strict=False)),
        kfunc(f"bpf_cpumask_{name}"),
    ]


def new(cpu: int) -> Item:
    """r7 = a mask of this CPU."""
    return [op("create"), jeq(r0, 0, "out"), mov(r7, r0), op("set_cpu", cpu, r7)]


def put(map: Map, cpu: int, offset: int = OWNED) -> None:
    """Let the map own a mask of this CPU, instead of what it owned at this offset."""
    run(value_of(map), new(cpu), exchange(mov(r2, r7), offset), jeq(r0, 0, "out"), op("release", r0))


def look(map: Map, offset: int, *question: Item) -> int:
    """What r8 is behind a question about the map's mask, in r7; 0 if there is none."""
    return run(
        value_of(map),
        kfunc("bpf_rcu_read_lock"),
        ldxdw(r7, r6, offset),
        jeq(r7, 0, "none"),
        *question,
        label("none"),
        kfunc("bpf_rcu_read_unlock"),
    )


def users(map: Map, offset: int = OWNED) -> int:
    """The count of users of the map's mask."""
    return look(map, offset, ldxw(r8, r7, btf.vmlinux().offset("bpf_cpumask", "usage.refs.counter")))


def cpu(map: Map, offset: int = OWNED) -> int:
    """The CPU in the map's mask, from 1 on; 0 if there is no mask."""
    return look(map, offset, op("first", r7), mov(r8, r0), add(r8, 1))


def share(source: Map, target: Map) -> None:
    """Let another map own the mask, too: taken out, acquired once more, and put into both."""
    run(
        value_of(source),
        exchange(mov(r2, 0)),
        jeq(r0, 0, "out"),
        mov(r7, r0),
        op("acquire", r7),
        mov(r2, r7),
        mov(r7, r0),
        mov(r1, r6),
        add(r1, OWNED),
        call(uapi.BPF_FUNC_kptr_xchg),
        jeq(r0, 0, "empty"),
        op("release", r0),
        label("empty"),
        # r7 is this program's, whatever the map has
        mov(r8, r7),
        value_of_other(target),
    )


def value_of_other(target: Map) -> Item:
    """Put the mask in r8 into the value of a map of one element, whose address needs no test."""
    return [
        ld_map_value(r1, target, OWNED),
        mov(r2, r8),
        mov(r8, 0),
        call(uapi.BPF_FUNC_kptr_xchg),
        jeq(r0, 0, "out"),
        op("release", r0),
    ]


def test_mask_counts_its_users_and_goes_with_the_last(destroyed: Callable[[], int]) -> None:
    """KPTR-MASK-001, KPTR-MAP-029, KPTR-FREE-014, KPTR-LAW-001: two maps own one mask; each releases it once."""
    with ExitStack() as stack:
        first = stack.enter_context(owning_map("bpf_cpumask"))
        with owning_map("bpf_cpumask", max_entries=1) as second:
            put(first, 1)
            assert (users(first), cpu(first)) == (1, 2)
            share(first, second)
            assert (users(first), users(second), cpu(second)) == (2, 2, 2)
            assert destroyed() == 0
        wait_until(lambda: destroyed() == 1, timeout=3, what="the second map to release the mask")
        assert (users(first), cpu(first)) == (1, 2)
        stack.close()
        wait_until(lambda: destroyed() == 2, timeout=3, what="the first map to release the mask")


def test_change_by_one_user_is_seen_by_all() -> None:
    """KPTR-MASK-001: there is one mask, however many own it."""
    with owning_map("bpf_cpumask") as first, owning_map("bpf_cpumask", max_entries=1) as second:
        put(first, 1)
        share(first, second)
        look(first, OWNED, op("set_cpu", 0, r7))
        assert (cpu(first), cpu(second)) == (1, 1)


# Value types by the number of their bytes and the offsets of their pointers.
Shape = tuple[Callable[[Types, int], int], int, tuple[int, ...]]


def _structure(b: Types, pointer: int) -> int:
    return b.struct("inner", 16, [("data", b.u64, 0), ("mask", pointer, 8)])


def _value(b: Types, size: int, *members: tuple[int, int]) -> int:
    return b.struct("value", size, [(f"m{n}", type, at) for n, (type, at) in enumerate(members)])


SHAPES: dict[str, Shape] = {
    "array of one": (lambda b, p: _value(b, 8, (b.array(p, 1, b.u32), 0)), 8, (0,)),
    "array": (lambda b, p: _value(b, 16, (b.array(p, 2, b.u32), 0)), 16, (0, 8)),
    "array of arrays": (
        lambda b, p: _value(b, 32, (b.array(b.array(p, 2, b.u32), 2, b.u32), 0)),
        32,
        (0, 8, 16, 24),
    ),
    "structure": (lambda b, p: _value(b, 24, (b.u64, 0), (_structure(b, p), 8)), 24, (16,)),
    "array of structures": (
        lambda b, p: _value(b, 32, (b.array(_structure(b, p), 2, b.u32), 0)),
        32,
        (8, 24),
    ),
    "structure of a structure with an array": (
        lambda b, p: _value(
            b, 32, (b.struct("outer", 24, [("data", b.u64, 0), ("masks", b.array(p, 2, b.u32), 8)]), 8)
        ),
        32,
        (16, 24),
    ),
}


def counted(destroyed: Callable[[], int], number: int) -> Callable[[], bool]:
    return lambda: destroyed() == number


def test_masks_deep_in_a_value_are_owned_one_by_one(destroyed: Callable[[], int]) -> None:
    """KPTR-MASK-002, KPTR-MAP-023, KPTR-USER-001, KPTR-LAW-001: each is stored, found, hidden and released."""
    released = 0
    for name, (build, size, offsets) in SHAPES.items():
        b = Types()
        value = build(b, b.pointer(owning_tag(), to=b.struct("bpf_cpumask", 0)))
        with map_with(b, value, size) as map:
            if released == 0 and kind(map) == "data":
                pytest.skip("this kernel lacks kptrs in nested structures and arrays")
            assert [cpu(map, at) for at in offsets] == [0] * len(offsets), name
            for n, at in enumerate(offsets):
                put(map, n % 2, at)
            assert [cpu(map, at) for at in offsets] == [1 + n % 2 for n in range(len(offsets))], name
            assert [users(map, at) for at in offsets] == [1] * len(offsets), name
            assert map.lookup(0) == bytes(size), name
            assert destroyed() == released, name
        released += len(offsets)
        wait_until(counted(destroyed, released), timeout=3, what=f"the masks of {name} to go")
