# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.guest import kmsg


class Ring:
    """/dev/kmsg as `os.read` shows it: a record for each read, an error where the ring buffer has a hole."""

    def __init__(self, *content: str | int) -> None:
        self.content = list(content)

    def read(self, fd: int, size: int) -> bytes:
        if not self.content:
            raise BlockingIOError(errno.EAGAIN, "no more")
        item = self.content.pop(0)
        if isinstance(item, int):
            raise OSError(item, os.strerror(item))
        return item.encode()


def marked(monkeypatch: pytest.MonkeyPatch, ring: Ring) -> kmsg.Mark:
    monkeypatch.setattr(os, "read", ring.read)
    return kmsg.Mark(os.open(os.devnull, os.O_RDONLY))


def test_records_since_a_mark_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring("4,10,1000,-;first\n", "13,11,2000,-;from user space\n")
    with marked(monkeypatch, ring) as mark:
        records = kmsg.records_since(mark)
        assert [(r.seq, r.text, r.of_kernel) for r in records] == [
            (10, "first", True),
            (11, "from user space", False),
        ]
        ring.content.append("6,12,3000,-;third\n")
        assert [r.seq for r in kmsg.records_since(mark)] == [10, 11, 12]
    assert [r.seq for r in mark.read()] == [10, 11, 12]


def test_overwritten_records_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with marked(monkeypatch, Ring("4,10,1000,-;first\n", errno.EPIPE, "4,99,2000,-;later\n")) as mark:
        assert [r.seq for r in mark.read()] == [10, 99]
        assert mark.overwritten


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with marked(monkeypatch, Ring(errno.EIO)) as mark, pytest.raises(OSError, match="Input/output"):
        mark.read()


@pytest.mark.parametrize("line", ["", "two\nlines", "x" * 961])
def test_a_marker_is_one_short_line(line: str) -> None:
    with pytest.raises(KernrigError, match="no line"):
        kmsg.write(line)


def test_a_marker_ends_with_a_line_feed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kmsg"
    device.touch()
    monkeypatch.setattr(kmsg, "DEVICE", str(device))
    kmsg.write("scenario begins", level=6)
    assert device.read_text() == "<6>scenario begins\n"
