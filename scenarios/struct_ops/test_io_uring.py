# SPDX-License-Identifier: MIT
"""io_uring's wait loop as a BPF program: it belongs to one ring, and each registration to itself."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, atomic_add, exit_, ld_map_value, mov, r0, r1, r2
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.netns import libc
from harness.guest.waiting import wait_until

TYPE = "io_uring_bpf_ops"

pytestmark = [pytest.mark.requires(f"struct_ops:{TYPE}")]

IO_URING_SETUP, IO_URING_ENTER = 425, 426  # the same on all architectures
# include/uapi/linux/io_uring.h
IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN, IORING_ENTER_GETEVENTS = 1 << 12, 1 << 13, 1
PARAMS_SIZE, PARAMS_FLAGS = 120, 8
IOU_LOOP_STOP = 1  # io_uring/loop.h


@contextmanager
def ring() -> Iterator[int]:
    """The descriptor of a ring that can have a loop of its own; it is closed at the end, if it still is open."""
    params = ctypes.create_string_buffer(PARAMS_SIZE)
    struct.pack_into("=I", params, PARAMS_FLAGS, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)
    fd = int(libc().syscall(ctypes.c_long(IO_URING_SETUP), ctypes.c_long(4), params))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    try:
        yield fd
    finally:
        os.close(fd)


def enter(fd: int) -> None:
    """Let the ring look for completions without waiting for any."""
    arguments = [ctypes.c_long(n) for n in (IO_URING_ENTER, fd, 0, 0, IORING_ENTER_GETEVENTS, 0, 0)]
    if libc().syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_enter")


@pytest.fixture
def tally() -> Iterator[Map]:
    """Memory in which a loop counts its steps."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as memory:
        yield memory


@pytest.fixture
def step(tally: Map) -> Iterator[Prog]:
    """A program for member loop_step that counts, and leaves the loop."""
    code = asm(ld_map_value(r1, tally), mov(r2, 1), atomic_add(r1, 0, r2), mov(r0, IOU_LOOP_STOP), exit_())
    with load_struct_ops_prog(TYPE, "loop_step", code) as prog:
        yield prog


def steps(tally: Map) -> int:
    raw = tally.lookup(0)
    assert raw is not None
    return int(struct.unpack("=Q", raw)[0])


def link_when_free(ops: StructOps) -> Link | None:
    """A link, or None as long as the map is in use: a ring's end comes from a work queue."""
    try:
        return ops.link()
    except BpfError as refusal:
        if refusal.errno != errno.EBUSY:
            raise
    return None


def test_a_ring_runs_its_loop_until_the_link_is_closed(tally: Map, step: Prog) -> None:
    """STOPS-LINK-005, -006, -022, STOPS-CMD-004: a type that is not TCP's, with the same life."""
    with ring() as fd, StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as ops:
        ops.update({"loop_step": step, "ring_fd": fd})
        enter(fd)
        assert steps(tally) == 0
        with ops.link():
            enter(fd)
            assert steps(tally) == 1
            with refused(errno.EBUSY):
                ops.link()
        enter(fd)
        assert steps(tally) == 1


@pytest.mark.known_issue(
    "IO-URING-NO-LOOP-STEP",
    reason="a mistake of user space's is taken for one of the kernel's",
    splat="bpf_io_reg|io_install_bpf",
)
def test_a_table_without_a_loop_is_refused() -> None:
    """STOPS-UPD-014, STOPS-UPD-016: its only member is mandatory."""
    with ring() as fd, StructOps.create(TYPE) as ops, refused(errno.EINVAL):
        ops.update({"ring_fd": fd})


@pytest.mark.known_issue("IO-URING-OTHER-LINK", reason="the link that ends ends whatever the map is used for")
def test_a_link_that_outlived_its_ring_ends_no_other_links_loop(tally: Map, step: Prog) -> None:
    """STOPS-LINK-006, -022: the second link registered the map with a ring of its own."""
    with StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as ops:
        with ring() as first:
            ops.update({"loop_step": step, "ring_fd": first})
            old = ops.link()
        with old, ring() as second:
            assert second == first
            made = wait_until(
                lambda: link_when_free(ops), timeout=5, what="the first ring to let go of the map"
            )
            assert made is not None
            with made:
                enter(second)
                assert steps(tally) == 1
                old.close()
                enter(second)
                assert steps(tally) == 2
