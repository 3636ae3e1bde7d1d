# SPDX-License-Identifier: MIT
"""Programs that allocate local objects and move them through lists and trees, put together from verbs.

r6 is a map value, r7 and r8 are objects; verbs that can fail jump to "out" and, before that, drop what the program
owns, so that a program made of verbs is whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

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
    ja,
    jeq,
    jlt,
    jne,
    label,
    ld_func,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r6,
    r7,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, errno_name
from scenarios.kptr.kfuncs import value_of
from scenarios.kptr.local_types import Local, LocalTypes


@dataclass(frozen=True)
class Home:
    """Where a lock, a root or a pointer stands: the register with the address of a structure, and the structure."""

    base: Reg
    type: Local


NOT_OWNED = (
    "must be referenced or trusted|expected pointer to allocated object|expects referenced PTR_TO_BTF_ID"
)
"""What the verifier says of a pointer that is not owned, where an owned object is wanted."""

_fresh = count()
_STATISTICS = re.compile("processed |verification time|stack depth|mark_precise|$")

Program = Callable[["Workshop", Map], Item]
"""A program, made for a map of stores."""


@dataclass(frozen=True)
class Refusal:
    """A program that does not load: the errno (None where releases differ) and a regex for the verifier's log."""

    errno: int | None
    says: str
    program: Program
    parts: dict[str, Item] = field(default_factory=dict)


class Workshop:
    """Verbs for objects of `types`, and programs (sched_cls) made of them."""

    def __init__(self, types: LocalTypes) -> None:
        self.t = types
        self._kr_kptr = btf.module("kr_kptr")

    def load(
        self,
        *items: Item,
        parts: dict[str, Item] | None = None,
        sleepable: bool = False,
        log_level: int = 0,
    ) -> Prog:
        """Load a program that does this and returns 0 ("exit": r0), with those of its `parts` that it calls.

        `less`, which compares what stands before the nodes, is always at hand. It is a sched_cls program, all of which
        is a section of RCU, or a `sleepable` syscall program. Raises BpfError.
        """
        rest: dict[str, Item] = {"less": LESS, **(parts or {})}
        flat = list(_insns(items))
        body: list[Item] = [label("main"), items]
        if any(insn.target == "out" for insn in flat) or not flat or flat[-1].target != "exit":
            body += [label("out"), mov(r0, 0)]
        body += [label("exit"), exit_()]
        while called := {insn.target for insn in _insns(body)} & rest.keys():
            for name in sorted(str(each) for each in called):
                body += [label(name), rest.pop(name)]
        code = asm(*body)
        names = sorted(self.t.functions.keys() & code.labels.keys(), key=lambda name: code.labels[name])
        return Prog.load(
            code,
            uapi.BPF_PROG_TYPE_SYSCALL if sleepable else uapi.BPF_PROG_TYPE_SCHED_CLS,
            btf=self.t.btf,
            func_info=[(code.labels[name], self.t.functions[name]) for name in names],
            fd_array=[0, self._kr_kptr.object],
            flags=uapi.BPF_F_SLEEPABLE if sleepable else 0,
            log_level=log_level,
        )

    def run(self, *items: Item) -> int:
        """Load and run such a program; what it returns, as a signed number. Raises BpfError."""
        with self.load(*items) as prog:
            returned = prog.test_run(bytes(64)).retval
        return returned - (1 << 32) if returned >> 31 else returned

    def value(self, map: Map, key: int = 0, into: Reg = r6) -> Item:
        """The value of a key."""
        return value_of(map, key, into)

    def exchange(self, incoming: Item, field: str, home: Home | None = None) -> Item:
        """r0 = what was in a pointer; `incoming` sets r2, which goes in."""
        return [incoming, self._address(field, home), call(uapi.BPF_FUNC_kptr_xchg)]

    def lock(self, home: Home | None = None) -> Item:
        """Lock the value in r6, or another structure."""
        return [self._address("lock", home), call(uapi.BPF_FUNC_spin_lock)]

    def unlock(self, home: Home | None = None) -> Item:
        """Unlock it again."""
        return [self._address("lock", home), call(uapi.BPF_FUNC_spin_unlock)]

    def _address(self, member: str, home: Home | None) -> Item:
        """r1 = where a member of the value in r6, or of another structure, stands."""
        base, type = (r6, self.t.store) if home is None else (home.base, home.type)
        return [mov(r1, base), add(r1, type.at[member])]

    def kfunc(self, name: str) -> Insn:
        """A call of a kfunc by the name of 7.1 and later, or by its older one. Raises LookupError."""
        return call_kfunc(_kfunc_id(name))

    def ours(self, name: str) -> Insn:
        """A call of a kfunc of kr_kptr. Raises LookupError."""
        return call_kfunc(self._kr_kptr.func(name), 1)

    def new(self, type: Local, into: Reg = r7, *, key: int = 0, owned: Iterable[Reg] = ()) -> Item:
        """A new object, which the program owns; `owned` are dropped if there is none."""
        return [
            mov(r1, type.id),
            self.kfunc("bpf_obj_new"),
            self.if_null([self.drop(each) for each in owned]),
            mov(into, r0),
            stdw(into, type.at["key"], key) if "key" in type.at else [],
        ]

    def if_null(self, instead: Item, reg: Reg = r0) -> Item:
        """If the pointer is NULL do something and leave."""
        here = f"not_null_{next(_fresh)}"
        return [jne(reg, 0, here), instead, ja("out"), label(here)]

    def counted(self, type: Local, key: int, into: Reg = r7, *, owned: Iterable[Reg] = ()) -> Item:
        """A new object that owns an object of kr_kptr, which tells when it is freed."""
        here = f"held_{next(_fresh)}"
        return [
            self.new(type, into, key=key, owned=owned),
            mov(r1, key),
            self.ours("kr_obj_new"),
            self.if_null([self.drop(each) for each in (into, *owned)]),
            self.exchange(mov(r2, r0), "held", Home(into, type)),
            jeq(r0, 0, here),
            mov(r1, r0),
            self.ours("kr_obj_release"),
            label(here),
        ]

    def drop(self, object: Reg) -> Item:
        """Drop an object, or try it with whatever is in the register."""
        return [mov(r1, object), self.kfunc("bpf_obj_drop")]

    def acquire(self, object: Reg) -> Item:
        """r0 = one more reference to the object."""
        return [mov(r1, object), self.kfunc("bpf_refcount_acquire")]

    def stash(self, object: Reg, field: str, home: Home | None = None) -> Item:
        """Give the object to a pointer of a store (or object); drop what was there."""
        here = f"empty_{next(_fresh)}"
        return [
            self.exchange(mov(r2, object), field, home),
            jeq(r0, 0, here),
            self.drop(r0),
            label(here),
        ]

    def unstash(self, field: str, into: Reg = r7, home: Home | None = None) -> Item:
        """Take the object out of a pointer of a store (or object), or leave."""
        return [self.exchange(mov(r2, 0), field, home), jeq(r0, 0, "out"), mov(into, r0)]

    def push(
        self,
        object: Reg,
        head: str,
        node: int,
        *,
        back: bool = False,
        home: Home | None = None,
    ) -> Item:
        """Push the object, whose node stands at `node`; r0 = the kfunc's result."""
        return [
            self._address(head, home),
            mov(r2, object),
            add(r2, node),
            mov(r4, 0),
            self.kfunc(f"bpf_list_push_{'back' if back else 'front'}"),
        ]

    def pop(self, head: str, *, back: bool = False, home: Home | None = None) -> Item:
        """r0 = the node that came off the list, or NULL."""
        return [
            self._address(head, home),
            self.kfunc(f"bpf_list_pop_{'back' if back else 'front'}"),
        ]

    def list_call(self, name: str, head: str, home: Home | None = None) -> Item:
        """r0 = what bpf_list_NAME gives; further arguments are in their registers."""
        return [self._address(head, home), self.kfunc(f"bpf_list_{name}")]

    def peek(self, head: str, *, back: bool = False, home: Home | None = None) -> Item:
        """r0 = the node at an end of the list, which stays there, or NULL."""
        return self.list_call("back" if back else "front", head, home)

    def add(
        self,
        object: Reg,
        root: str,
        node: int,
        *,
        home: Home | None = None,
        less: str = "less",
    ) -> Item:
        """Add the object, whose node stands at `node`; r0 = the kfunc's result."""
        return [
            self._address(root, home),
            mov(r2, object),
            add(r2, node),
            ld_func(r3, less),
            mov(r4, 0),
            mov(r5, 0),
            self.kfunc("bpf_rbtree_add"),
        ]

    def on_tree(self, kfunc: str, root: str, node: Item | None = None, *, home: Home | None = None) -> Item:
        """r0 = what "first", "root", "left", "right" or "remove" gives; `node` sets r2."""
        return [
            node or [],
            self._address(root, home),
            self.kfunc(f"bpf_rbtree_{kfunc}"),
        ]


