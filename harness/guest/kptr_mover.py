# SPDX-License-Identifier: MIT
"""A program that moves objects of kr_kptr between two places, each a field of an element of a map.

One run does one thing with the elements that the keys in its order lead to; see harness.oracle.kptr_calls:Run.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    CALL,
    DW,
    IMM,
    JMP,
    LD,
    Insn,
    Item,
    add,
    asm,
    call,
    call_kfunc,
    exit_,
    ja,
    jeq,
    jgt,
    jne,
    label,
    ld_map_fd,
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
)
from harness.guest.bpf.btf import Btf, BtfObject
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.kptr_kinds import (
    COUNT,
    KINDS_OF_MAPS,
    MOVE,
    PUT_NEW,
    PUT_STATIC,
    REMOVE,
    SHARE,
    SWAP,
    TAKE,
    WRITE,
)

# struct value { u64 mark; T *owned[2]; struct bpf_spin_lock lock; u32 tail; }, or u64 tail without a lock. The tail
# behind a lock has no name: up to 6.1 a member that is not aligned to 8 bytes keeps pointers from being found
# (kernel/bpf/btf.c:btf_find_struct_field).
OWNED, LOCK, TAIL, VALUE_SIZE = (8, 16), 24, 28, 32
_ID = 4  # in struct kr_obj

# What a program is run on, behind the room that a packet's Ethernet header takes: verb, object, mark, flags, then for
# both places key and the key before it; the program writes what it returns, and of both elements a number for each
# pointer.
ORDER = struct.Struct("=16x8I5i")
_VERB, _OBJECT, _MARK, _FLAGS = 16, 20, 24, 28
_KEYS, _VIA = (32, 40), (36, 44)
_RETURNED, _SEEN_THERE = 48, (52, 60)
_DATA, _DATA_END = 76, 80  # in struct __sk_buff
NO_ELEMENT = -1
_NUMBER = struct.Struct("=i")
_KFUNCS = ("kr_obj_new", "kr_obj_find", "kr_obj_acquire", "kr_obj_release", "kr_obj_refs")
_ENOENT, _ESRCH = -2, -3

# On the stack: a key, an object in hand, a value.
_KEY, _HAND, _VALUE = -8, -16, -16 - VALUE_SIZE


@dataclass(frozen=True)
class ValueTypes:
    """The BTF that a map of owned objects wants: the object, the key's and the value's type."""

    btf: BtfObject
    key: int
    value: int


def value_types(*, locked: bool) -> ValueTypes:
    """Types for the value above. Raises BpfError."""
    # 6.4 turned the tags round (kernel/bpf/btf.c:btf_find_kptr)
    tag = "kptr" if has("kptr_untrusted_tag") else "kptr_ref"
    b = BtfBuilder()
    u32, u64, target = b.integer("int", 4), b.integer("u64", 8), b.struct("kr_obj", 0)
    owned = b.ptr(b.type_tag(tag, target))
    members = [("mark", u64, 0), *((f"o{at}", owned, at) for at in OWNED)]
    if locked:
        lock = b.struct("bpf_spin_lock", 4, [("val", u32, 0)])
        members.append(("lock", lock, LOCK))
    else:
        members.append(("tail", u64, LOCK))
    value = b.struct("value", VALUE_SIZE, members)
    return ValueTypes(b.load(), u32, value)


@dataclass(frozen=True)
class Place:
    """What code depends on: a kind of map, which pointer of its values; `inner` is the kind that a map of maps has."""

    kind: str
    field: int
    inner: str = ""

    @property
    def is_storage(self) -> bool:
        return self.kind == "task_storage"

    @property
    def is_outer(self) -> bool:
        return KINDS_OF_MAPS[self.kind].outer


Places = tuple[Place, Place]


@dataclass(frozen=True)
class Template:
    """Code in which the numbers at some offsets are still to be filled in: the descriptors of the first and second map,
    the ids of the module's functions."""

    code: bytes
    maps: tuple[tuple[int, int], ...]
    kfuncs: tuple[tuple[int, str], ...]

    def filled(self, fds: tuple[int, int], types: Btf) -> bytes:
        """The code for these maps and the module with these types. Raises LookupError."""
        code = bytearray(self.code)
        for at, which in self.maps:
            _NUMBER.pack_into(code, at, fds[which])
        for at, name in self.kfuncs:
            _NUMBER.pack_into(code, at, types.func(name))
        return bytes(code)


@functools.cache
def template(places: Places) -> Template:
    """The program for such places. It takes a tenth of a second in the guest, so the host does it."""
    code = bytes(asm(*_Code(places).items()))
    maps, kfuncs = [], []
    for at in range(0, len(code), 8):
        insn = Insn.decode(code[at : at + 8])
        if insn.code == LD | IMM | DW and insn.src == uapi.BPF_PSEUDO_MAP_FD:
            maps.append((at + 4, insn.imm))
        elif insn.code == JMP | CALL and insn.src == uapi.BPF_PSEUDO_KFUNC_CALL:
            kfuncs.append((at + 4, _KFUNCS[insn.imm]))
    return Template(code, tuple(maps), tuple(kfuncs))


