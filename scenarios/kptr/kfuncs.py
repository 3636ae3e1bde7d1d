# SPDX-License-Identifier: MIT
"""Assembler programs that call the kfuncs of kr_kptr: r6 is a value of an owning map, r7 an object."""

from __future__ import annotations

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    Reg,
    add,
    asm,
    call,
    call_kfunc,
    exit_,
    jeq,
    jne,
    label,
    ld_map_fd,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r10,
    stw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from scenarios.kptr.owning_map import OWNED

_MODULE_IN_FD_ARRAY = 1


class Kfuncs:
    """The kfuncs of the loaded module, and programs (sched_cls) made of calls to them."""

    def __init__(self) -> None:
        self.btf = btf.module("kr_kptr")

    def call(self, name: str) -> Insn:
        """A call of kfunc `name`. Raises LookupError."""
        return call_kfunc(self.btf.func(name), _MODULE_IN_FD_ARRAY)

    def new(self) -> Item:
        """r7 = a new object, which the program owns."""
        return [mov(r1, 1), self.call("kr_obj_new"), jeq(r0, 0, "out"), mov(r7, r0)]

    def release(self) -> Item:
        """Release the object in r7."""
        return [mov(r1, r7), self.call("kr_obj_release")]

    def load(self, *items: Item) -> Prog:
        """Load a program that does this and returns 0, which it also does from label "out". Raises BpfError."""
        code = asm(*items, label("out"), mov(r0, 0), exit_())
        return Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, fd_array=[0, self.btf.object])


def value_of(map: Map, key: int = 0, into: Reg = r6) -> Item:
    """The value of a key; without one the program returns 0."""
    return value_in(ld_map_fd(r1, map), key, into)


def value_in(map: Item, key: int = 0, into: Reg = r6) -> Item:
    """The same of the map that `map` puts into r1."""
    return [
        stw(r10, -4, key),
        map,
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jne(r0, 0, 2),
        mov(r0, 0),
        exit_(),
        mov(into, r0),
    ]


def exchange(incoming: Item, offset: int = OWNED) -> Item:
    """r0 = what was in the value's pointer; `incoming` sets r2, which goes in."""
    return [incoming, mov(r1, r6), add(r1, offset), call(uapi.BPF_FUNC_kptr_xchg)]
