# SPDX-License-Identifier: MIT
"""The programs that map tracing puts behind a map's functions, and the records they write."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.guest.bpf import btf, tracing, uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    Reg,
    add,
    asm,
    atomic_add,
    call,
    exit_,
    ja,
    jge,
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
    r6,
    r7,
    r8,
    r9,
    r10,
    stdw,
    stw,
    stxdw,
    stxw,
    sub,
)
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.map_trace_hooks import Hook, Operation
from harness.guest.bpf.ringbuf import NO_WAKEUP

HEAD = struct.Struct("=QQqQII")
"""What precedes key and value in a record: caller, flags, result, thread and process, CPU, number of the hook."""
_CALLER, _FLAGS, _RESULT, _PID, _CPU, _HOOK = 0, 8, 16, 24, 32, 36
SEEN, LOST = 0, 8
"""Offsets of the two counters."""
FUNCTION_KINDS = (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT)
"""Attach types of programs that stand before or behind a function; any other is the proposal's."""

# The kernel's stack, from within: the program, the trampoline, the function if it called the trampoline, its caller.
# Newer kernels jump to one with fexit programs (7.3: kernel/bpf/trampoline.c:bpf_trampoline_use_jmp).
_FRAMES = 4
_STACK = -16 - 8 * _FRAMES
# A return address in the call of the trampoline, at the function's beginning, is so near to the function's address.
_PROLOGUE = 64


@dataclass(frozen=True)
class Record:
    """What a hook's program writes: HEAD, then the key, then the value, each rounded up to 8 bytes.

    `result` is what the function returns, as `tracing.result_kind` says.
    """

    hook: Hook
    key_size: int
    value_size: int
    result: str

    @property
    def value_at(self) -> int:
        """The value's offset."""
        return HEAD.size + rounded(self.key_size)

    @property
    def size(self) -> int:
        """The record's length."""
        return self.value_at + rounded(self.value_size)


def record(map: Map, hook: Hook, kind: int) -> Record:
    """What the hook's program of this kind writes about this map."""
    shape = map.shape
    key_size = 0 if hook.key is None else 8 if hook.owner else shape.key_size
    value_size = 0
    if hook.value is not None:
        in_maps = (uapi.BPF_MAP_TYPE_HASH_OF_MAPS, uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS)
        value_size = 4 if shape.type in in_maps else shape.value_size
        if hook.percpu:
            value_size = rounded(value_size) * possible_cpus()
    result = tracing.result_kind(hook.function) if kind in FUNCTION_KINDS else "none"
    return Record(hook, key_size, value_size, result)


def record_program(shape: Record, number: int, *, map_id: int, kind: int, counters: Map, ring: Map) -> Code:
    """The program behind a hook: it reports as hook `number` into the ring, and counts what it sees of the map.

    `kind` is BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, or the number of the proposal's attach type.
    """
    arguments: _Arguments | _AttachTypeContext
    if kind in FUNCTION_KINDS:
        arguments = _Arguments(shape.hook, map_id, exits=kind == uapi.BPF_TRACE_FEXIT)
    else:
        arguments = _AttachTypeContext(shape.hook)
    return asm(
        mov(r6, r1),
        arguments.filter(),
        ld_map_value(r1, counters),
        mov(r2, 1),
        atomic_add(r1, SEEN, r2),
        arguments.caller(),
        ld_map_fd(r1, ring),
        mov(r2, shape.size),
        mov(r3, 0),
        call(uapi.BPF_FUNC_ringbuf_reserve),
        jne(r0, 0, "room"),
        ld_map_value(r1, counters),
        mov(r2, 1),
        atomic_add(r1, LOST, r2),
        ja("out"),
        label("room"),
        mov(r9, r0),
        stxdw(r9, _CALLER, r8),
        arguments.flags(r1),
        stxdw(r9, _FLAGS, r1),
        arguments.result(r1),
        stxdw(r9, _RESULT, r1),
        call(uapi.BPF_FUNC_get_current_pid_tgid),
        stxdw(r9, _PID, r0),
        call(uapi.BPF_FUNC_get_smp_processor_id),
        stxw(r9, _CPU, r0),
        stw(r9, _HOOK, number),
        arguments.key(HEAD.size, shape.key_size),
        arguments.value(shape.value_at, shape.value_size),
        mov(r1, r9),
        mov(r2, NO_WAKEUP),
        call(uapi.BPF_FUNC_ringbuf_submit),
        label("out"),
        mov(r0, 0),
        exit_(),
    )


