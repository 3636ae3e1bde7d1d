# SPDX-License-Identifier: MIT
"""A program that gives its socket to another algorithm does so once, and not to every algorithm."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
    add,
    asm,
    call,
    exit_,
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
    r6,
    r10,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.struct_ops import load_struct_ops_prog
from harness.guest.bpf.syscall import ENOTSUPP
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import TYPE, Algorithm, inuse, seen
from scenarios.struct_ops.conftest import NewOps

pytestmark = [pytest.mark.requires("struct_ops")]

ATTEMPTS = ("cdg", "kr_next")


def attempting(answers: Map) -> Code:
    """A program for init that tries the ATTEMPTS one after the other; `answers` keeps what each one returned."""
    items = []
    for number, name in enumerate(ATTEMPTS):
        items += [
            ldxdw(r1, r6),
            mov(r2, socket.IPPROTO_TCP),
            mov(r3, socket.TCP_CONGESTION),
            *ld_imm64(r4, int.from_bytes(name.encode().ljust(8, b"\0"), "little")),
            stxdw(r10, -8, r4),
            mov(r4, r10),
            add(r4, -8),
            mov(r5, len(name)),
            call(uapi.BPF_FUNC_setsockopt),
            *ld_map_value(r1, answers, 8 * number),
            stxdw(r1, 0, r0),
        ]
    return asm(mov(r6, r1), *items, mov(r0, 0), exit_())


def answered(answers: Map) -> tuple[int, ...]:
    raw = answers.lookup(0)
    assert raw is not None
    return struct.unpack(f"={len(ATTEMPTS)}q", raw)


def test_algorithm_that_was_switched_to_cannot_switch_on(
    veth: VethPair, idle: Algorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-020, -012, -013: EBUSY in the second init, ENOTSUPP for cdg in both, and the first switch stands."""
    first, following = new_ops(), new_ops()
    size = 8 * len(ATTEMPTS)
    with (
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, size) as of_first,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, size) as of_next,
    ):
        for ops, name, answers in ((first, "kr_first", of_first), (following, "kr_next", of_next)):
            with load_struct_ops_prog(TYPE, "init", attempting(answers)) as init:
                ops.update({**idle.members(name), "init": init})
        with tcp.connect(veth, congestion="kr_first") as pair:
            assert pair.congestion == "kr_next"
            assert answered(of_first) == (-ENOTSUPP, 0)
            assert answered(of_next) == (-ENOTSUPP, -errno.EBUSY)
            assert (seen(first), seen(following)) == (inuse(1), inuse(2))
            pair.transfer(16 * 1024)
            assert idle.count("cong_avoid") > 0