def just(item: Item) -> Program:
    """A program that is the same for every map."""
    return lambda workshop, map: item


@functools.cache
def _kfunc_id(name: str) -> int:
    types = btf.vmlinux()
    return types.func(name if types.has_func(name) else f"{name}_impl")


def assert_refused(workshop: Workshop, store: Map, refusals: Mapping[str, Refusal]) -> None:
    """Each of the programs is refused as it should. Raises AssertionError with all that the kernel said otherwise."""
    wrong = []
    for name, each in refusals.items():
        try:
            workshop.load(each.program(workshop, store), parts=each.parts, log_level=1).close()
        except BpfError as error:
            if each.errno not in (None, error.errno) or not re.search(each.says, error.log):
                said = [line for line in error.log.splitlines() if not _STATISTICS.match(line)]
                wrong.append(f"{name}: {errno_name(error.errno or 0)}: {' / '.join(said[-2:])}")
        else:
            wrong.append(f"{name}: accepted")
    assert not wrong, "\n".join(wrong)


def assert_accepted(workshop: Workshop, store: Map, programs: Mapping[str, Program]) -> None:
    """Each of the programs loads. Raises AssertionError with all that the kernel said otherwise."""
    wrong = []
    for name, program in programs.items():
        try:
            workshop.load(program(workshop, store)).close()
        except BpfError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


# both kinds of objects that stand in trees have their key before the node
LESS: Item = [ldxdw(r1, r1, -8), ldxdw(r2, r2, -8), mov(r0, 1), jlt(r1, r2, 1), mov(r0, 0), exit_()]


def _insns(items: Iterable[Item]) -> Iterator[Insn]:
    for item in items:
        if isinstance(item, Insn):
            yield item
        elif isinstance(item, Iterable):
            yield from _insns(item)
