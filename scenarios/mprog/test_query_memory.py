# SPDX-License-Identifier: MIT
"""What a query writes where: arrays at the end of memory, bad pointers, attributes that are too short."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass

import pytest

from harness.guest.bpf.attrs import ATTR_SIZE, ProgQuery
from harness.guest.bpf.syscall import system_call
from harness.guest.bpf.uapi import BPF_NETKIT_PRIMARY, BPF_PROG_QUERY, BPF_TCX_INGRESS
from harness.guest.netns import libc
from scenarios.mprog.conftest import Entry, ids

# In the order in which the kernel writes an element's parts (kernel/bpf/mprog.c:bpf_mprog_query).
ARRAYS = ("prog_ids", "prog_attach_flags", "link_ids", "link_attach_flags")
UNTOUCHED = 0xA5A5A5A5
PROT_NONE = 0
PAGE = mmap.PAGESIZE
# Offsets in the attributes of BPF_PROG_QUERY (include/uapi/linux/bpf.h).
BEHIND_COUNT, BEFORE_REVISION = 28, 56


class Cliff:
    """A page of memory that ends where one begins that cannot be touched, or has the protection `behind`."""

    def __init__(
        self, protection: int = mmap.PROT_READ | mmap.PROT_WRITE, *, behind: int = PROT_NONE
    ) -> None:
        self._pages = mmap.mmap(-1, 2 * PAGE)
        self._pages.write(bytes([UNTOUCHED & 0xFF]) * PAGE)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.end = self.begin + PAGE
        for address, wanted in ((self.begin, protection), (self.end, behind)):
            assert libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), wanted) == 0, os.strerror(
                ctypes.get_errno()
            )

    def last(self, words: int) -> int:
        """The address of the page's last `words` words."""
        return self.end - 4 * words

    def read(self, words: int) -> list[int]:
        return list((ctypes.c_uint32 * words).from_address(self.last(words)))


@dataclass(frozen=True)
class Answer:
    """A query's errno, and what it wrote to its attributes."""

    errno: int
    count: int
    revision: int


def query(entry: Entry, count: int, **addresses: int) -> Answer:
    """Query with arrays at any address; an array that is not given is NULL."""
    attr = ProgQuery(
        target_ifindex=entry.dev.ifindex, attach_type=BPF_TCX_INGRESS, count=count, revision=77, **addresses
    )
    code = system_call(BPF_PROG_QUERY, ctypes.byref(attr), ctypes.sizeof(attr))
    return Answer(code, attr.count, attr.revision)


def columns(entry: Entry, count: int) -> dict[str, list[int]]:
    """The first `count` elements of `A B* C` in each array."""
    flags = [0, 0, 0][:count]
    progs, links = ids(entry.a, entry.b, entry.c)[:count], [0, entry.link.id, 0][:count]
    return {
        "prog_ids": progs,
        "prog_attach_flags": flags,
        "link_ids": links,
        "link_attach_flags": flags,
    }


@pytest.mark.parametrize(
    ("count", "room", "code"),
    [
        pytest.param(1, 1, errno.ENOSPC, id="one of one"),
        pytest.param(2, 2, errno.ENOSPC, id="two of two"),
        pytest.param(3, 3, 0, id="all"),
        pytest.param(64, 3, 0, id="less room than told, but enough"),
    ],
)
def test_arrays_may_end_where_memory_ends(entry: Entry, count: int, room: int, code: int) -> None:
    """MPROG-QUERY-007, -008: what lies behind the last element that is written is not even touched."""
    cliffs = {name: Cliff() for name in ARRAYS}
    assert query(entry, count, **{name: cliff.last(room) for name, cliff in cliffs.items()}) == Answer(
        code, 3, 4
    )
    assert {name: cliff.read(room) for name, cliff in cliffs.items()} == columns(entry, room)


def test_an_array_shorter_than_told_is_a_fault_where_it_ends(entry: Entry) -> None:
    """MPROG-QUERY-005, -011: what came before stays written, in the array and in the attributes."""
    for short in ARRAYS:
        cliffs = {name: Cliff() for name in ARRAYS}
        room = {name: 2 if name == short else 3 for name in ARRAYS}
        answer = query(entry, 3, **{name: cliff.last(room[name]) for name, cliff in cliffs.items()})
        assert answer == Answer(errno.EFAULT, 3, 4)
        position = ARRAYS.index(short)
        for name in ARRAYS:
            whole = ARRAYS.index(name) < position
            wanted = columns(entry, 3 if whole else 2)[name]
            assert cliffs[name].read(room[name]) == wanted + [UNTOUCHED] * (room[name] - len(wanted)), name


