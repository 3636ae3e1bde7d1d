# SPDX-License-Identifier: MIT
"""Registrations for which something has run out: room for code, descriptors, files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from harness.guest.descriptors import no_descriptor_left, no_file_left
from harness.guest.privilege import CAP_BPF, CAP_SYS_ADMIN, as_nobody, without
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, ready, seen
from scenarios.struct_ops.observed import available

pytestmark = [pytest.mark.requires("struct_ops")]

JIT_LIMIT = Path("/proc/sys/net/core/bpf_jit_limit")


@contextmanager
def no_room_for_code() -> Iterator[None]:
    """Programs take all the memory that those without CAP_BPF may fill with code."""
    before = JIT_LIMIT.read_text()
    JIT_LIMIT.write_text("1")
    try:
        yield
    finally:
        JIT_LIMIT.write_text(before)


@pytest.mark.requires("kfunc:arch_alloc_bpf_trampoline")
def test_trampolines_count_against_the_limit_of_code(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-UPD-021, -018: for one who has the map but not CAP_BPF; with it the same map takes the same value."""
    fresh, value = ops.lookup(), ops.value(idle.members())
    with no_room_for_code():
        with refused(errno.EPERM):
            without((CAP_BPF, CAP_SYS_ADMIN), ops.update, value)
        assert ops.lookup() == fresh
        assert NAME not in available()
        ops.update(value)
    assert seen(ops) == inuse(1)


@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops", "kfunc:arch_alloc_bpf_trampoline")
def test_trampolines_of_test_runs_count_too() -> None:
    """STOPS-UPD-021: each run makes one, and gives it back."""
    without_state = asm(mov(r0, 7), exit_())
    with load_struct_ops_prog("bpf_dummy_ops", "test_1", without_state) as prog:
        with no_room_for_code(), refused(errno.EPERM):
            without((CAP_BPF, CAP_SYS_ADMIN), prog.test_run, ctx=bytes(8))
        assert without((CAP_BPF, CAP_SYS_ADMIN), prog.test_run, ctx=bytes(8)).retval == 7


@pytest.mark.requires("struct_ops_link")
def test_a_link_that_nobody_could_hold_registers_nothing(link_ops: StructOps, idle: Algorithm) -> None:
    """STOPS-LINK-007: no descriptor or no file left for it; afterwards it can be made."""
    link_ops.update(idle.members())
    before = seen(link_ops)
    with no_descriptor_left(), refused(errno.EMFILE):
        link_ops.link()
    with no_file_left(), refused(errno.ENFILE):
        as_nobody(link_ops.link)
    assert seen(link_ops) == before == ready(0)
    assert NAME not in available()
    with link_ops.link():
        assert NAME in available()
