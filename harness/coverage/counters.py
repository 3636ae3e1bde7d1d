# SPDX-License-Identifier: MIT
"""One object's counters as gcc's `.gcda` files hold them, which can be added and subtracted.

The form is that of gcc/gcov-io.h: a header, then records of a tag, a length and data. A count is the sum of the same
count in all runs, so that of what many machines counted one file can be made for gcov to read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.errors import KernrigError

_MAGIC = 0x67636461
_FUNCTION = 0x01000000
_ARCS = 0x01A10000
_OBJECT_SUMMARY = 0xA1000000
# gcc 12 counts lengths in bytes and has a checksum in the header (its commits 23eb66d and 72e0c74).
_BYTES_SINCE = 12


@dataclass(frozen=True)
class Counters:
    """The counts in order; `words` are the whole file with zeros in their places, which begin at `places`.

    What a program adds about its runs as a whole is left out, as the kernel has none of it.
    """

    words: tuple[int, ...]
    places: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def parse(cls, data: bytes) -> Counters:
        """Read a file. Raises KernrigError for another one, or one that was cut off."""
        try:
            return _parse(struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4]))
        except IndexError:
            raise _wrong("it ends within a record") from None

    def pack(self) -> bytes:
        """The file."""
        words = list(self.words)
        for place, count in zip(self.places, self.counts, strict=True):
            words[place], words[place + 1] = count & 0xFFFFFFFF, count >> 32
        return struct.pack(f"<{len(words)}I", *words)

    def __add__(self, other: Counters) -> Counters:
        """Both together. Raises KernrigError when they are not of the same object in the same build."""
        return self._with(other, lambda mine, its: mine + its)

    def __sub__(self, other: Counters) -> Counters:
        """What came since `other`; never below zero. Raises KernrigError as adding does."""
        return self._with(other, lambda mine, its: max(mine - its, 0))

    def _with(self, other: Counters, of: Callable[[int, int], int]) -> Counters:
        if self.words != other.words:
            raise KernrigError("counters of two builds of a kernel can't be added")
        return replace(self, counts=tuple(map(of, self.counts, other.counts)))


def _parse(words: Sequence[int]) -> Counters:
    if not words or words[0] != _MAGIC:
        raise _wrong("it begins otherwise")
    new = _gcc(words[1]) >= _BYTES_SINCE
    at = 4 if new else 3
    kept: list[int] = [*words[:at]]
    places: list[int] = []
    counts: list[int] = []
    while at < len(words) and words[at]:
        tag, length = words[at], words[at + 1]
        # What is all zero is a negative length without data.
        zero = length >= 1 << 31
        size = (2**32 - length if zero else length) // (4 if new else 1)
        data = [0] * size if zero else list(words[at + 2 : at + 2 + size])
        if len(data) != size:
            raise IndexError
        at += 2 + (0 if zero else size)
        if tag == _OBJECT_SUMMARY:
            continue
        kept += [tag, size * (4 if new else 1)]
        if tag == _ARCS:
            places += range(len(kept), len(kept) + size, 2)
            counts += [low | high << 32 for low, high in zip(data[::2], data[1::2], strict=True)]
            data = [0] * size
        elif tag != _FUNCTION:
            raise _wrong(f"it has a record {tag:#x}")
        kept += data
    return Counters(tuple(kept), tuple(places), tuple(counts))


def _gcc(version: int) -> int:
    """The compiler's major version: `B22*` is 12.2."""
    text = version.to_bytes(4, "big").decode("latin-1")
    try:
        return (ord(text[0]) - ord("A")) * 10 + int(text[1])
    except ValueError:
        raise _wrong(f"it is of a compiler {text!r}") from None


def _wrong(why: str) -> KernrigError:
    return KernrigError(f"this is no file of gcc's counters: {why}")
