# SPDX-License-Identifier: MIT
"""perf learns of the trampolines of a table when they come and when they go."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf.struct_ops import StructOps
from harness.guest.netns import libc
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import Algorithm

pytestmark = [pytest.mark.requires("struct_ops", "struct_ops_symbols")]

# include/uapi/linux/perf_event.h
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY = 1, 9
KSYMBOL, CLOEXEC = 1 << 29, 1 << 3
ATTR_SIZE = 128
PERF_RECORD_KSYMBOL, UNREGISTER = 17, 1
DATA_HEAD = 1024  # of struct perf_event_mmap_page
PAGES = 64
PREFIX = "bpf__tcp_congestion_ops_"


@dataclass(frozen=True)
class Symbol:
    """A record: the symbol's name, where it is and how long, and whether it goes."""

    name: str
    address: int
    size: int
    gone: bool


class Records:
    """The ksymbol records of the first CPU, from now on."""

    def __init__(self) -> None:
        attr = struct.pack("=IIQ", PERF_TYPE_SOFTWARE, ATTR_SIZE, PERF_COUNT_SW_DUMMY) + bytes(24)
        attr = (attr + struct.pack("=Q", KSYMBOL)).ljust(ATTR_SIZE, b"\0")
        number = SYS_PERF_EVENT_OPEN[os.uname().machine]
        self._fd = libc().syscall(number, ctypes.create_string_buffer(attr, ATTR_SIZE), -1, 0, -1, CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
        self._ring = mmap.mmap(self._fd, (1 + PAGES) * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)

    def __iter__(self) -> Iterator[Symbol]:
        """All records there are so far."""
        [head] = struct.unpack_from("=Q", self._ring, DATA_HEAD)
        assert head < PAGES * mmap.PAGESIZE, "there are more records than the buffer holds"
        at = mmap.PAGESIZE
        while at < mmap.PAGESIZE + head:
            kind, _, size = struct.unpack_from("=IHH", self._ring, at)
            if kind == PERF_RECORD_KSYMBOL:
                address, length, _, flags = struct.unpack_from("=QIHH", self._ring, at + 8)
                name = self._ring[at + 24 : at + size].partition(b"\0")[0].decode()
                yield Symbol(name, address, length, bool(flags & UNREGISTER))
            at += size

    def close(self) -> None:
        self._ring.close()
        os.close(self._fd)


@pytest.fixture
def records() -> Iterator[Records]:
    """Records of what happens in the scenario."""
    found = Records()
    yield found
    found.close()


def of_trampolines(records: Records, *, gone: bool) -> dict[str, tuple[int, int]]:
    """Address and size by member."""
    return {
        each.name.removeprefix(PREFIX): (each.address, each.size)
        for each in records
        if each.name.startswith(PREFIX) and each.gone == gone
    }


def test_records_tell_when_trampolines_come_and_go(idle: Algorithm, ops: StructOps, records: Records) -> None:
    """STOPS-INFO-005: one record for each when the table is filled and one when it is freed, of the same place."""
    ops.update(idle.members())
    came = of_trampolines(records, gone=False)
    assert came.keys() == idle.progs.keys()
    assert len(set(came.values())) == len(came)
    ops.delete()
    assert of_trampolines(records, gone=True) == {}

    ops.close()

    wait_until(
        lambda: of_trampolines(records, gone=True) == came, timeout=10, what="records of the ends of all"
    )


@pytest.mark.known_issue("KSYMBOL-OF-A-PAGE", reason="perf is told that each trampoline fills a page")
def test_trampolines_are_told_to_lie_side_by_side(idle: Algorithm, ops: StructOps, records: Records) -> None:
    """STOPS-INFO-005: they share a page, so what one record covers is not covered by the next."""
    ops.update(idle.members())
    places = sorted(of_trampolines(records, gone=False).values())
    ops.delete()
    for (address, size), (following, _) in itertools.pairwise(places):
        assert address + size <= following
