# SPDX-License-Identifier: MIT
"""Congestion controls made of BPF programs that count their calls, so that a scenario sees whose code ran."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
    add,
    asm,
    atomic_add,
    call,
    exit_,
    fetch_add,
    ld_imm64,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r10,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import Filling, StructOps, load_struct_ops_prog

TYPE = "tcp_congestion_ops"
NAME = "kr_algorithm"
MEMBERS = ("init", "release", "ssthresh", "cong_avoid", "undo_cwnd")

# What the counting programs keep behind their MEMBERS' counts, in 64-bit words.
RENO_EXTRA = ("acked", "strangers")
TICKETS = tuple(f"{member}_ticket" for member in MEMBERS)


@dataclass(frozen=True)
class Algorithm:
    """Programs by member, and the memory in which they count; it outlives the programs' descriptors."""

    progs: Mapping[str, Prog]
    memory: Map
    words: tuple[str, ...]

    def members(self, name: str = NAME) -> dict[str, Filling]:
        """What a struct_ops map needs to hold to be this algorithm."""
        return {**self.progs, "name": name}

    def count(self, word: str) -> int:
        """How often a member ran, or another of `words`."""
        raw = self.memory.lookup(0)
        assert raw is not None
        return int(struct.unpack_from(f"={len(self.words)}Q", raw)[self.words.index(word)])

    def close_programs(self) -> None:
        """Close the programs' descriptors: from now on only maps hold them."""
        for prog in self.progs.values():
            prog.close()

    def close(self) -> None:
        """Close all descriptors."""
        self.close_programs()
        self.memory.close()


def load_reno() -> Algorithm:
    """reno.bpf.c: real congestion control with its own state in the socket. Raises BpfError."""
    with Object.open(Path(__file__).with_name("reno.bpf.o")) as reno:
        reno.load()
        return Algorithm({name: reno.prog(name) for name in MEMBERS}, reno.map(".bss"), MEMBERS + RENO_EXTRA)


def load_idle(clock: Map) -> Algorithm:
    """Programs that leave the window alone; each call draws a ticket from `clock`, which orders the calls of
    all algorithms that share it. Raises BpfError.
    """
    words = MEMBERS + TICKETS
    memory = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8 * len(words), 1)
    return Algorithm(
        {name: load_struct_ops_prog(TYPE, name, _counting(name, words, memory, clock)) for name in MEMBERS},
        memory,
        words,
    )


def _counting(member: str, words: tuple[str, ...], memory: Map, clock: Map) -> Code:
    return asm(
        mov(r2, 1),
        ld_map_value(r1, memory, 8 * words.index(member)),
        atomic_add(r1, 0, r2),
        ld_map_value(r1, clock),
        fetch_add(r1, 0, r2),
        ld_map_value(r1, memory, 8 * words.index(f"{member}_ticket")),
        stxdw(r1, 0, r2),
        mov(r0, 10),
        exit_(),
    )


def switching_to(name: str) -> Code:
    """A program for init that gives its socket to another algorithm by bpf_setsockopt."""
    text = int.from_bytes(name.encode().ljust(8, b"\0"), "little")
    return asm(
        ldxdw(r1, r1),
        mov(r2, socket.IPPROTO_TCP),
        mov(r3, socket.TCP_CONGESTION),
        ld_imm64(r4, text),
        stxdw(r10, -8, r4),
        mov(r4, r10),
        add(r4, -8),
        mov(r5, len(name)),
        call(uapi.BPF_FUNC_setsockopt),
        mov(r0, 0),
        exit_(),
    )


@dataclass(frozen=True)
class Seen:
    """What a look-up shows in the head of a struct_ops value."""

    state: int
    refcnt: int


def seen(ops: StructOps) -> Seen:
    """State and references of a map."""
    return Seen(ops.state(), ops.refcnt())


def seen_by_id(map_id: int) -> Seen:
    """The same, through a descriptor that is closed again. Raises BpfError (ENOENT: freed)."""
    with StructOps.of(Map.from_id(map_id), TYPE) as ops:
        return seen(ops)


def inuse(refcnt: int) -> Seen:
    """A registered plain map with so many references, the registration's own included."""
    return Seen(uapi.BPF_STRUCT_OPS_STATE_INUSE, refcnt)


def tobefree(refcnt: int) -> Seen:
    """An unregistered plain map."""
    return Seen(uapi.BPF_STRUCT_OPS_STATE_TOBEFREE, refcnt)


def ready(refcnt: int) -> Seen:
    """A link map; each link and each socket is a reference."""
    return Seen(uapi.BPF_STRUCT_OPS_STATE_READY, refcnt)