def load(places: Places, fds: tuple[int, int], types: Btf, made: Template | None = None) -> Prog:
    """Load the program for these maps, which calls functions of the module with these types. Raises BpfError.

    It gets its order as context if one of the places is in a task's storage, otherwise as packet: programs that may
    sleep are freed slowly, and so are the maps that they use. `made` is what `template` returned for these places.
    """
    code = (made or template(places)).filled(fds, types)
    sleeps = any(place.is_storage for place in places)
    type = uapi.BPF_PROG_TYPE_SYSCALL if sleeps else uapi.BPF_PROG_TYPE_SCHED_CLS
    flags = uapi.BPF_F_SLEEPABLE if sleeps else 0
    return Prog.load(code, type, name="mover", flags=flags, fd_array=[0, types.object])


class _Code:
    """r6 is the order, r8 and r9 are the elements that were there at the start."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._labels = 0

    def items(self) -> list[Item]:
        packet: list[Item] = [
            ldxw(r6, r1, _DATA),
            ldxw(r2, r1, _DATA_END),
            mov(r3, r6),
            add(r3, ORDER.size),
            jgt(r3, r2, "out"),
        ]
        return [
            mov(r6, r1) if any(place.is_storage for place in self._places) else packet,
            stdw(r10, _KEY, 0),
            self._element(0),
            mov(r8, r0),
            self._element(1),
            mov(r9, r0),
            ldxw(r1, r6, _VERB),
            self._verbs(),
            label("returned"),
            stxw(r6, _RETURNED, r0),
            self._tell(0),
            self._tell(1),
            label("out"),
            mov(r0, 0),
            exit_(),
        ]

    def _new(self) -> str:
        self._labels += 1
        return f"l{self._labels}"

    @staticmethod
    def _kfunc(name: str) -> Item:
        return call_kfunc(_KFUNCS.index(name), 1)

    # Places

    def _map(self, which: int, out: str) -> Item:
        """r1 = the map with values of its own; goes to `out`, r0 being 0, if there is none."""
        place = self._places[which]
        if not place.is_outer:
            return ld_map_fd(r1, which)
        return [
            self._key(_VIA[which]),
            ld_map_fd(r1, which),
            call(uapi.BPF_FUNC_map_lookup_elem),
            jeq(r0, 0, out),
            mov(r1, r0),
        ]

    @staticmethod
    def _key(at: int) -> Item:
        """r2 = the address of the key that the order has there."""
        return [ldxw(r2, r6, at), stxw(r10, _KEY, r2), mov(r2, r10), add(r2, _KEY)]

    def _element(self, which: int) -> Item:
        """r0 = the element, or 0."""
        place, out = self._places[which], self._new()
        if place.is_storage:
            return self._storage(which, [mov(r3, 0), mov(r4, 0)])
        return [
            self._map(which, out),
            self._key(_KEYS[which]),
            call(uapi.BPF_FUNC_map_lookup_elem),
            label(out),
        ]

    @staticmethod
    def _storage(which: int, rest: Item) -> Item:
        """r0 = the task's element."""
        return [
            call(uapi.BPF_FUNC_get_current_task_btf),
            mov(r2, r0),
            ld_map_fd(r1, which),
            rest,
            call(uapi.BPF_FUNC_task_storage_get),
        ]

    def _tell(self, which: int) -> Item:
        """Write down what an element owns now: for each pointer 0 or the object's number plus one."""
        none, end = self._new(), self._new()
        code: list[Item] = [self._element(which), jeq(r0, 0, none)]
        for field, at in enumerate(OWNED):
            empty = self._new()
            code += [
                mov(r1, 0),
                ldxdw(r2, r0, at),
                jeq(r2, 0, empty),
                ldxw(r1, r2, _ID),
                add(r1, 1),
                label(empty),
                stxw(r6, _SEEN_THERE[which] + 4 * field, r1),
            ]
        at = _SEEN_THERE[which]
        return [
            *code,
            ja(end),
            label(none),
            mov(r1, NO_ELEMENT),
            stxw(r6, at, r1),
            stxw(r6, at + 4, r1),
            label(end),
        ]

    # Objects

    def _exchange(self, which: int) -> Item:
        """r0 = what comes out of a place for what r2 is."""
        at = OWNED[self._places[which].field]
        return [mov(r1, (r8, r9)[which]), add(r1, at), call(uapi.BPF_FUNC_kptr_xchg)]

    def _let_go(self) -> Item:
        """Release the object that r0 may be; r0 = 0, or its number plus one."""
        end = self._new()
        return [
            jeq(r0, 0, end),
            ldxw(r7, r0, _ID),
            add(r7, 1),
            mov(r1, r0),
            self._kfunc("kr_obj_release"),
            mov(r0, r7),
            label(end),
        ]

    # What a run does

    def _verbs(self) -> Item:
        verbs = {
            PUT_NEW: self._put("kr_obj_new"),
            PUT_STATIC: self._put("kr_obj_find"),
            TAKE: [self._needs(1), mov(r2, 0), self._exchange(0), self._let_go()],
            COUNT: self._count(),
            MOVE: self._move(),
            SWAP: self._swap(),
            SHARE: self._share(),
            WRITE: self._write(),
            REMOVE: self._remove(),
        }
        code: list[Item] = []
        for verb, does in verbs.items():
            skip = self._new()
            code += [jne(r1, verb, skip), does, ja("returned"), label(skip)]
        return [
            *code,
            mov(r0, 0),
            ja("returned"),
            label("none"),
            mov(r0, _ENOENT),
            ja("returned"),
            label("no_object"),
            mov(r0, _ESRCH),
        ]

    @staticmethod
    def _needs(count: int) -> Item:
        return [jeq(reg, 0, "none") for reg in (r8, r9)[:count]]

    def _put(self, source: str) -> Item:
        return [
            self._needs(1),
            ldxw(r1, r6, _OBJECT),
            self._kfunc(source),
            jeq(r0, 0, "no_object"),
            mov(r2, r0),
            self._exchange(0),
            self._let_go(),
        ]

    def _taken(self) -> Item:
        """r7 = what the first place had."""
        return [mov(r2, 0), self._exchange(0), jeq(r0, 0, "returned"), mov(r7, r0)]

    def _count(self) -> Item:
        return [
            self._needs(1),
            self._taken(),
            mov(r1, r7),
            self._kfunc("kr_obj_refs"),
            stxdw(r10, _HAND, r0),
            mov(r2, r7),
            self._exchange(0),
            self._let_go(),
            ldxdw(r0, r10, _HAND),
        ]

    def _move(self) -> Item:
        return [self._needs(2), self._taken(), mov(r2, r7), self._exchange(1), self._let_go()]

    def _swap(self) -> Item:
        empty, both, back, end = (self._new() for _ in range(4))
        return [
            self._needs(2),
            mov(r2, 0),
            self._exchange(0),
            jeq(r0, 0, empty),
            mov(r2, r0),
            self._exchange(1),
            ja(both),
            label(empty),
            mov(r2, 0),
            self._exchange(1),
            label(both),
            jne(r0, 0, back),
            mov(r2, 0),
            self._exchange(0),
            ja(end),
            label(back),
            mov(r2, r0),
            self._exchange(0),
            label(end),
            self._let_go(),
        ]

    def _share(self) -> Item:
        """The second reference waits on the stack."""
        none = self._new()
        return [
            self._needs(2),
            self._taken(),
            mov(r1, r7),
            self._kfunc("kr_obj_acquire"),
            stxdw(r10, _HAND, r0),
            mov(r2, r7),
            self._exchange(0),
            self._let_go(),
            ldxdw(r2, r10, _HAND),
            mov(r0, 0),
            jeq(r2, 0, none),
            self._exchange(1),
            self._let_go(),
            label(none),
        ]

    def _write(self) -> Item:
        place = self._places[0]
        value: list[Item] = [stdw(r10, _VALUE + at, -1) for at in range(0, VALUE_SIZE, 8)]
        # The bytes of pointers and of the lock are not for the map.
        value += [ldxw(r1, r6, _MARK), stxdw(r10, _VALUE, r1)]
        value += [stxw(r10, _VALUE + TAIL, r1)]
        locked = KINDS_OF_MAPS[place.inner or place.kind].locked
        value += [] if locked else [stw(r10, _VALUE + LOCK, 0)]
        if place.is_storage:
            rest = [mov(r3, r10), add(r3, _VALUE), mov(r4, uapi.BPF_LOCAL_STORAGE_GET_F_CREATE)]
            failed = self._new()
            return [
                *value,
                self._storage(0, rest),
                jeq(r0, 0, failed),
                mov(r0, 0),
                ja("returned"),
                label(failed),
                mov(r0, _ESRCH),
            ]
        return [
            *value,
            self._map(0, "none"),
            self._key(_KEYS[0]),
            mov(r3, r10),
            add(r3, _VALUE),
            ldxw(r4, r6, _FLAGS),
            call(uapi.BPF_FUNC_map_update_elem),
        ]

    def _remove(self) -> Item:
        place = self._places[0]
        if place.is_storage:
            return [
                call(uapi.BPF_FUNC_get_current_task_btf),
                mov(r2, r0),
                ld_map_fd(r1, 0),
                call(uapi.BPF_FUNC_task_storage_delete),
            ]
        return [self._map(0, "none"), self._key(_KEYS[0]), call(uapi.BPF_FUNC_map_delete_elem)]
