# SPDX-License-Identifier: MIT
"""Tracers that change maps: what is skipped, what is refused, and what a kprobe misses that fexit sees."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    atomic_add,
    call,
    exit_,
    jne,
    jne32,
    label,
    ld_map_fd,
    ld_map_value,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r10,
    stdw,
    stw,
    stxdw,
)
from harness.guest.bpf.attrs import LinkCreateKprobeMulti
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import ENOTSUPP, BpfError, refused
from harness.guest.bpf.tracing import argument_offset, attach_tracing, load_tracing, traceable
from scenarios.map_trace.actors import ACTORS
from scenarios.map_trace.conftest import Trace, misses

NewMap = Callable[..., Map]
RUNS, RESULT = 0, 8
DI = 112  # the first argument in struct pt_regs of x86-64


class Meddler:
    """A program behind or before a function that does something to `target` when the function works on `traced`."""

    def __init__(self, stack: ExitStack, function: str, traced: Map, act: Item, *, kind: int) -> None:
        self._notes = stack.enter_context(
            Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1, name="notes", value_format="=Qq")
        )
        htab = btf.vmlinux().offset("bpf_htab", "map") if kind == uapi.BPF_TRACE_FENTRY else 0
        names = [each.name for each in btf.vmlinux().parameters(function)]
        first = "map" if "map" in names else "htab"
        code = asm(
            ldxdw(r1, r1, argument_offset(function, first)),
            ldxw(r1, r1, btf.vmlinux().offset("bpf_map", "id") + (htab if first == "htab" else 0)),
            jne32(r1, traced.id, "out"),
            act,
            ld_map_value(r1, self._notes),
            stxdw(r1, RESULT, r0),
            mov(r2, 1),
            atomic_add(r1, RUNS, r2),
            label("out"),
            mov(r0, 0),
            exit_(),
        )
        self.prog = stack.enter_context(load_tracing(function, code, attach_type=kind))
        stack.enter_context(attach_tracing(self.prog, kind))

    @property
    def noted(self) -> tuple[int, int]:
        """How often it acted, and what its helper said last (an int up to 6.2)."""
        found = self._notes[0]
        assert isinstance(found, tuple)
        return found[0], ctypes.c_int32(found[1] & 0xFFFFFFFF).value


Meddle = Callable[..., Meddler]


@pytest.fixture
def meddle() -> Iterator[Meddle]:
    """A factory of meddlers that are attached until the scenario ends."""
    with ExitStack() as stack:
        yield lambda function, traced, act, kind=uapi.BPF_TRACE_FEXIT: Meddler(
            stack, function, traced, act, kind=kind
        )


def update(target: Map, key: int, value: int) -> Item:
    return (
        stw(r10, -4, key),
        stdw(r10, -16, value),
        ld_map_fd(r1, target),
        mov(r2, r10),
        add(r2, -4),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, uapi.BPF_ANY),
        call(uapi.BPF_FUNC_map_update_elem),
    )


def delete(target: Map, key: int) -> Item:
    return (
        stw(r10, -4, key),
        ld_map_fd(r1, target),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_delete_elem),
    )


def test_a_delete_within_a_tracer_of_deletes_is_skipped_and_counted(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-REC-001, -003, upstream prog_tests/recursion.c: both before and behind the delete."""
    for kind in (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT):
        traced, target = new_map(), new_map()
        for key in range(3):
            traced[key] = target[key] = key
        meddler = meddle("htab_map_delete_elem", traced, delete(target, 1), kind)
        for key in range(3):
            del traced[key]
        assert meddler.noted == (3, -errno.ENOENT)
        assert dict(target.items()) == {0: 0, 2: 2}
        assert misses(meddler.prog) == 3


