# SPDX-License-Identifier: MIT
"""BPF instructions as text, as LLVM writes them."""

from __future__ import annotations

from collections.abc import Mapping

from harness.guest.bpf import asm, uapi

_ALU = {
    0x00: "+=",
    0x10: "-=",
    0x20: "*=",
    0x30: "/=",
    0x40: "|=",
    0x50: "&=",
    0x60: "<<=",
    0x70: ">>=",
    0x90: "%=",
    0xA0: "^=",
    0xB0: "=",
    0xC0: "s>>=",
}
_JUMP = {
    0x10: "==",
    0x20: ">",
    0x30: ">=",
    0x40: "&",
    0x50: "!=",
    0x60: "s>",
    0x70: "s>=",
    0xA0: "<",
    0xB0: "<=",
    0xC0: "s<",
    0xD0: "s<=",
}
_SIZE = {asm.W: "u32", asm.H: "u16", asm.B: "u8", asm.DW: "u64"}
_ATOMIC = {0x00: "+", 0x40: "|", 0x50: "&", 0xA0: "^"}
_FETCH = {0x01: "add", 0x41: "or", 0x51: "and", 0xA1: "xor"}
_PSEUDO = {
    uapi.BPF_PSEUDO_MAP_FD: "map_fd",
    uapi.BPF_PSEUDO_MAP_VALUE: "map_value",
    uapi.BPF_PSEUDO_BTF_ID: "btf_id",
    uapi.BPF_PSEUDO_FUNC: "func",
    uapi.BPF_PSEUDO_MAP_IDX: "map_idx",
    uapi.BPF_PSEUDO_MAP_IDX_VALUE: "map_idx_value",
}


def _signed(number: int) -> str:
    return f"+ {number}" if number >= 0 else f"- {-number}"


def text(insn: asm.Insn, following: asm.Insn | None = None) -> str:
    """One instruction; `following` is the second half of a wide one.

    What is not known comes out as `.insn` fields.
    """
    code, dst, src, off = insn.code, f"r{insn.dst}", f"r{insn.src}", insn.off
    imm = insn.imm - (1 << 32) if insn.imm > 0x7FFFFFFF else insn.imm
    cls, op, from_reg = code & 7, code & 0xF0, bool(code & asm.X)
    half = "w" if cls in (asm.ALU, asm.JMP32) else "r"
    left, right = f"{half}{insn.dst}", f"{half}{insn.src}" if from_reg else str(imm)
    size, mode = _SIZE[code & 0x18], code & 0xE0
    if cls in (asm.ALU, asm.ALU64):
        if op == 0x80:
            return f"{left} = -{left}"
        if op == 0xD0:
            swap = "bswap" if cls == asm.ALU64 else "be" if from_reg else "le"
            return f"{dst} = {swap}{imm} {dst}"
        if op == 0xB0 and off in (8, 16, 32):
            return f"{left} = (s{off}){right}"
        if op in _ALU:
            sign = "s" if off == 1 and op in (0x30, 0x90) else ""
            return f"{left} {sign}{_ALU[op]} {right}"
    if cls in (asm.JMP, asm.JMP32):
        distance = f"goto {_signed(off).replace(' ', '')}"
        if op == asm.CALL:
            kind = {1: "subprogram ", 2: "kfunc "}.get(insn.src, "")
            return f"call {kind}{imm}"
        if code == asm.EXIT | asm.JMP:
            return "exit"
        if op == asm.JA:
            return distance if cls == asm.JMP else f"gotol {_signed(imm).replace(' ', '')}"
        if op == asm.JCOND:
            return f"may_{distance}"
        if op in _JUMP:
            return f"if {left} {_JUMP[op]} {right} {distance}"
    if cls == asm.LDX and mode in (asm.MEM, asm.MEMSX):
        return f"{dst} = *({size.replace('u', 's') if mode == asm.MEMSX else size} *)({src} {_signed(off)})"
    if cls == asm.STX and mode == asm.MEM:
        return f"*({size} *)({dst} {_signed(off)}) = {src}"
    if cls == asm.ST and mode == asm.MEM:
        return f"*({size} *)({dst} {_signed(off)}) = {imm}"
    if cls == asm.STX and mode == asm.ATOMIC and size in ("u32", "u64"):
        place = f"*({size} *)({dst} {_signed(off)})"
        reg, suffix = ("w", "32_32") if size == "u32" else ("r", "_64")
        if imm in _ATOMIC:
            # the only forms without a result; LLVM writes the 32-bit source as a full register
            return f"lock {place} {_ATOMIC[imm]}= {src}"
        if imm in _FETCH:
            pointer = f"({size} *)({dst} {_signed(off)})"
            return f"{reg}{insn.src} = atomic_fetch_{_FETCH[imm]}({pointer}, {reg}{insn.src})"
        if imm == 0xE1:
            name = f"xchg{suffix}"
            return f"{reg}{insn.src} = {name}({dst} {_signed(off)}, {reg}{insn.src})"
        if imm == 0xF1:
            name = f"cmpxchg{suffix}"
            return f"{reg}0 = {name}({dst} {_signed(off)}, {reg}0, {reg}{insn.src})"
    if cls == asm.LD and mode == asm.ABS:
        return f"r0 = *({size} *)skb[{imm}]"
    if cls == asm.LD and mode == asm.IND:
        return f"r0 = *({size} *)skb[{src}]" if imm == 0 else f"r0 = *({size} *)skb[{src} {_signed(imm)}]"
    if code == asm.IMM | asm.DW | asm.LD and following is not None:
        low, high = insn.imm & 0xFFFFFFFF, following.imm & 0xFFFFFFFF
        if insn.src == 0:
            value = high << 32 | low
            return f"{dst} = {value - (value >> 63 << 64)} ll"
        return f"{dst} = {_PSEUDO.get(insn.src, f'pseudo {insn.src}')}({imm}, {high})"
    return f".insn code={code:#x} dst={insn.dst} src={insn.src} off={off} imm={imm}"


def disassemble(code: bytes, labels: Mapping[str, int] | None = None) -> str:
    """All instructions, one per line, numbered as in the verifier's log, with labels at their places."""
    insns = [asm.Insn.decode(code[at : at + 8]) for at in range(0, len(code), 8)]
    names: dict[int, list[str]] = {}
    for name, at in (labels or {}).items():
        names.setdefault(at, []).append(name)
    lines, wide = [], False
    for at, insn in enumerate(insns):
        lines += [f"{name}:" for name in names.get(at, ())]
        if wide:
            wide = False
            continue
        wide = insn.code == asm.IMM | asm.DW | asm.LD and at + 1 < len(insns)
        lines.append(f"{at:4}: {text(insn, insns[at + 1] if wide else None)}")
    return "\n".join(lines)
