# SPDX-License-Identifier: MIT
"""A BPF assembler: exact instructions with readable names, labels resolved, for programs no compiler would
write.

    code = asm(
        mov(r0, 0),
        jeq(r1, 0, "out"),
        ldxw(r0, r1, 16),           # r0 = *(u32 *)(r1 + 16)
        label("out"),
        exit_(),
    )

Operations (`add`, `mov`, ...) take a register and a register or 32-bit immediate; `add32` and the like work
on the lower half. Jumps take the two operands and a label or a distance. `ldx{b,h,w,dw}(dst, src, off)`
loads, `ldxs{b,h,w}` sign-extends, `stx*(dst, off, src)` stores a register, `st*(dst, off, imm)` an immediate.
Opcodes and encodings: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

from harness.guest.bpf import uapi
from harness.guest.bpf.descriptor import Descriptor, fd_of


class Reg(IntEnum):
    """A register; r10 is the read-only frame pointer."""

    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)


r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 = Reg
Operand = Reg | int

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
W, H, B, DW = 0x00, 0x08, 0x10, 0x18
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
K, X = 0x00, 0x08
FETCH = 0x01
CALL, EXIT, JCOND, JA = 0x80, 0x90, 0xE0, 0x00


@dataclass(frozen=True)
class Insn:
    """One instruction (a wide one is two of them); `target` is a label that goes into `goes_to` ("off" or
    "imm").
    """

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0
    target: str | None = field(default=None, compare=False)
    goes_to: str = field(default="off", compare=False)

    def encode(self) -> bytes:
        """The 8 bytes, little-endian. Raises ValueError if a field is out of range."""
        if not -0x8000 <= self.off <= 0x7FFF:
            raise ValueError(f"offset {self.off} does not fit into 16 bits")
        if not -0x80000000 <= self.imm <= 0xFFFFFFFF:
            raise ValueError(f"immediate {self.imm} does not fit into 32 bits")
        return struct.pack("<BBhI", self.code, self.src << 4 | self.dst, self.off, self.imm & 0xFFFFFFFF)

    @classmethod
    def decode(cls, raw: bytes) -> Insn:
        """The instruction of 8 bytes; the immediate as a signed number."""
        code, regs, off, imm = struct.unpack("<BBhi", raw)
        return cls(code, regs & 15, regs >> 4, off, imm)


@dataclass(frozen=True)
class Label:
    """A place in the code."""

    name: str


Item = Insn | Label | Iterable["Item"]


@dataclass(frozen=True)
class Code:
    """Assembled instructions; `labels` maps names to instruction numbers, as func_info and subprograms need
    them.
    """

    insns: tuple[Insn, ...]
    labels: Mapping[str, int]

    def __bytes__(self) -> bytes:
        return b"".join(insn.encode() for insn in self.insns)

    def __len__(self) -> int:
        return len(self.insns)

    def __str__(self) -> str:
        from harness.guest.bpf.disasm import disassemble

        return disassemble(bytes(self), self.labels)


def asm(*items: Item) -> Code:
    """Assemble instructions, labels and (nested) sequences of them.

    Raises ValueError for unknown or doubled labels.
    """
    flat: list[Insn] = []
    labels: dict[str, int] = {}

    def add_all(sequence: Iterable[Item]) -> None:
        for item in sequence:
            if isinstance(item, Insn):
                flat.append(item)
            elif isinstance(item, Label):
                if item.name in labels:
                    raise ValueError(f"label {item.name} is set twice")
                labels[item.name] = len(flat)
            else:
                add_all(item)

    add_all(items)
    for at, insn in enumerate(flat):
        if insn.target is not None:
            if insn.target not in labels:
                raise ValueError(f"label {insn.target} is not set; there are: {', '.join(labels) or 'none'}")
            distance = labels[insn.target] - at - 1
            flat[at] = replace(insn, off=distance) if insn.goes_to == "off" else replace(insn, imm=distance)
    return Code(tuple(flat), labels)


def label(name: str) -> Label:
    """Name the next instruction."""
    return Label(name)


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> Insn:
    """Any instruction, valid or not."""
    return Insn(code, dst, src, off, imm)


Binary = Callable[[Reg, Operand], Insn]
Jump = Callable[[Reg, Operand, "str | int"], Insn]


def _operation(opcode: int, off: int = 0) -> tuple[Binary, Binary]:
    def make(cls: int) -> Binary:
        def emit(dst: Reg, operand: Operand) -> Insn:
            if isinstance(operand, Reg):
                return Insn(opcode | X | cls, dst, operand, off)
            return Insn(opcode | K | cls, dst, 0, off, operand)

        return emit

    return make(ALU64), make(ALU)


add, add32 = _operation(0x00)
sub, sub32 = _operation(0x10)
mul, mul32 = _operation(0x20)
div, div32 = _operation(0x30)
or_, or32 = _operation(0x40)
and_, and32 = _operation(0x50)
lsh, lsh32 = _operation(0x60)
rsh, rsh32 = _operation(0x70)
mod, mod32 = _operation(0x90)
xor, xor32 = _operation(0xA0)
mov, mov32 = _operation(0xB0)
arsh, arsh32 = _operation(0xC0)
sdiv, sdiv32 = _operation(0x30, 1)
smod, smod32 = _operation(0x90, 1)


def neg(dst: Reg) -> Insn:
    """dst = -dst."""
    return Insn(0x80 | ALU64, dst)


def neg32(dst: Reg) -> Insn:
    """The lower half negated, the upper half cleared."""
    return Insn(0x80 | ALU, dst)


def movsx(dst: Reg, src: Reg, bits: int) -> Insn:
    """dst = the lower 8, 16 or 32 bits of src, sign-extended (6.6)."""
    return Insn(0xB0 | X | ALU64, dst, src, bits)


def movsx32(dst: Reg, src: Reg, bits: int) -> Insn:
    """The 32-bit form of `movsx`: 8 or 16 bits."""
    return Insn(0xB0 | X | ALU, dst, src, bits)


def to_le(dst: Reg, bits: int) -> Insn:
    """Convert the lower `bits` (16, 32, 64) between native and little-endian."""
    return Insn(0xD0 | K | ALU, dst, imm=bits)


def to_be(dst: Reg, bits: int) -> Insn:
    """Convert the lower `bits` (16, 32, 64) between native and big-endian."""
    return Insn(0xD0 | X | ALU, dst, imm=bits)


def bswap(dst: Reg, bits: int) -> Insn:
    """Swap the bytes of the lower `bits` (6.6)."""
    return Insn(0xD0 | K | ALU64, dst, imm=bits)


def addr_space_cast(dst: Reg, src: Reg, to: int, frm: int) -> Insn:
    """dst = src moved between address spaces (arena, 6.9)."""
    return Insn(0xB0 | X | ALU64, dst, src, 1, to << 16 | frm)


def _go(code: int, dst: int, src: int, imm: int, where: str | int) -> Insn:
    if isinstance(where, str):
        return Insn(code, dst, src, 0, imm, target=where)
    return Insn(code, dst, src, where, imm)


def _jump(opcode: int) -> tuple[Jump, Jump]:
    def make(cls: int) -> Jump:
        def emit(dst: Reg, operand: Operand, where: str | int) -> Insn:
            if isinstance(operand, Reg):
                return _go(opcode | X | cls, dst, operand, 0, where)
            return _go(opcode | K | cls, dst, 0, operand, where)

        return emit

    return make(JMP), make(JMP32)


jeq, jeq32 = _jump(0x10)
jgt, jgt32 = _jump(0x20)
jge, jge32 = _jump(0x30)
jset, jset32 = _jump(0x40)
jne, jne32 = _jump(0x50)
jsgt, jsgt32 = _jump(0x60)
jsge, jsge32 = _jump(0x70)
jlt, jlt32 = _jump(0xA0)
jle, jle32 = _jump(0xB0)
jslt, jslt32 = _jump(0xC0)
jsle, jsle32 = _jump(0xD0)


def ja(where: str | int) -> Insn:
    """Jump always."""
    return _go(JA | JMP, 0, 0, 0, where)


def gotol(where: str | int) -> Insn:
    """Jump always, with a 32-bit distance (6.6)."""
    if isinstance(where, str):
        return Insn(JA | JMP32, target=where, goes_to="imm")
    return Insn(JA | JMP32, imm=where)


def may_goto(where: str | int) -> Insn:
    """Jump when the loop budget is used up (6.9)."""
    return _go(JCOND | JMP, 0, 0, 0, where)


def exit_() -> Insn:
    """Return r0."""
    return Insn(EXIT | JMP)


def call(helper: int) -> Insn:
    """Call a helper by its BPF_FUNC_* number."""
    return Insn(CALL | JMP, imm=helper)


def call_kfunc(btf_id: int, fd_index: int = 0) -> Insn:
    """Call a kernel function by BTF id; a module's with `fd_index` > 0, its BTF's place in fd_array."""
    return Insn(CALL | JMP, 0, uapi.BPF_PSEUDO_KFUNC_CALL, fd_index, btf_id)


def call_label(name: str) -> Insn:
    """Call a subprogram of the same code."""
    return Insn(CALL | JMP, 0, uapi.BPF_PSEUDO_CALL, target=name, goes_to="imm")


Store = Callable[[Reg, int, Reg], Insn]
StoreImmediate = Callable[[Reg, int, int], Insn]


class Load(Protocol):
    """A load; the offset may be left out."""

    def __call__(self, dst: Reg, src: Reg, off: int = 0) -> Insn:
        """dst = *(src + off)."""


def _load(size: int, mode: int = MEM) -> Load:
    def emit(dst: Reg, src: Reg, off: int = 0) -> Insn:
        return Insn(mode | size | LDX, dst, src, off)

    return emit


def _store(size: int, mode: int = MEM, imm: int = 0) -> Store:
    def emit(dst: Reg, off: int, src: Reg) -> Insn:
        return Insn(mode | size | STX, dst, src, off, imm)

    return emit


def _store_immediate(size: int) -> StoreImmediate:
    def emit(dst: Reg, off: int, imm: int) -> Insn:
        return Insn(MEM | size | ST, dst, 0, off, imm)

    return emit


ldxb, ldxh, ldxw, ldxdw = (_load(size) for size in (B, H, W, DW))
ldxsb, ldxsh, ldxsw = (_load(size, MEMSX) for size in (B, H, W))
stxb, stxh, stxw, stxdw = (_store(size) for size in (B, H, W, DW))
stb, sth, stw, stdw = (_store_immediate(size) for size in (B, H, W, DW))


def ld_abs(size: int, imm: int) -> Insn:
    """r0 = packet data at `imm`, size B, H or W (socket filters, sched_cls)."""
    return Insn(ABS | size | LD, imm=imm)


def ld_ind(size: int, src: Reg, imm: int) -> Insn:
    """r0 = packet data at src + imm."""
    return Insn(IND | size | LD, 0, src, 0, imm)


def _wide(dst: Reg, src: int, low: int, high: int = 0, off: int = 0) -> tuple[Insn, Insn]:
    return Insn(IMM | DW | LD, dst, src, off, low), Insn(0, imm=high)


def ld_imm64(dst: Reg, value: int) -> tuple[Insn, Insn]:
    """dst = a 64-bit constant."""
    return _wide(dst, 0, value & 0xFFFFFFFF, (value >> 32) & 0xFFFFFFFF)


def ld_map_fd(dst: Reg, map: Descriptor | int) -> tuple[Insn, Insn]:
    """dst = a map, as helpers take it."""
    return _wide(dst, uapi.BPF_PSEUDO_MAP_FD, fd_of(map))


def ld_map_value(dst: Reg, map: Descriptor | int, off: int = 0) -> tuple[Insn, Insn]:
    """dst = address of byte `off` in the only value of an array map."""
    return _wide(dst, uapi.BPF_PSEUDO_MAP_VALUE, fd_of(map), off)


def ld_map_idx(dst: Reg, index: int) -> tuple[Insn, Insn]:
    """dst = the map at `index` in the fd_array."""
    return _wide(dst, uapi.BPF_PSEUDO_MAP_IDX, index)


def ld_btf_id(dst: Reg, btf_id: int, btf_fd: int = 0) -> tuple[Insn, Insn]:
    """dst = address of a kernel variable; `btf_fd` 0 is vmlinux, else a module's BTF."""
    return _wide(dst, uapi.BPF_PSEUDO_BTF_ID, btf_id, btf_fd)


