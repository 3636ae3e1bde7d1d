# SPDX-License-Identifier: MIT
"""Ways to attach a program to kr_traced: each program writes what it saw into the only value of a map."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import Code, asm, exit_, ld_map_value, ldxdw, ldxw, mov, r0, r2, r3, r6, stw, stxdw
from harness.guest.bpf.asm import r1 as ctx
from harness.guest.bpf.attrs import LinkCreateKprobeMulti
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.symbols import matching
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.kr_modules import KrTraced

MODULE = "kr_traced"
FUNCTIONS = ("kr_traced_double", "kr_traced_permit")
WRITTEN = 99
REFUSAL = -1
HIT = 1

Attach = Callable[[Map], Link]
"""Attaches a program that reports to this map. Raises BpfError, LookupError."""


def seen_map() -> Map:
    """A map for what a program saw."""
    return Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1)


def reports(seen: Map, argument: int, *, returns: int = 0) -> Code:
    """Code that reports one of its arguments."""
    return asm(
        ldxdw(r3, ctx, 8 * argument), ld_map_value(r2, seen), stxdw(r2, 0, r3), mov(r0, returns), exit_()
    )


def tracepoint_name(name: str) -> str:
    """The tracepoint's name: what has no event has a suffix since 6.16."""
    suffixed = f"{name}_tp"
    types = btf.module(MODULE)
    return suffixed if types.find(f"btf_trace_{suffixed}", uapi.BTF_KIND_TYPEDEF) else name


def raw_tracepoint(name: str) -> Attach:
    """A raw tracepoint program, for a tracepoint with an event."""

    def attach(seen: Map) -> Link:
        with Prog.load(reports(seen, 0), uapi.BPF_PROG_TYPE_RAW_TRACEPOINT) as prog:
            return Link.raw_tracepoint(prog, name)

    return attach


def bare_tracepoint(name: str) -> Attach:
    """The same for a tracepoint without one, whose name has a suffix since 6.16."""

    def attach(seen: Map) -> Link:
        with Prog.load(reports(seen, 0), uapi.BPF_PROG_TYPE_RAW_TRACEPOINT) as prog:
            return Link.raw_tracepoint(prog, tracepoint_name(name))

    return attach


def writable(seen: Map) -> Link:
    """A program that reads the first number in the argument and writes the second."""
    code = asm(
        *(ldxdw(r6, ctx), ldxw(r3, r6, 0), stw(r6, 4, WRITTEN)),
        *(ld_map_value(r2, seen), stxdw(r2, 0, r3), mov(r0, 0), exit_()),
    )
    with Prog.load(code, uapi.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE) as prog:
        return Link.raw_tracepoint(prog, tracepoint_name("kr_traced_writable"))


def tracing(function: str, attach_type: int, *, argument: int = 0, returns: int = 0) -> Attach:
    """An fentry, fexit or fmod_ret program of a function of the module."""

    def attach(seen: Map) -> Link:
        code = reports(seen, argument, returns=returns)
        with load_tracing(function, code, attach_type=attach_type, module=MODULE) as prog:
            return attach_tracing(prog, attach_type)

    return attach


def fentry_program_holds() -> bool:
    """Whether a loaded tracing program holds its module, as it does since 6.4; before, its link does."""
    with KrTraced() as module, seen_map() as seen:
        code = reports(seen, 0)
        with load_tracing(FUNCTIONS[0], code, attach_type=uapi.BPF_TRACE_FENTRY, module=MODULE):
            return module.users() > 0


def modify_return(seen: Map) -> Link:
    """A program that makes a function of the module fail. Skips where modules can't allow that."""
    require("kfunc:register_btf_fmodret_id_set")
    return tracing("kr_traced_permit", uapi.BPF_MODIFY_RETURN, returns=REFUSAL)(seen)


def addresses(*functions: str) -> list[int]:
    """Where the module's functions are. Raises AssertionError for one that there is not."""
    found = {each.name: each.address for each in matching("|".join(functions)) if each.module == MODULE}
    assert found.keys() >= set(functions)
    return [found[name] for name in functions]


def kprobe_multi(seen: Map, *, by_address: bool = False, functions: tuple[str, ...] = FUNCTIONS) -> Link:
    """One link to several functions of the module, by name or by address. Skips where there is no such link."""
    code = asm(mov(r3, HIT), ld_map_value(r2, seen), stxdw(r2, 0, r3), mov(r0, 0), exit_())
    attr = LinkCreateKprobeMulti(attach_type=uapi.BPF_TRACE_KPROBE_MULTI, cnt=len(functions))
    if by_address:
        attr.point("addrs", (ctypes.c_uint64 * len(functions))(*addresses(*functions)))
    else:
        attr.point("syms", (ctypes.c_char_p * len(functions))(*(name.encode() for name in functions)))
    with Prog.load(code, uapi.BPF_PROG_TYPE_KPROBE, expected_attach_type=uapi.BPF_TRACE_KPROBE_MULTI) as prog:
        attr.prog_fd = prog.fd
        try:
            return Link.create(attr)
        except BpfError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("this kernel lacks kprobe_multi")
            raise


def attached(attach: Attach) -> AbstractContextManager[Link]:
    """A link made so, with a map of its own that is closed together with it."""

    @contextmanager
    def context() -> Iterator[Link]:
        with ExitStack() as stack:
            yield stack.enter_context(attach(stack.enter_context(seen_map())))

    return context()


ATTACHMENTS: dict[str, tuple[Attach, int]] = {
    "raw_tp": (raw_tracepoint("kr_traced_event"), 21),
    "raw_tp_bare": (bare_tracepoint("kr_traced_bare"), 21),
    "raw_tp_writable": (writable, 21),
    "fentry": (tracing("kr_traced_double", uapi.BPF_TRACE_FENTRY), 21),
    "fexit": (tracing("kr_traced_double", uapi.BPF_TRACE_FEXIT), 21),
    "fexit_ret": (tracing("kr_traced_double", uapi.BPF_TRACE_FEXIT, argument=1), 42),
    "fmod_ret": (modify_return, 21),
    "kprobe_multi_syms": (kprobe_multi, HIT),
    "kprobe_multi_addrs": (lambda seen: kprobe_multi(seen, by_address=True), HIT),
}
"""How to attach, and what the program reports of kr_traced.call(21)."""
