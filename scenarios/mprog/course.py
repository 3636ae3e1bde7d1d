# SPDX-License-Identifier: MIT
"""Numbered frames on their way across a veth pair, and for each of them the programs that it met."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    W,
    add,
    and_,
    asm,
    exit_,
    ld_abs,
    ld_map_value,
    ldxdw,
    lsh,
    mov,
    or_,
    r0,
    r1,
    r2,
    r6,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import TCX_NEXT
from harness.guest.net import VethPair
from harness.guest.traffic import EXPERIMENTAL_ETHERTYPE, SHORTEST_FRAME, backlog, frame, packet_socket
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls

SO_ATTACH_BPF = 50  # include/uapi/asm-generic/socket.h
ETHERNET_HEADER = 14
FRAMES = 1 << 14
# Leaves CPU time and the interpreter's lock to the thread that changes the list.
PAUSE_BETWEEN_FRAMES = 0.0003
ARRIVED = 0xF


class Course:
    """Numbered frames from end a to end b, and for each of them the numbers of the programs that it met.

    The receiver is a program, too: a socket's filter that notes ARRIVED and then throws the frame away, so that no
    receive buffer can overflow.
    """

    def __init__(self, veth: VethPair, notes: Map, load: LoadSchedCls) -> None:
        self._veth = veth
        self._notes = notes
        self._load = load
        self.sent = 0

    def note(self, number: int) -> Item:
        """Instructions that append `number` to the frame's notes. One CPU at a time has the frame."""
        return (
            mov(r6, r1),
            ld_abs(W, ETHERNET_HEADER),
            and_(r0, FRAMES - 1),
            lsh(r0, 3),
            ld_map_value(r1, self._notes),
            add(r1, r0),
            ldxdw(r2, r1),
            lsh(r2, 4),
            or_(r2, number),
            stxdw(r1, 0, r2),
        )

    def prog(self, number: int, verdict: int = TCX_NEXT) -> Prog:
        """A program that notes its number on each frame."""
        return self._load(self.note(number), verdict=verdict, name=f"stage_{number}")

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Frames flow during the block; afterwards, all have gone their way."""
        stop = Event()
        swallow = asm(self.note(ARRIVED), mov(r0, 0), exit_())
        with (
            Prog.load(swallow, uapi.BPF_PROG_TYPE_SOCKET_FILTER) as arrival,
            packet_socket(self._veth.b, EXPERIMENTAL_ETHERTYPE) as receiver,
            packet_socket(self._veth.a) as sender,
        ):
            receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, arrival.fd)
            header = frame(self._veth.a, self._veth.b)[:ETHERNET_HEADER]

            def send() -> None:
                while not stop.is_set() and self.sent < FRAMES:
                    number = self.sent
                    self.sent += 1
                    try:
                        sender.send((header + struct.pack("!I", number)).ljust(SHORTEST_FRAME, b"\0"))
                    except OSError as refused:
                        # That is how a program on the way out drops a frame.
                        if refused.errno != errno.ENOBUFS:
                            raise
                    time.sleep(PAUSE_BETWEEN_FRAMES)

            thread = Thread(target=send)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
            wait_until(lambda: backlog() == 0, timeout=1, what="the CPUs' packet backlogs to empty")

    def await_frames(self, count: int) -> None:
        """Let `count` more frames leave."""
        mark = self.sent + count
        wait_until(lambda: self.sent > mark, timeout=2, what=f"{count} more frames to leave")

    def ways(self) -> Counter[tuple[int, ...]]:
        """How many frames met which programs, in order."""
        raw = self._notes.lookup(0)
        assert raw is not None
        met: Counter[int] = Counter(struct.unpack_from(f"={self.sent}Q", raw))
        return Counter({tuple(int(digit, 16) for digit in f"{way:x}"): count for way, count in met.items()})