def ld_func(dst: Reg, name: str) -> tuple[Insn, Insn]:
    """dst = a subprogram of the same code, as callback."""
    first = Insn(IMM | DW | LD, dst, uapi.BPF_PSEUDO_FUNC, target=name, goes_to="imm")
    return first, Insn(0)


def _atomic(operation: int) -> tuple[Store, Store]:
    return _store(DW, ATOMIC, operation), _store(W, ATOMIC, operation)


# *(dst + off) op= src; the fetch_ forms leave the old value in src, cmpxchg compares with and returns in r0
atomic_add, atomic_add32 = _atomic(0x00)
atomic_or, atomic_or32 = _atomic(0x40)
atomic_and, atomic_and32 = _atomic(0x50)
atomic_xor, atomic_xor32 = _atomic(0xA0)
fetch_add, fetch_add32 = _atomic(0x00 | FETCH)
fetch_or, fetch_or32 = _atomic(0x40 | FETCH)
fetch_and, fetch_and32 = _atomic(0x50 | FETCH)
fetch_xor, fetch_xor32 = _atomic(0xA0 | FETCH)
xchg, xchg32 = _atomic(0xE0 | FETCH)
cmpxchg, cmpxchg32 = _atomic(0xF0 | FETCH)


def load_acquire(dst: Reg, src: Reg, off: int = 0) -> Insn:
    """dst = *(u64 *)(src + off) with acquire ordering (6.15)."""
    return Insn(ATOMIC | DW | STX, dst, src, off, 0x100)


def store_release(dst: Reg, off: int, src: Reg) -> Insn:
    """*(u64 *)(dst + off) = src with release ordering (6.15)."""
    return Insn(ATOMIC | DW | STX, dst, src, off, 0x110)
