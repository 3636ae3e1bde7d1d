# SPDX-License-Identifier: MIT
"""BPF ring buffers: records of programs on all CPUs, in the order in which they were reserved."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map

# include/uapi/linux/bpf.h
HEADER = 8
BUSY = 1 << 31
DISCARD = 1 << 30
NO_WAKEUP = 1
"""Flag of BPF_FUNC_ringbuf_submit: nobody polls, so no interrupt is raised for the record."""


def stride(size: int) -> int:
    """Bytes that a record of `size` takes in a ring."""
    return HEADER + (size + 7) // 8 * 8


class RingBuffer:
    """A BPF_MAP_TYPE_RINGBUF map of at least `size` bytes, mapped for reading. Raises BpfError, OSError.

    What a program reserves when there is no room is refused to it: it has to count that itself.
    """

    def __init__(self, size: int, *, name: str = "") -> None:
        self.size = max(mmap.PAGESIZE, 1 << (size - 1).bit_length())
        self.map = Map.create(uapi.BPF_MAP_TYPE_RINGBUF, 0, 0, self.size, name=name)
        # kernel/bpf/ringbuf.c: a page with the consumer's position, one with the producer's, the data twice over
        self._consumer = mmap.mmap(self.map.fd, mmap.PAGESIZE)
        self._producer = mmap.mmap(
            self.map.fd, mmap.PAGESIZE + 2 * self.size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close; again is harmless."""
        self._consumer.close()
        self._producer.close()
        self.map.close()

    def records(self) -> Iterator[bytes]:
        """The records so far, each consumed once it is yielded. It ends before one that is still being written."""
        while True:
            (consumed,) = struct.unpack_from("=Q", self._consumer)
            (produced,) = struct.unpack_from("=Q", self._producer)
            if consumed == produced:
                return
            at = mmap.PAGESIZE + (consumed & (self.size - 1))
            (length,) = struct.unpack_from("=I", self._producer, at)
            if length & BUSY:
                return
            size = length & ~DISCARD
            record = self._producer[at + HEADER : at + HEADER + size]
            struct.pack_into("=Q", self._consumer, 0, consumed + stride(size))
            if not length & DISCARD:
                yield record
