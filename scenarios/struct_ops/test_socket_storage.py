# SPDX-License-Identifier: MIT
"""A congestion control that keeps what it knows of a socket in socket storage."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
    asm,
    atomic_add,
    call,
    exit_,
    jeq,
    label,
    ld_map_fd,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    stxdw,
)
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.struct_ops import load_struct_ops_prog
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, TYPE
from scenarios.struct_ops.conftest import NewOps

pytestmark = [pytest.mark.requires("struct_ops")]

BYTES = 64 * 1024


@pytest.fixture
def storage() -> Iterator[Map]:
    """Two words for each socket: when it was given the algorithm, in coarse nanoseconds, and calls of cong_avoid."""
    b = BtfBuilder()
    key, word = b.integer("int", 4), b.integer("u64", 8)
    value = b.struct("value", 16, [("since", word, 0), ("calls", word, 8)])
    with (
        b.load() as types,
        Map.create(
            uapi.BPF_MAP_TYPE_SK_STORAGE,
            4,
            16,
            0,
            flags=uapi.BPF_F_NO_PREALLOC,
            btf=types,
            btf_key_type_id=key,
            btf_value_type_id=value,
        ) as storage,
    ):
        yield storage


def beginning(storage: Map) -> Code:
    """init: the socket gets its element."""
    return asm(
        ldxdw(r2, r1),
        ld_map_fd(r1, storage),
        mov(r3, 0),
        mov(r4, uapi.BPF_LOCAL_STORAGE_GET_F_CREATE),
        call(uapi.BPF_FUNC_sk_storage_get),
        jeq(r0, 0, "out"),
        mov(r6, r0),
        call(uapi.BPF_FUNC_ktime_get_coarse_ns),
        stxdw(r6, 0, r0),
        label("out"),
        mov(r0, 0),
        exit_(),
    )


def counting(storage: Map) -> Code:
    """cong_avoid: counts in the socket's element."""
    return asm(
        ldxdw(r2, r1),
        ld_map_fd(r1, storage),
        mov(r3, 0),
        mov(r4, 0),
        call(uapi.BPF_FUNC_sk_storage_get),
        jeq(r0, 0, "out"),
        mov(r1, 1),
        atomic_add(r0, 8, r1),
        label("out"),
        mov(r0, 0),
        exit_(),
    )


def ending(storage: Map) -> Code:
    """release: the element goes."""
    return asm(
        ldxdw(r2, r1),
        ld_map_fd(r1, storage),
        call(uapi.BPF_FUNC_sk_storage_delete),
        mov(r0, 0),
        exit_(),
    )


def test_what_an_algorithm_knows_of_a_socket_may_stand_in_socket_storage(
    veth: VethPair, new_ops: NewOps, storage: Map
) -> None:
    """STOPS-PROG-035, STOPS-TCP-013: made by init, with the time, changed while data flows, deleted by release."""
    ten = asm(mov(r0, 10), exit_())
    codes = {
        "init": beginning(storage),
        "cong_avoid": counting(storage),
        "release": ending(storage),
        "ssthresh": ten,
        "undo_cwnd": ten,
    }
    progs = {name: load_struct_ops_prog(TYPE, name, code) for name, code in codes.items()}
    ops = new_ops()
    ops.update({**progs, "name": NAME})
    for prog in progs.values():
        prog.close()
    with tcp.connect(veth, congestion=NAME) as pair:
        client = pair.client.fileno()
        pair.transfer(BYTES)
        kept = storage.lookup(client)
        assert kept is not None
        since, calls = struct.unpack("=2Q", kept)
        assert since > 0
        assert calls > 0
        tcp.set_congestion(pair.client, "reno")
        assert storage.lookup(client) is None
    ops.delete()
