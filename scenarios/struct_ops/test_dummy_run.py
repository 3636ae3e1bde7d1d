# SPDX-License-Identifier: MIT
"""Test runs of struct_ops programs: the dummy type's members are called with arguments from user space."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

import pytest

from harness.guest.bpf import attrs, btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    add,
    asm,
    call_kfunc,
    exit_,
    jeq,
    label,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    stw,
)
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import load_struct_ops_prog
from harness.guest.bpf.syscall import refused, system_call
from harness.guest.netns import libc
from scenarios.struct_ops.algorithms import Algorithm

pytestmark = [pytest.mark.requires("struct_ops", "struct:bpf_struct_ops_bpf_dummy_ops")]

TYPE = "bpf_dummy_ops"
# What test_1 returns for a NULL state, and what it leaves in one.
NONE, LEFT = 0x1234, 0x5A


def dummy(member: str, *items: Item) -> Prog:
    """A program for a member of the dummy type. Raises BpfError."""
    return load_struct_ops_prog(TYPE, member, asm(*items, exit_()))


def context(*arguments: int) -> bytes:
    """The arguments as a test run takes them."""
    return struct.pack(f"={len(arguments)}Q", *arguments)


def visiting() -> Code:
    """Returns what was in the state and leaves something else, or says that there is none."""
    return asm(
        ldxdw(r1, r1),
        mov(r0, NONE),
        jeq(r1, 0, "out"),
        ldxw(r0, r1),
        stw(r1, 0, LEFT),
        label("out"),
        exit_(),
    )


def may_be_null() -> bool:
    """Whether the kernel marks test_1's argument, which it does since it looks at arguments at all (6.10)."""
    stub = "bpf_dummy_ops__test_1"
    return btf.vmlinux().has_func(stub) and btf.vmlinux().parameters(stub)[0].name.endswith("__nullable")


def test_state_is_copied_in_and_out() -> None:
    """STOPS-RUN-004: what the program finds is what user space has there, and what it leaves is found there."""
    state = (ctypes.c_int32 * 1)(77)
    with load_struct_ops_prog(TYPE, "test_1", visiting()) as prog:
        assert prog.test_run(ctx=context(ctypes.addressof(state))).retval == 77
        assert prog.test_run(ctx=context(ctypes.addressof(state))).retval == LEFT
        assert list(state) == [LEFT]
        assert prog.test_run(ctx=context(0)).retval == NONE
        assert list(state) == [LEFT]


def test_arguments_arrive_in_their_sizes() -> None:
    """STOPS-RUN-004: a pointer, an int, an unsigned short, a char and an unsigned long."""
    arguments = (-7, 60000, 11, 1 << 40)
    state = (ctypes.c_int32 * 1)(3)
    with dummy(
        "test_2",
        mov(r6, r1),
        ldxdw(r1, r6, 0),
        ldxw(r0, r1),
        *([ldxdw(r2, r6, 8 * number), add(r0, r2)] for number in (1, 2, 3)),
        ldxdw(r2, r6, 32),
        jeq(r2, 0, "out"),
        add(r0, 1000),
        label("out"),
    ) as prog:
        raw = context(ctypes.addressof(state), *(value & (1 << 64) - 1 for value in arguments))
        assert prog.test_run(ctx=raw).retval == 3 - 7 + 60000 + 11 + 1000


def test_wrong_test_runs_are_refused(idle: Algorithm) -> None:
    """STOPS-RUN-001 to -003, STOPS-FIX-005: another type, too few or too many arguments, NULL where it is not
    expected."""
    with refused(errno.EOPNOTSUPP):
        idle.progs["init"].test_run(ctx=context(0))
    with load_struct_ops_prog(TYPE, "test_1", visiting()) as one, dummy("test_2", mov(r0, 0)) as five:
        for prog, count in ((one, 0), (one, 2), (five, 1), (five, 4), (five, 6)):
            with refused(errno.EINVAL):
                prog.test_run(ctx=bytes(8 * count))
        with refused(errno.EFAULT):
            one.test_run(ctx=context(8))
        if may_be_null():
            with refused(errno.EINVAL):
                five.test_run(ctx=context(0, 1, 2, 3, 4))


def test_argument_that_may_be_null_must_be_tested() -> None:
    """STOPS-PROG-016."""
    if not may_be_null():
        pytest.skip("this kernel does not say that the dummy's argument may be NULL")
    with refused(errno.EACCES, log="invalid mem access 'trusted_ptr_or_null_'"):
        dummy("test_1", ldxdw(r1, r1), ldxw(r0, r1))
    load_struct_ops_prog(TYPE, "test_1", visiting()).close()
    # test_2's argument has no such mark
    dummy("test_2", ldxdw(r1, r1), ldxw(r0, r1)).close()


class ReadOnly:
    """A page that can be read, but not written any more."""

    def __init__(self, content: bytes) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._page.write(content)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        place, size = ctypes.c_void_p(self.address), ctypes.c_size_t(mmap.PAGESIZE)
        assert libc().mprotect(place, size, mmap.PROT_READ) == 0, os.strerror(ctypes.get_errno())


def test_bad_addresses_are_faults() -> None:
    """STOPS-RUN-005: of the arguments, of a state that cannot be written back, and of where the result is to go."""
    size = ctypes.sizeof(attrs.TestRun)
    state, fixed = (ctypes.c_int32 * 1)(77), ReadOnly(bytes(4))
    arguments = (ctypes.c_uint64 * 1)(ctypes.addressof(state))
    with load_struct_ops_prog(TYPE, "test_1", visiting()) as prog:

        def request(address: int) -> attrs.TestRun:
            return attrs.TestRun(prog_fd=prog.fd, ctx_size_in=8, ctx_in=address)

        nowhere = request(8)
        assert system_call(uapi.BPF_PROG_TEST_RUN, ctypes.byref(nowhere), size) == errno.EFAULT
        kept = (ctypes.c_uint64 * 1)(fixed.address)
        unwritable = request(ctypes.addressof(kept))
        assert system_call(uapi.BPF_PROG_TEST_RUN, ctypes.byref(unwritable), size) == errno.EFAULT
        assert unwritable.retval == 0
        asked = ReadOnly(bytes(request(ctypes.addressof(arguments))))
        place = ctypes.c_void_p(asked.address)
        assert system_call(uapi.BPF_PROG_TEST_RUN, place, size) == errno.EFAULT
        assert list(state) == [LEFT]


def test_zero_is_a_number_like_others() -> None:
    """STOPS-RUN-003: where no pointer is expected."""
    state = (ctypes.c_int32 * 1)(5)
    with dummy("test_2", ldxdw(r1, r1), ldxw(r0, r1)) as prog:
        assert prog.test_run(ctx=context(ctypes.addressof(state), 0, 0, 0, 0)).retval == 5


def test_nothing_but_the_state_may_be_written() -> None:
    """STOPS-PROG-036."""
    with refused(errno.EACCES, log="(write access|access beyond struct bpf_dummy_ops_state) at off 4"):
        dummy("test_2", ldxdw(r1, r1), stw(r1, 4, 0), mov(r0, 0))
    if has("kfunc:bpf_task_from_pid"):
        task = btf.vmlinux().func("bpf_task_from_pid")
        with refused(errno.EACCES, log="only access to bpf_dummy_ops_state is supported"):
            dummy("test_2", mov(r1, 1), call_kfunc(task), jeq(r0, 0, "out"), stw(r0, 0, 0), label("out"))
