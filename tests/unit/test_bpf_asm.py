# SPDX-License-Identifier: MIT
"""The assembler against LLVM's, and the disassembler back again."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    DW,
    B,
    Code,
    H,
    Insn,
    Item,
    Reg,
    W,
    add,
    add32,
    addr_space_cast,
    and_,
    arsh,
    arsh32,
    asm,
    atomic_add,
    atomic_add32,
    atomic_and,
    atomic_or,
    atomic_xor,
    bswap,
    call,
    call_kfunc,
    call_label,
    cmpxchg,
    cmpxchg32,
    div,
    exit_,
    fetch_add,
    fetch_add32,
    fetch_and,
    fetch_or,
    fetch_xor,
    gotol,
    insn,
    ja,
    jeq,
    jeq32,
    jge,
    jgt,
    jle,
    jlt,
    jne,
    jsge,
    jsgt,
    jsgt32,
    jsle,
    jslt,
    label,
    ld_abs,
    ld_btf_id,
    ld_func,
    ld_imm64,
    ld_ind,
    ld_map_fd,
    ld_map_value,
    ldxb,
    ldxdw,
    ldxh,
    ldxsw,
    ldxw,
    load_acquire,
    lsh,
    may_goto,
    mod,
    mov,
    mov32,
    movsx,
    mul,
    neg,
    neg32,
    or_,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r10,
    rsh,
    sdiv,
    smod,
    stb,
    stdw,
    store_release,
    stxb,
    stxdw,
    stxh,
    stxw,
    sub,
    sub32,
    to_be,
    to_le,
    xchg,
    xchg32,
    xor,
)
from harness.guest.bpf.disasm import disassemble, text

needs_llvm = pytest.mark.skipif(shutil.which("llvm-mc") is None, reason="needs llvm-mc")


def llvm(code: bytes) -> list[str]:
    """What LLVM disassembles the code to, line by line."""
    command = ["llvm-mc", "-triple=bpfel", "-mcpu=v3", "--disassemble"]
    done = subprocess.run(
        command, input="0x" + code.hex(" ").replace(" ", " 0x"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return [line.strip() for line in done.stdout.splitlines() if line.strip() and ".text" not in line]


TABLE: list[tuple[Item, str]] = [
    (mov(r0, 0), "r0 = 0"),
    (mov(r1, r10), "r1 = r10"),
    (mov32(r1, -1), "w1 = -1"),
    (add(r1, r2), "r1 += r2"),
    (add32(r1, 5), "w1 += 5"),
    (sub(r1, 7), "r1 -= 7"),
    (sub32(r1, r2), "w1 -= w2"),
    (mul(r1, -3), "r1 *= -3"),
    (div(r1, r2), "r1 /= r2"),
    (or_(r1, r2), "r1 |= r2"),
    (and_(r1, 255), "r1 &= 255"),
    (xor(r1, r2), "r1 ^= r2"),
    (lsh(r1, 3), "r1 <<= 3"),
    (rsh(r1, r2), "r1 >>= r2"),
    (arsh(r1, 2), "r1 s>>= 2"),
    (arsh32(r1, 2), "w1 s>>= 2"),
    (neg(r3), "r3 = -r3"),
    (neg32(r3), "w3 = -w3"),
    (to_be(r1, 16), "r1 = be16 r1"),
    (to_le(r1, 64), "r1 = le64 r1"),
    (ldxb(r1, r2), "r1 = *(u8 *)(r2 + 0)"),
    (ldxh(r1, r2, 2), "r1 = *(u16 *)(r2 + 2)"),
    (ldxw(r1, r2, 16), "r1 = *(u32 *)(r2 + 16)"),
    (ldxdw(r1, r10, -8), "r1 = *(u64 *)(r10 - 8)"),
    (stxb(r10, -1, r1), "*(u8 *)(r10 - 1) = r1"),
    (stxh(r10, -2, r1), "*(u16 *)(r10 - 2) = r1"),
    (stxw(r10, -4, r1), "*(u32 *)(r10 - 4) = r1"),
    (stxdw(r10, -8, r1), "*(u64 *)(r10 - 8) = r1"),
    (ld_imm64(r1, 0x1122334455667788), "r1 = 1234605616436508552 ll"),
    (ld_imm64(r1, -1), "r1 = -1 ll"),
    (ld_abs(W, 12), "r0 = *(u32 *)skb[12]"),
    (ld_abs(H, 12), "r0 = *(u16 *)skb[12]"),
    (ld_ind(B, r7, 0), "r0 = *(u8 *)skb[r7]"),
    (jeq(r1, 5, 3), "if r1 == 5 goto +3"),
    (jne(r1, r2, -2), "if r1 != r2 goto -2"),
    (jgt(r1, r2, 1), "if r1 > r2 goto +1"),
    (jge(r1, 2, 1), "if r1 >= 2 goto +1"),
    (jlt(r1, r2, 1), "if r1 < r2 goto +1"),
    (jle(r1, 2, 1), "if r1 <= 2 goto +1"),
    (jsgt(r1, r2, 1), "if r1 s> r2 goto +1"),
    (jsge(r1, 2, 1), "if r1 s>= 2 goto +1"),
    (jslt(r1, r2, 1), "if r1 s< r2 goto +1"),
    (jsle(r1, -2, 1), "if r1 s<= -2 goto +1"),
    (jeq32(r1, 5, 3), "if w1 == 5 goto +3"),
    (jsgt32(r1, r2, 3), "if w1 s> w2 goto +3"),
    (ja(7), "goto +7"),
    (call(uapi.BPF_FUNC_map_lookup_elem), "call 1"),
    (exit_(), "exit"),
    (atomic_add(r1, 8, r2), "lock *(u64 *)(r1 + 8) += r2"),
    (atomic_add32(r1, 8, r2), "lock *(u32 *)(r1 + 8) += r2"),
    (atomic_or(r1, 8, r2), "lock *(u64 *)(r1 + 8) |= r2"),
    (atomic_and(r1, 8, r2), "lock *(u64 *)(r1 + 8) &= r2"),
    (atomic_xor(r1, 8, r2), "lock *(u64 *)(r1 + 8) ^= r2"),
    (fetch_add(r1, -8, r2), "r2 = atomic_fetch_add((u64 *)(r1 - 8), r2)"),
    (fetch_or(r1, -8, r2), "r2 = atomic_fetch_or((u64 *)(r1 - 8), r2)"),
    (fetch_and(r1, -8, r2), "r2 = atomic_fetch_and((u64 *)(r1 - 8), r2)"),
    (fetch_xor(r1, -8, r2), "r2 = atomic_fetch_xor((u64 *)(r1 - 8), r2)"),
    (xchg(r1, 0, r2), "r2 = xchg_64(r1 + 0, r2)"),
    (cmpxchg(r1, 0, r2), "r0 = cmpxchg_64(r1 + 0, r0, r2)"),
]


@needs_llvm
def test_every_mnemonic_encodes_as_llvm_reads_it() -> None:
    assert llvm(bytes(asm(item for item, _ in TABLE))) == [line for _, line in TABLE]


def test_the_disassembler_writes_what_llvm_writes() -> None:
    lines = [line.split(": ", 1)[1] for line in str(asm(item for item, _ in TABLE)).splitlines()]
    assert lines == [line for _, line in TABLE]


# What LLVM 14 does not know; encodings by Documentation/bpf/standardization/instruction-set.rst.
@pytest.mark.parametrize(
    ("item", "encoding"),
    [
        (stb(r10, -1, 7), "72 0a ff ff 07 00 00 00"),
        (stdw(r10, -8, -1), "7a 0a f8 ff ff ff ff ff"),
        (mod(r1, 10), "97 01 00 00 0a 00 00 00"),
        (fetch_add32(r1, -8, r2), "c3 21 f8 ff 01 00 00 00"),
        (xchg32(r1, 0, r2), "c3 21 00 00 e1 00 00 00"),
        (cmpxchg32(r1, 0, r2), "c3 21 00 00 f1 00 00 00"),
        (sdiv(r1, r2), "3f 21 01 00 00 00 00 00"),
        (smod(r1, 5), "97 01 01 00 05 00 00 00"),
        (movsx(r1, r2, 8), "bf 21 08 00 00 00 00 00"),
        (bswap(r1, 32), "d7 01 00 00 20 00 00 00"),
        (ldxsw(r1, r2, 4), "81 21 04 00 00 00 00 00"),
        (gotol(-3), "06 00 00 00 fd ff ff ff"),
        (may_goto(2), "e5 00 02 00 00 00 00 00"),
        (addr_space_cast(r1, r2, 0, 1), "bf 21 01 00 01 00 00 00"),
        (call_kfunc(0x1234, 1), "85 20 01 00 34 12 00 00"),
        (ld_map_fd(r1, 9), "18 11 00 00 09 00 00 00 00 00 00 00 00 00 00 00"),
        (ld_map_value(r1, 9, 16), "18 21 00 00 09 00 00 00 00 00 00 00 10 00 00 00"),
        (ld_btf_id(r1, 9, 3), "18 31 00 00 09 00 00 00 00 00 00 00 03 00 00 00"),
        (load_acquire(r1, r2, 8), "db 21 08 00 00 01 00 00"),
        (store_release(r1, 8, r2), "db 21 08 00 10 01 00 00"),
        (insn(0xFF, 15, 15, -1, -1), "ff ff ff ff ff ff ff ff"),
    ],
)
def test_newer_and_pseudo_instructions(item: Item, encoding: str) -> None:
    assert bytes(asm(item)) == bytes.fromhex(encoding)


def test_labels_count_instructions_from_the_next_one() -> None:
    code = asm(
        jeq(r1, 0, "out"),
        ld_imm64(r2, 1),
        [call_label("sub"), label("out")],
        exit_(),
        label("sub"),
        ld_func(r3, "out"),
        gotol("sub"),
        exit_(),
    )
    assert code.labels == {"out": 4, "sub": 5}
    assert code.insns[0].off == 3
    assert code.insns[3].imm == 1
    assert code.insns[5].imm == -2
    assert code.insns[7].imm == -3
    assert len(code) == 9


def test_labels_that_are_missing_or_doubled_are_refused() -> None:
    with pytest.raises(ValueError, match="label nowhere is not set; there are: here"):
        asm(label("here"), ja("nowhere"))
    with pytest.raises(ValueError, match="twice"):
        asm(label("a"), label("a"))


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bits"):
        bytes(asm(ldxw(r0, r1, 0x8000)))
    with pytest.raises(ValueError, match="32 bits"):
        bytes(asm(mov(r0, 1 << 32)))


def test_disassembly_has_numbers_and_labels() -> None:
    code = asm(mov(r6, r1), ld_imm64(r2, 5), label("out"), exit_())
    assert str(code).splitlines() == ["   0: r6 = r1", "   1: r2 = 5 ll", "out:", "   3: exit"]
    assert disassemble(b"\xff" * 8) == "   0: .insn code=0xff dst=15 src=15 off=-1 imm=-1"


registers = st.sampled_from(list(Reg)[:10])
offsets = st.integers(-0x8000, 0x7FFF)
immediates = st.integers(-0x80000000, 0x7FFFFFFF)
binary = st.sampled_from([mov, add, sub, mul, div, or_, and_, xor, mov32, add32, sub32])
shifts = st.sampled_from([lsh, rsh, arsh, arsh32])
jumps = st.sampled_from([jeq, jne, jgt, jge, jlt, jle, jsgt, jsge, jslt, jsle, jeq32, jsgt32])
stores = st.sampled_from([stxb, stxh, stxw, stxdw, atomic_add, fetch_add, fetch_or, xchg, cmpxchg])
insns = st.one_of(
    st.builds(lambda op, dst, src: op(dst, src), binary, registers, registers | immediates),
    st.builds(lambda op, dst, src: op(dst, src), shifts, registers, registers | st.integers(0, 31)),
    st.builds(lambda op, a, b, off: op(a, b, off), jumps, registers, registers | immediates, offsets),
    st.builds(
        lambda op, a, b, o: op(a, b, o),
        st.sampled_from([ldxb, ldxh, ldxw, ldxdw]),
        registers,
        registers,
        offsets,
    ),
    st.builds(lambda op, a, off, b: op(a, off, b), stores, registers, offsets, registers),
)


@needs_llvm
@settings(max_examples=20)
@given(st.lists(insns, min_size=1, max_size=100))
def test_llvm_disassembles_to_our_text(sequence: list[Insn]) -> None:
    assert llvm(bytes(asm(sequence))) == [text(each) for each in sequence]


@given(st.binary(min_size=8, max_size=8))
def test_decoding_and_encoding_any_eight_bytes_changes_nothing(raw: bytes) -> None:
    assert Insn.decode(raw).encode() == raw
    assert text(Insn.decode(raw))


def test_code_is_hashable_data() -> None:
    code = asm(mov(r0, 0), exit_())
    assert isinstance(code, Code)
    assert code == asm(mov(r0, 0), exit_())
    assert DW == 0x18