def test_a_write_into_another_type_of_map_costs_no_miss(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-REC-003."""
    traced, target = new_map(), new_map(uapi.BPF_MAP_TYPE_ARRAY)
    meddler = meddle("htab_map_update_elem", traced, update(target, 3, 9))
    traced[1] = 1
    assert meddler.noted == (1, 0)
    assert target[3] == 9
    assert misses(meddler.prog) == 0


def test_a_chain_of_tracers_is_as_long_as_there_are_programs(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-REC-002: each runs once, whatever the ring of maps would ask for."""
    ring = [new_map() for _ in range(4)]
    chain = [
        meddle("htab_map_update_elem", map, update(ring[(number + 1) % 4], 100 + number, 1))
        for number, map in enumerate(ring)
    ]
    ring[0][1] = 1
    assert [each.noted for each in chain] == [(1, 0)] * 4
    assert [sorted(map.keys()) for map in ring] == [
        sorted(key.to_bytes(4, "little") for key in keys) for keys in ([1, 103], [100], [101], [102])
    ]


def test_a_tracers_write_into_a_full_map_fails_and_can_be_counted(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-REC-008: nobody else is told; the traced change is made."""
    traced, target = new_map(), new_map(max_entries=1)
    target[50] = 1
    meddler = meddle("htab_map_update_elem", traced, update(target, 51, 1))
    traced[1] = 1
    assert traced[1] == 1
    assert meddler.noted == (1, -errno.E2BIG)
    assert dict(target.items()) == {50: 1}


def test_a_change_within_the_locked_bucket_is_refused(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-REC-007, upstream prog_tests/htab_update.c reenter_update: an errno instead of a deadlock."""
    traced = new_map(max_entries=1)  # one element, so one bucket
    try:
        meddler = meddle("alloc_htab_elem", traced, update(traced, 2, 22), uapi.BPF_TRACE_FENTRY)
    except BpfError as error:
        assert error.errno == ENOTSUPP, error
        pytest.skip("this kernel traces no function with arguments on the stack")
    traced[1] = 1
    runs, result = meddler.noted
    assert runs == 1
    assert -result in (errno.EBUSY, errno.EDEADLK, errno.ETIMEDOUT)
    assert dict(traced.items()) == {1: 1}


def test_an_lru_changed_while_it_gives_an_element_out_does_not_deadlock(
    new_map: NewMap, meddle: Meddle
) -> None:
    """MTRACE-HOOK-024, upstream prog_tests/lru_bug.c: the inner update is made as well as the outer one."""
    if not traceable("prealloc_lru_pop"):
        pytest.skip("this kernel's compiler has inlined prealloc_lru_pop")
    map = new_map(uapi.BPF_MAP_TYPE_LRU_HASH, 64)
    meddler = meddle("prealloc_lru_pop", map, update(map, 1000, 1), uapi.BPF_TRACE_FENTRY)
    for key in range(8):
        map[key] = key
    assert meddler.noted == (8, 0)
    assert dict(map.items()) == {key: key for key in range(8)} | {1000: 1}


@pytest.fixture
def kprobe() -> Iterator[Callable[[str, Map], Map]]:
    """A factory of kprobes on a function that gets the map first: an array whose element counts those of one map."""
    with ExitStack() as stack:

        def attach(function: str, traced: Map) -> Map:
            counter = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1, name="kprobed"))
            code = asm(
                stdw(r10, -8, 0),
                ldxdw(r3, r1, DI),
                add(r3, btf.vmlinux().offset("bpf_map", "id")),
                mov(r1, r10),
                add(r1, -8),
                mov(r2, 4),
                call(uapi.BPF_FUNC_probe_read_kernel),
                ldxw(r1, r10, -8),
                jne(r1, traced.id, "out"),
                ld_map_value(r1, counter),
                mov(r2, 1),
                atomic_add(r1, 0, r2),
                label("out"),
                mov(r0, 0),
                exit_(),
            )
            kind = uapi.BPF_TRACE_KPROBE_MULTI
            prog = stack.enter_context(Prog.load(code, uapi.BPF_PROG_TYPE_KPROBE, expected_attach_type=kind))
            names = (ctypes.c_char_p * 1)(function.encode())
            attr = LinkCreateKprobeMulti(prog_fd=prog.fd, attach_type=kind, cnt=1)
            attr.point("syms", names)
            try:
                stack.enter_context(Link.create(attr))
            except BpfError as error:
                if error.errno in (errno.EOPNOTSUPP, ENOTSUPP, errno.EINVAL):
                    pytest.skip(f"no kprobe links: {error.errno_name}")
                raise
            return counter

        yield attach


def test_a_kprobe_misses_system_calls_that_fexit_sees(
    new_map: NewMap, trace: Trace, kprobe: Callable[[str, Map], Map]
) -> None:
    """MTRACE-REC-006, MTRACE-SCN-005: within a map command, kprobes are switched off on that CPU."""
    map = new_map()
    tracer, counter = trace(map), kprobe("htab_map_update_elem", map)
    for key in range(7):
        assert ACTORS["system call"].update(map, key, 1) == 0
    for key in range(3):
        assert ACTORS["program"].update(map, key, 2) == 0
    assert tracer.seen == 10
    assert counter[0] == 3


def test_a_tracing_program_is_no_target_for_its_own_kind(new_map: NewMap, meddle: Meddle) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/recursive_attach.c fentry_attach_btf_presence: there is no BTF of it."""
    meddler = meddle("htab_map_update_elem", new_map(), mov(r0, 0))
    with refused(errno.EINVAL):
        load_tracing(
            "",
            asm(mov(r0, 0), exit_()),
            attach_type=uapi.BPF_TRACE_FENTRY,
            target=meddler.prog,
            target_btf_id=1,
        )
