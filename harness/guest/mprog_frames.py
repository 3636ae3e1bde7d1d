# SPDX-License-Identifier: MIT
"""Numbered frames through the hooks of the player's stage, each by itself; the number is its mark, too."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from contextlib import ExitStack

from harness.guest.traffic import EXPERIMENTAL_ETHERTYPE, SHORTEST_FRAME
from harness.guest.waiting import slow_factor

MOST_FRAMES = 8192
FRAME_SECONDS = 0.5
PAUSE_SECONDS = 0.0003  # between frames: the processor is for the racers

# Where to send a frame, and where it arrives, so that it meets the programs of a hook.
PATHS = {
    "in": ("d1", "d0"),
    "out": ("d0", "d1"),
    "primary": ("nk", "nk_peer"),
    "peer": ("nk_peer", "nk"),
}


class Sender:
    """Sends one frame after the other, each when the one before has arrived; a context manager."""

    def __init__(self, hooks: list[str]) -> None:
        self._hooks = [hook for hook in hooks if hook in PATHS]
        self._over = threading.Event()
        self.frames: list[tuple[str, int, int, int]] = []
        self.lost: list[tuple[str, int]] = []
        self.doubled: list[int] = []

    def __enter__(self) -> Sender:
        self._stack = ExitStack()
        self._sockets = {}
        for hook in self._hooks:
            pair = []
            for end, protocol in zip(PATHS[hook], (0, EXPERIMENTAL_ETHERTYPE), strict=True):
                sock = self._stack.enter_context(
                    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
                )
                sock.bind((end, protocol))
                sock.settimeout(FRAME_SECONDS * slow_factor())
                pair.append(sock)
            self._sockets[hook] = tuple(pair)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Let the frame that is under way be the last."""
        self._over.set()

    def send(self) -> None:
        """Send until told to stop."""
        header = b"\xff" * 6 + bytes.fromhex("020000000000") + struct.pack("!H", EXPERIMENTAL_ETHERTYPE)
        turns = itertools.cycle(self._hooks)
        for number in range(MOST_FRAMES if self._hooks else 0):
            hook = next(turns)
            sender, receiver = self._sockets[hook]
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, number)
            wire = (header + struct.pack("!I", number)).ljust(SHORTEST_FRAME, b"\0")
            begin = time.monotonic_ns()
            sender.send(wire)
            try:
                while (arrived := self._number(receiver.recv(SHORTEST_FRAME))) != number:
                    self.doubled.append(arrived)
                self.frames.append((hook, begin, time.monotonic_ns(), number))
            except TimeoutError:
                self.lost.append((hook, number))
            if self._over.is_set():
                break
            time.sleep(PAUSE_SECONDS)
        self._drain()

    def _drain(self) -> None:
        for _, receiver in self._sockets.values():
            receiver.setblocking(False)
            try:
                while True:
                    self.doubled.append(self._number(receiver.recv(SHORTEST_FRAME)))
            except BlockingIOError:
                pass

    @staticmethod
    def _number(wire: bytes) -> int:
        number: int = struct.unpack_from("!I", wire, 14)[0]
        return number
