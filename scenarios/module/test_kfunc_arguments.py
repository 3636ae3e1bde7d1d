# SPDX-License-Identifier: MIT
"""What programs pass to functions of modules: numbers, the context that they run on, memory and its size."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Operand,
    add,
    asm,
    call_kfunc,
    exit_,
    ldxw,
    mov,
    r1,
    r2,
    r3,
    r4,
    r10,
    stdw,
)
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrTraced

pytestmark = pytest.mark.usefixtures("kr_traced")

PACKET = bytes(64)
# struct __sk_buff
MARK, CONTEXT_SIZE = 8, 192


def call(name: str, *arguments: Operand) -> Item:
    """Call kr_traced_NAME with these in r1, r2, ..."""
    registers = (r1, r2, r3, r4)
    return [
        *(mov(register, argument) for register, argument in zip(registers, arguments, strict=False)),
        call_kfunc(btf.module("kr_traced").func(f"kr_traced_{name}"), 1),
    ]


def load(*items: Item, on_packets: bool = True) -> Prog:
    """A program that returns r0: of the traffic classifier, or one of syscalls, whose context is any memory."""
    kind, flags = uapi.BPF_PROG_TYPE_SCHED_CLS, 0
    if not on_packets:
        kind, flags = uapi.BPF_PROG_TYPE_SYSCALL, uapi.BPF_F_SLEEPABLE
    code = asm(*items, exit_())
    return Prog.load(code, kind, flags=flags, fd_array=[0, btf.module("kr_traced").object])


def stack(*, size: int) -> Item:
    """r1 = 8 bytes of the stack, all of them 1, r2 = a size."""
    return [stdw(r10, -8, 0x01010101), mov(r1, r10), add(r1, -8), mov(r2, size)]


def test_numbers_arrive_whatever_their_width_and_sign() -> None:
    """MODLIFE-REF-006: of 8, 16, 32 and 64 bits."""
    for numbers in ((-3, -30, -200, -1000), (3, 30, 200, 1000), (-128, 32767, -(1 << 31), 1)):
        with load(call("add", *numbers)) as program:
            assert program.test_run(PACKET).retval == sum(numbers) & 0xFFFFFFFF


def test_context_arrives_as_the_kernels_own() -> None:
    """MODLIFE-REF-006: the function sees the packet that the program runs on."""
    with load(call("mark_of")) as program:
        for mark in (7, 0xFFFFFFFF):
            context = bytearray(CONTEXT_SIZE)
            struct.pack_into("=I", context, MARK, mark)
            assert program.test_run(PACKET, ctx=bytes(context)).retval == mark


WRONG: dict[str, tuple[tuple[int, ...], str, Callable[[], Item], bool]] = {
    "number": ((errno.EINVAL,), "expected pointer to ctx, but got", lambda: call("mark_of", 10), True),
    "memory": (
        (errno.EINVAL,),
        "expected pointer to ctx, but got",
        lambda: [stack(size=8), call("mark_of")],
        True,
    ),
    "behind its begin": (
        (errno.EACCES, errno.EINVAL),
        "dereference of modified ctx ptr R1 off=8",
        lambda: [add(r1, 8), call("mark_of")],
        True,
    ),
    "of another type": (
        (errno.EINVAL,),
        "must point to scalar|R1 is ctx expected STRUCT __sk_buff",
        lambda: call("mark_of"),
        False,
    ),
}


@pytest.mark.parametrize(("answers", "said", "wrong", "on_packets"), WRONG.values(), ids=WRONG)
def test_what_is_no_such_context_is_refused(
    kr_traced: KrTraced, answers: tuple[int, ...], said: str, wrong: Callable[[], Item], on_packets: bool
) -> None:
    """MODLIFE-REF-006: and the program lets the module go."""
    with refused(*answers, log=said):
        load(wrong(), on_packets=on_packets)
    assert kr_traced.users() == 0


def test_memory_is_read_as_far_as_the_size_says() -> None:
    """MODLIFE-REF-006: of the stack."""
    for size, total in ((8, 4), (2, 2), (0, 0)):
        with load(stack(size=size), call("sum")) as program:
            assert program.test_run(PACKET).retval == total


SIZES: dict[str, tuple[str, Callable[[], Item]]] = {
    "more than there is": ("leads to invalid memory access", lambda: stack(size=16)),
    "negative": ("leads to invalid memory access", lambda: stack(size=-1)),
    "unknown": ("leads to invalid memory access", lambda: [ldxw(r3, r1, 0), stack(size=0), mov(r2, r3)]),
}


@pytest.mark.parametrize(("said", "memory"), SIZES.values(), ids=SIZES)
def test_size_must_be_within_the_memory(said: str, memory: Callable[[], Item]) -> None:
    """MODLIFE-REF-006: whatever it may be."""
    with refused(errno.EINVAL, errno.EACCES, log=said):
        load(memory(), call("sum"))


def test_context_of_a_syscall_program_is_memory_that_the_run_brings() -> None:
    """MODLIFE-REF-006: the run is refused if there is less of it than the program's function reads."""
    context = bytes((1, 2, 3, 4, 5))
    with load(mov(r2, 4), call("sum"), on_packets=False) as program:
        assert program.test_run(ctx=context).retval == 10
        assert program.test_run(ctx=context[:4]).retval == 10
        for less in (context[:3], b""):
            with refused(errno.EINVAL):
                program.test_run(ctx=less)
    with load(mov(r2, 0), call("sum"), on_packets=False) as program:
        assert program.test_run().retval == 0
