# SPDX-License-Identifier: MIT
"""A bench on which tables of small programs are tried against the verifier: what they are made of, what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    Reg,
    asm,
    call,
    call_kfunc,
    exit_,
    jeq,
    label,
    mov,
    r0,
    r1,
    r2,
    r7,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, errno_name
from scenarios.kptr.kfuncs import Kfuncs, exchange, value_of
from scenarios.kptr.owning_map import owning_map
from scenarios.kptr.pointers import pointer_map, viewing_tag

_MODULE_IN_FD_ARRAY = 1


@dataclass(frozen=True)
class Bench:
    """What the programs of a table are made of: a map that owns objects of kr_kptr, and further maps, each of one
    pointer to the structure that is its key. r6 is a value, r7 an object of the program's.
    """

    map: Map
    k: Kfuncs
    viewing: Mapping[str, Map]

    @property
    def value(self) -> Item:
        """r6 = a value of the map."""
        return value_of(self.map)

    def value_of(self, pointee: str) -> Item:
        """r6 = the value of a map that owns nothing: a pointer to this structure."""
        return value_of(self.viewing[pointee])

    @property
    def take(self) -> Item:
        """r7 = the object that was in the value, owned by the program from here on."""
        return [exchange(mov(r2, 0)), jeq(r0, 0, "out"), mov(r7, r0)]

    def release(self, object: Reg) -> Item:
        """Release the object in a register, whatever is in it."""
        return [mov(r1, object), self.k.call("kr_obj_release")]

    def load(self, *items: Item, sleepable: bool = False) -> Prog:
        """Load a program that does this and returns 0, which it also does from label "out". Raises BpfError.

        One that is not `sleepable` is a sched_cls program, all of which is a read-side critical section of RCU.
        """
        code = asm(*items, label("out"), mov(r0, 0), exit_())
        if sleepable:
            kind, flags = uapi.BPF_PROG_TYPE_SYSCALL, uapi.BPF_F_SLEEPABLE
        else:
            kind, flags = uapi.BPF_PROG_TYPE_SCHED_CLS, 0
        return Prog.load(code, kind, flags=flags, fd_array=[0, self.k.btf.object])

    def type_of(self, *items: Item, sleepable: bool = False) -> str:
        """What the verifier takes r1 for after this, such as "untrusted_ptr_or_null_".

        A helper is called with it that takes nothing like it, and the refusal names the type.
        """
        try:
            self.load(*items, call(uapi.BPF_FUNC_this_cpu_ptr), sleepable=sleepable).close()
        except BpfError as error:
            found = re.search(r"R1 type=(\S+) expected=percpu_ptr_", error.log)
            if found is None:
                raise
            return found[1]
        raise AssertionError("r1 is a per-CPU pointer")


@contextmanager
def bench_with(*pointees: str) -> Iterator[Bench]:
    """A bench with further maps for pointers to these structures. Raises BpfError."""
    maps: dict[str, Map] = {}
    try:
        for pointee in pointees:
            maps[pointee] = pointer_map(viewing_tag(), pointee)
        with owning_map("kr_obj") as map:
            yield Bench(map, Kfuncs(), maps)
    finally:
        for each in maps.values():
            each.close()


def kfunc(name: str) -> Insn:
    """A call of one of the kernel's own kfuncs. Raises LookupError."""
    return call_kfunc(btf.vmlinux().func(name))


@dataclass(frozen=True)
class Case:
    """A program and what the verifier says: nothing if it is accepted.

    `errno` None stands where kernels differ in it; `needs` names features without which the case is left out.
    """

    program: Callable[[Bench], Item]
    says: str | None = None
    errno: int | None = None
    needs: tuple[str, ...] = ()
    sleepable: bool = False


def accepted(program: Callable[[Bench], Item], *needs: str, sleepable: bool = False) -> Case:
    """A case that loads."""
    return Case(program, needs=needs, sleepable=sleepable)


def refuses(
    errno: int | None, says: str, program: Callable[[Bench], Item], *needs: str, sleepable: bool = False
) -> Case:
    """A case that does not load."""
    return Case(program, says, errno, needs, sleepable)


def check(bench: Bench, table: Mapping[str, Case]) -> None:
    """Try every case of a table. Raises AssertionError, which names all of which the verifier said something else."""
    wrong = []
    for name, case in table.items():
        if all(has(feature) for feature in case.needs):
            verdict = _misjudgement(bench, case)
            if verdict is not None:
                wrong.append(f"{name}: {verdict}")
    assert not wrong, "\n".join(wrong)


def _misjudgement(bench: Bench, case: Case) -> str | None:
    try:
        bench.load(case.program(bench), sleepable=case.sleepable).close()
    except BpfError as error:
        told = f"{error.errno_name}\n{error.log}"
        if case.says is None:
            return f"refused: {told}"
        if case.errno not in (None, error.errno) or not re.search(case.says, error.log):
            wanted = "any errno" if case.errno is None else errno_name(case.errno)
            return f"expected {wanted} and {case.says!r}, got {told}"
        return None
    return None if case.says is None else "accepted"
