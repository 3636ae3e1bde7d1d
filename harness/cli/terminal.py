# SPDX-License-Identifier: MIT
"""The user's terminal while the guest has it: raw mode, its size, and a way out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator

LEAVE = b"\x1d"
LEAVE_NAME = "Ctrl-]"


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Every key goes to the guest; the terminal is as before afterwards, whatever happens."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def resized() -> Iterator[socket.socket]:
    """A socket that gets a byte whenever the terminal's size changes: SIGWINCH as something to select on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        handler = signal.signal(signal.SIGWINCH, lambda *_: None)
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGWINCH, handler)


def size() -> tuple[int, int]:
    """Columns and lines of the terminal itself: COLUMNS and LINES in the environment do not follow its size."""
    columns, lines = os.get_terminal_size(sys.stdin.fileno())
    return columns or 80, lines or 24  # a serial line's terminal may not know


def typed() -> tuple[bytes, bool]:
    """What was typed (select says that there is something), and whether the user wants to leave."""
    data = os.read(sys.stdin.fileno(), 4096)
    before, key, _ = data.partition(LEAVE)
    return before, bool(key) or not data