class _Arguments:
    """How an fentry or fexit program gets at a hook's arguments: r6 is its context, r9 the record."""

    def __init__(self, hook: Hook, map_id: int, *, exits: bool) -> None:
        self._hook, self._map_id, self._exits = hook, map_id, exits
        self._types = btf.vmlinux()
        self._parameters = [each.name.lstrip("_") for each in self._types.parameters(hook.function)]

    def _offset(self, name: str) -> int:
        return 8 * self._parameters.index(name)

    def filter(self) -> Item:
        at = self._types.offset("bpf_map", "id")
        if self._hook.operation is Operation.EVICT:
            at += self._types.offset("bpf_htab", "map")
        elif self._hook.map == "smap":
            at += self._types.offset("bpf_local_storage_map", "map")
        load: Item
        parameter = self._types.parameters(self._hook.function)[self._parameters.index(self._hook.map)]
        kind = self._types.strip(parameter.type)
        if kind.kind == uapi.BTF_KIND_PTR and kind.type:
            load = ldxw(r1, r1, at)
        else:  # of helpers and call-backs BTF knows just a number
            load = (
                mov(r3, r1),
                add(r3, at),
                mov(r1, r10),
                add(r1, -8),
                mov(r2, 4),
                call(uapi.BPF_FUNC_probe_read_kernel),
                ldxw(r1, r10, -8),
            )
        return (
            stdw(r10, -8, 0),
            ldxdw(r1, r6, self._offset(self._hook.map)),
            load,
            jne32(r1, self._map_id, "out"),
        )

    def caller(self) -> Item:
        """r8 = the address that the function returns to, 0 if the unwinder did not find it."""
        third, fourth = _STACK + 16, _STACK + 24
        return (
            [stdw(r10, _STACK + 8 * number, 0) for number in range(_FRAMES)],
            mov(r1, r6),
            call(uapi.BPF_FUNC_get_func_ip),
            mov(r7, r0),
            mov(r1, r6),
            mov(r2, r10),
            add(r2, _STACK),
            mov(r3, 8 * _FRAMES),
            mov(r4, 0),
            call(uapi.BPF_FUNC_get_stack),
            ldxdw(r8, r10, third),
            mov(r1, r8),
            sub(r1, r7),
            jge(r1, _PROLOGUE, "found"),
            ldxdw(r8, r10, fourth),
            label("found"),
        )

    def flags(self, into: Reg) -> Item:
        for name in ("map_flags", "flags"):
            if name in self._parameters:
                return ldxdw(into, r6, self._offset(name))
        return mov(into, 0)

    def result(self, into: Reg) -> Item:
        return ldxdw(into, r6, 8 * len(self._parameters)) if self._exits else mov(into, 0)

    def key(self, at: int, size: int) -> Item:
        if self._hook.key is None:
            return ()
        load = ldxdw(r3, r6, self._offset(self._hook.key))
        if self._hook.owner:
            return load, stxdw(r9, at, r3)
        shift = 0
        if self._hook.operation is Operation.EVICT:
            shift = self._types.offset("htab_elem", "key") - self._types.offset("htab_elem", "lru_node")
        return load, _copy(at, size, shift)

    def value(self, at: int, size: int) -> Item:
        if self._hook.value is None:
            return ()
        return ldxdw(r3, r6, self._offset(self._hook.value)), _copy(at, size)


class _AttachTypeContext:
    """The same in a program of the proposal's attach type (v2): it runs for one map, and has key, value and flags."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def filter(self) -> Item:
        return ()

    def caller(self) -> Item:
        return mov(r8, 0)

    def flags(self, into: Reg) -> Item:
        return mov(into, 0) if self._hook.value is None else ldxdw(into, r6, 16)

    def result(self, into: Reg) -> Item:
        return mov(into, 0)

    def key(self, at: int, size: int) -> Item:
        return ldxdw(r3, r6, 0), _copy(at, size)

    def value(self, at: int, size: int) -> Item:
        return () if self._hook.value is None else (ldxdw(r3, r6, 8), _copy(at, size))


def _copy(at: int, size: int, shift: int = 0) -> Item:
    """The record's `size` bytes at `at` = what r3 + `shift` points to."""
    return (
        add(r3, shift) if shift else (),
        mov(r1, r9),
        add(r1, at),
        mov(r2, size),
        call(uapi.BPF_FUNC_probe_read_kernel),
    )


def rounded(size: int) -> int:
    """Up to a multiple of 8."""
    return (size + 7) // 8 * 8
