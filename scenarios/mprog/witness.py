# SPDX-License-Identifier: MIT
"""Programs that write down what a packet looks like when it meets them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    jeq,
    label,
    ld_map_fd,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r10,
    stdw,
    stw,
    stxw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from scenarios.conftest import LoadSchedCls

# struct __sk_buff, include/uapi/linux/bpf.h
PKT_TYPE, MARK, PRIORITY = 4, 8, 32

# The longest beginning of interest ends with the type of an ICMPv6 message, the shortest frame is an ARP one.
LONG, SHORT = 55, 42
NOTE = struct.Struct("=IIII56s")


@dataclass(frozen=True)
class Sight:
    """A packet as program `number` saw it: `packet_type` is PACKET_HOST (0) and so on, `head` its beginning."""

    number: int
    packet_type: int
    mark: int
    priority: int
    head: bytes

    @property
    def ethertype(self) -> int:
        """The protocol that the link-layer header names."""
        return int.from_bytes(self.head[12:14])

    @property
    def next_header(self) -> int:
        """The protocol that an IPv6 header names."""
        return self.head[20]

    @property
    def icmp6_type(self) -> int:
        """The type of an ICMPv6 message without extension headers."""
        return self.head[54]


class Witness:
    """Makes the programs; they write to one queue of 32 notes."""

    def __init__(self, notes: Map, load: LoadSchedCls) -> None:
        self._notes = notes
        self._load = load

    def prog(self, number: int, *then: Item, verdict: int = uapi.TCX_NEXT) -> Prog:
        """A program that notes what it sees, does `then` (the context is in r6), and returns `verdict`."""
        start = -NOTE.size
        fields = [
            step
            for place, field in enumerate((PKT_TYPE, MARK, PRIORITY), 1)
            for step in (ldxw(r2, r6, field), stxw(r10, start + 4 * place, r2))
        ]
        return self._load(
            mov(r6, r1),
            *(stdw(r10, start + place, 0) for place in range(0, NOTE.size, 8)),
            stw(r10, start, number),
            *fields,
            *self._head(start + 16, LONG),
            jeq(r0, 0, "noted"),
            *self._head(start + 16, SHORT),
            label("noted"),
            ld_map_fd(r1, self._notes),
            mov(r2, r10),
            add(r2, start),
            mov(r3, 0),
            call(uapi.BPF_FUNC_map_push_elem),
            *then,
            verdict=verdict,
            name=f"witness_{number}",
        )

    def _head(self, at: int, length: int) -> tuple[Item, ...]:
        load = (mov(r1, r6), mov(r2, 0), mov(r3, r10), add(r3, at), mov(r4, length))
        return (*load, call(uapi.BPF_FUNC_skb_load_bytes))

    def sights(self) -> list[Sight]:
        """What was noted since the last call, oldest first."""
        found = []
        while (note := self._notes.lookup_and_delete()) is not None:
            found.append(Sight(*NOTE.unpack(note)))
        return found


@contextmanager
def witnesses(load: LoadSchedCls) -> Iterator[Witness]:
    """A `Witness` whose notes go with the block."""
    with Map.create(uapi.BPF_MAP_TYPE_QUEUE, 0, NOTE.size, 32, name="witness") as notes:
        yield Witness(notes, load)