def test_a_bad_pointer_is_a_fault_unless_it_is_not_needed(entry: Entry) -> None:
    """MPROG-QUERY-005, -006, -011: count and revision are there nevertheless; EFAULT is stronger than ENOSPC."""
    read_only = Cliff(mmap.PROT_READ)
    bad = {"low": 8, "kernel": 0xFFFF_8880_0000_0000, "not canonical": 1 << 62, "read-only": read_only.begin}
    for name in ARRAYS:
        for what, address in bad.items():
            cliffs = {other: Cliff() for other in ARRAYS}
            addresses = {other: cliff.last(3) for other, cliff in cliffs.items()} | {name: address}
            for count in (1, 3, 64):
                assert query(entry, count, **addresses) == Answer(errno.EFAULT, 3, 4), (name, what)
            before = ARRAYS[: ARRAYS.index(name)]
            for other in ARRAYS:
                written = columns(entry, 1)[other] if other in before else []
                assert cliffs[other].read(3) == written + [UNTOUCHED] * (3 - len(written)), (
                    name,
                    what,
                    other,
                )
            assert query(entry, 0, **addresses) == Answer(0, 3, 4), (name, what)
            if name != "prog_ids":
                assert query(entry, 64, **addresses | {"prog_ids": 0}) == Answer(0, 3, 4), (name, what)


def test_attributes_in_bad_memory_are_a_fault(entry: Entry) -> None:
    """MPROG-QUERY-011: none at all, and such as can be read but not written."""
    size = ctypes.sizeof(ProgQuery)
    for address in (0, 8, 0xFFFF_8880_0000_0000, Cliff().end):
        assert system_call(BPF_PROG_QUERY, ctypes.c_void_p(address), size) == errno.EFAULT
    ids_here, read_only = Cliff(), Cliff()
    place = ctypes.c_void_p(read_only.begin)
    attr = ProgQuery(target_ifindex=entry.dev.ifindex, attach_type=BPF_TCX_INGRESS, count=3)
    attr.prog_ids = ids_here.last(3)
    ctypes.memmove(place, ctypes.byref(attr), size)
    assert system_call(BPF_PROG_QUERY, place, size) == 0
    assert ids_here.read(3) == columns(entry, 3)["prog_ids"]
    ids_here = Cliff()
    attr.prog_ids = ids_here.last(3)
    ctypes.memmove(place, ctypes.byref(attr), size)
    assert libc().mprotect(place, ctypes.c_size_t(PAGE), mmap.PROT_READ) == 0
    assert system_call(BPF_PROG_QUERY, place, size) == errno.EFAULT
    assert ids_here.read(3) == [UNTOUCHED] * 3


def test_attributes_of_which_only_the_end_is_read_only_are_a_fault(entry: Entry) -> None:
    """MPROG-QUERY-011: the revision, which stands last, is written before count and arrays."""
    ids_here, cliff = Cliff(), Cliff(behind=mmap.PROT_READ | mmap.PROT_WRITE)
    place = ctypes.c_void_p(cliff.end - BEFORE_REVISION)
    attr = ProgQuery(target_ifindex=entry.dev.ifindex, attach_type=BPF_TCX_INGRESS, count=64)
    attr.prog_ids = ids_here.last(3)
    ctypes.memmove(place, ctypes.byref(attr), ctypes.sizeof(attr))
    assert libc().mprotect(ctypes.c_void_p(cliff.end), ctypes.c_size_t(PAGE), mmap.PROT_READ) == 0
    assert system_call(BPF_PROG_QUERY, place, ctypes.sizeof(attr)) == errno.EFAULT
    after = ProgQuery.from_address(cliff.end - BEFORE_REVISION)
    assert (after.count, after.revision) == (64, 0)
    assert ids_here.read(3) == [UNTOUCHED] * 3


def test_attributes_that_end_early_count_as_zero_behind_their_end(entry: Entry) -> None:
    """MPROG-ABI-004: told of nothing behind the count, the kernel fills program ids and overlooks the other arrays."""
    cliffs = {name: Cliff() for name in ARRAYS}
    attr = ProgQuery(target_ifindex=entry.dev.ifindex, attach_type=BPF_TCX_INGRESS, count=3)
    for name, cliff in cliffs.items():
        setattr(attr, name, cliff.last(3))
    assert system_call(BPF_PROG_QUERY, ctypes.byref(attr), BEHIND_COUNT) == 0
    assert attr.count == 3
    read = {name: cliff.read(3) for name, cliff in cliffs.items()}
    assert read == {name: [UNTOUCHED] * 3 for name in ARRAYS} | {"prog_ids": columns(entry, 3)["prog_ids"]}


@pytest.mark.known_issue(
    "MPROG-QUERY-012", reason="the revision is written behind attributes that end before it"
)
@pytest.mark.parametrize("attach_type", [BPF_TCX_INGRESS, BPF_NETKIT_PRIMARY], ids=["tcx", "netkit"])
def test_nothing_is_written_behind_the_attributes(request: pytest.FixtureRequest, attach_type: int) -> None:
    """MPROG-QUERY-012: wherever the caller says that they end."""
    dev, _ = request.getfixturevalue("ends" if attach_type == BPF_TCX_INGRESS else "netkit_ends")
    attr = bytes(ProgQuery(target_ifindex=dev.ifindex, attach_type=attach_type))
    for size in (BEHIND_COUNT, BEFORE_REVISION):
        room = ctypes.create_string_buffer(attr[:size].ljust(ATTR_SIZE, b"\xa5"), ATTR_SIZE)
        assert system_call(BPF_PROG_QUERY, room, size) == 0
        assert room.raw[size:] == b"\xa5" * (ATTR_SIZE - size)
