# SPDX-License-Identifier: MIT
"""Map tracing: a program runs after each change of one map and reports it, whoever makes the change.

    with Tracer.attach(map) as tracer:
        map[1] = 2
        (event,) = tracer.events()
        assert (event.operation, event.key, event.source) == ("update", b"\1\0\0\0", Source.SYSTEM_CALL)

The facility of this name was proposed in 2021 (attach type BPF_TRACE_MAP) and never merged. On released kernels fexit
programs stand behind the functions that carry the operations out (`map_trace_hooks`). `attach_type()` finds a kernel
that has the proposal's (`map_trace_rfc`), and `Tracer.attach(map, kind=attach_type())` uses it.

Who made a change is told from the address that the map's function returns to, which is a program's code, that of a
helper (a call that could not be patched to a direct one), or another function of the kernel: then it was a system call.
So it is right as well for a program that interrupts a system call, or one that a system call runs. That needs a kernel
with CONFIG_UNWINDER_ORC, as shipped ones have: where frames are linked by pointers, the trampoline hides the caller.
"""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Self

from harness.guest.bpf import tracing, uapi
from harness.guest.bpf.asm import Code
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.map_trace_hooks import CHANGES, HOOKS, Hook, Operation
from harness.guest.bpf.map_trace_prog import FUNCTION_KINDS, HEAD, record, record_program
from harness.guest.bpf.map_trace_rfc import ATTACH_TYPE_HOOKS, attach_to_map, attach_type
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.ringbuf import RingBuffer, stride
from harness.guest.bpf.symbols import kernel_function
from harness.guest.bpf.syscall import BpfError

__all__ = ["CAPACITY", "CHANGES", "Event", "Hook", "Operation", "Source", "Tracer", "attach_type", "hooks_of"]

CAPACITY = 256
"""Events that are kept until they are read, if nothing else is asked for."""

_MAX_ERRNO = 4095
_ONE_VALUE = uapi.BPF_F_CPU | uapi.BPF_F_ALL_CPUS
_HELPER = re.compile(
    r"_*bpf_(map_(update|delete|push|pop)_elem|(task|sk|inode|cgrp)_storage_(get|delete)(_recur|_tracing)?)(\.|$)"
)


class Source(Enum):
    """Who made a change."""

    PROGRAM = "program"
    SYSTEM_CALL = "system call"
    KERNEL = "kernel"  # an eviction
    UNKNOWN = "unknown"  # the unwinder did not find the caller


@dataclass(frozen=True)
class Event:
    """A change that was tried.

    `error` is its errno, 0 for success, None where the tracer runs before the operation or is not told. `key` and
    `value` are None where the operation has none; a value that a system call gives for all CPUs is that of CPU 0, CPU 1
    and so on, each rounded up to 8 bytes. The key in a storage map is its owner's address. `caller` is the address in
    the caller of `function`, 0 if it is not known.
    """

    map_id: int
    operation: Operation
    key: bytes | None
    value: bytes | None
    flags: int
    error: int | None
    cpu: int
    thread: int
    function: str
    caller: int
    source: Source

    @property
    def number(self) -> int:
        """The key as an integer. Raises TypeError if there is none."""
        if self.key is None:
            raise TypeError(f"a {self.operation} has no key")
        return int.from_bytes(self.key, "little")


class Tracer:
    """Programs behind the changes of one map, and what they saw.

    `progs` and `links` are by function name; a link may be replaced or closed by the caller. Closing detaches.
    """

    def __init__(self, map: Map, hooks: Sequence[Hook], kind: int, capacity: int) -> None:
        """See `attach`."""
        self.map_id, self._kind = map.id, kind
        self._records = [record(map, hook, kind) for hook in hooks]
        self.progs: dict[str, Prog] = {}
        self.links: dict[str, Link] = {}
        with ExitStack() as stack:
            self._counters = stack.enter_context(
                Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1, name="trace_counts", value_format="=QQ")
            )
            longest = max(stride(each.size) for each in self._records)
            self._ring = stack.enter_context(RingBuffer(capacity * longest, name="trace"))
            for hook in hooks:
                self.progs[hook.function] = stack.enter_context(self._load(hook.function))
            for hook in hooks:
                link = stack.enter_context(self._link(map, hook))
                self.links[hook.function] = link
            self._stack = stack.pop_all()

    @classmethod
    def attach(
        cls,
        map: Map,
        operations: Collection[Operation] = CHANGES,
        *,
        kind: int = uapi.BPF_TRACE_FEXIT,
        hooks: Sequence[Hook] | None = None,
        capacity: int = CAPACITY,
    ) -> Self:
        """Trace a map: `operations` by the functions of its type, or just these `hooks`.

        With `kind` BPF_TRACE_FENTRY it runs before the operation and cannot know its result; `attach_type()` is a
        kind, too. Beyond `capacity` events (of the largest sort) that were not read, further ones are lost and counted.
        Raises LookupError when there is no hook for this type of map, or this kernel cannot trace one since it is not
        in BTF, was inlined or renamed; BpfError.
        """
        if hooks is None:
            possible = hooks_of(map.shape.type) if kind in FUNCTION_KINDS else ATTACH_TYPE_HOOKS
            hooks = [hook for hook in possible if hook.operation in operations]
        if not hooks:
            raise LookupError(f"no hook for maps of type {map.shape.type}")
        return cls(map, hooks, kind, capacity)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def detach(self) -> None:
        """Detach all programs; what they saw can still be read."""
        for link in self.links.values():
            link.close()

    def close(self) -> None:
        """Detach and free everything; again is harmless."""
        self._stack.close()

    @property
    def seen(self) -> int:
        """How many changes were seen so far, read or not, lost or not."""
        return self._counts()[0]

    @property
    def lost(self) -> int:
        """How many of those could not be kept."""
        return self._counts()[1]

    @property
    def misses(self) -> int:
        """How often a program was skipped because it was running on that CPU already: changes of maps of this type that
        nobody looked at.
        """
        return sum(prog.info().recursion_misses for prog in self.progs.values())

    def events(self) -> list[Event]:
        """What happened since the last call, in the order of the programs' runs."""
        return [self._event(each) for each in self._ring.records()]

    def instructions(self, function: str) -> Code:
        """The code of the program behind `function`, to load it once more, as in a replacement. Raises LookupError."""
        for number, each in enumerate(self._records):
            if each.hook.function == function:
                return record_program(
                    each,
                    number,
                    map_id=self.map_id,
                    kind=self._kind,
                    counters=self._counters,
                    ring=self._ring.map,
                )
        raise LookupError(f"this tracer does not use {function}")

    def _counts(self) -> tuple[int, int]:
        counts = self._counters[0]
        assert isinstance(counts, tuple)
        return counts

    def _load(self, function: str) -> Prog:
        code = self.instructions(function)
        try:
            return tracing.load_tracing(function, code, attach_type=self._kind)
        except BpfError:
            if self._kind not in FUNCTION_KINDS or tracing.traceable(function):
                raise
            raise LookupError(f"{function} cannot be traced: inlined or renamed") from None

    def _link(self, map: Map, hook: Hook) -> Link:
        prog = self.progs[hook.function]
        if self._kind in FUNCTION_KINDS:
            try:
                return Link.tracing(prog, self._kind)
            except BpfError as error:
                if error.errno != errno.EBUSY or tracing.attachable(hook.function):
                    raise
                raise LookupError(f"{hook.function} cannot be traced: it has no place for ftrace") from None
        return attach_to_map(prog, map, hook.operation, self._kind)

    def _event(self, raw: bytes) -> Event:
        caller, flags, result, thread, cpu, number = HEAD.unpack_from(raw)
        each = self._records[number]
        hook, behind = each.hook, self._kind != uapi.BPF_TRACE_FENTRY
        key = value = None
        if hook.key is not None:
            key = raw[HEAD.size : HEAD.size + each.key_size]
        if hook.value is not None and (behind or hook.operation in (Operation.UPDATE, Operation.PUSH)):
            size = each.value_size
            if hook.percpu and flags & _ONE_VALUE:
                size //= possible_cpus()
            value = raw[each.value_at : each.value_at + size]
        return Event(
            self.map_id,
            hook.operation,
            key,
            value,
            flags,
            _error(result, each.result) if self._kind == uapi.BPF_TRACE_FEXIT else None,
            cpu,
            thread & 0xFFFFFFFF,
            hook.function,
            caller,
            # the proposal is for programs' changes only
            _source(hook.operation, caller) if self._kind in FUNCTION_KINDS else Source.PROGRAM,
        )


def _error(result: int, kind: str) -> int:
    """The errno in a register: of an integer (32 bits wide up to 6.2) or pointer, or of "it is gone" as a truth."""
    if kind == "bool":
        return 0 if result & 1 else errno.ENOENT
    if kind == "int":
        result = ctypes.c_int32(result & 0xFFFFFFFF).value
    return -result if -_MAX_ERRNO <= result < 0 else 0


def _source(operation: Operation, caller: int) -> Source:
    if operation is Operation.EVICT:
        return Source.KERNEL
    if not caller:
        return Source.UNKNOWN
    name = kernel_function(caller)
    return Source.PROGRAM if name is None or _HELPER.match(name) else Source.SYSTEM_CALL


def hooks_of(map_type: int) -> list[Hook]:
    """The hooks of a map type, without optional ones that the kernel lacks."""
    return [hook for hook in HOOKS.get(map_type, ()) if not hook.optional or tracing.traceable(hook.function)]
