# SPDX-License-Identifier: MIT
"""Iterators whose programs make, change and delete the storage of the sockets that they are shown."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    asm,
    call,
    exit_,
    jeq,
    label,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    neg,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    stdw,
    stxdw,
)
from harness.guest.bpf.attrs import IterTaskInfo
from harness.guest.bpf.btf_builder import BTF_INT_SIGNED, BtfBuilder
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.tracing import load_iterator


@pytest.fixture
def storages() -> Iterator[tuple[Map, Map]]:
    """Two storage maps of sockets."""
    b = BtfBuilder()
    key, value = b.integer("int", 4, encoding=BTF_INT_SIGNED), b.integer("long", 8)
    with b.load() as types:

        def new() -> Map:
            return Map.create(
                uapi.BPF_MAP_TYPE_SK_STORAGE,
                4,
                8,
                0,
                flags=uapi.BPF_F_NO_PREALLOC,
                btf=types,
                btf_key_type_id=key,
                btf_value_type_id=value,
            )

        with new() as one, new() as other:
            yield one, other


@pytest.fixture
def listeners() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two TCP sockets that listen."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        yield one, other


Sockets = tuple[socket.socket, socket.socket]


def program(target: str, *items: Item) -> Prog:
    """An iterator program that does this; r6 is its context."""
    return load_iterator(target, asm(mov(r6, r1), *items, label("out"), mov(r0, 0), exit_()))


def get(storage: Map, flags: int = 0) -> Item:
    """r0 = the storage of the socket in r2; without any the program ends."""
    return [
        ld_map_fd(r1, storage),
        mov(r3, 0),
        mov(r4, flags),
        call(uapi.BPF_FUNC_sk_storage_get),
        jeq(r0, 0, "out"),
    ]


def values(storage: Map, sockets: Sockets) -> list[int | None]:
    """What the sockets have in this map, None for nothing."""
    found = (storage.lookup(each.fileno()) for each in sockets)
    return [None if value is None else int.from_bytes(value, "little", signed=True) for value in found]


def test_an_iterator_over_files_makes_storage_that_one_over_sockets_changes(
    storages: tuple[Map, Map], listeners: Sockets
) -> None:
    """MTRACE-ITER-002, -003, upstream prog_tests/bpf_iter.c: bpf_sk_storage_get: and makes none where there is none."""
    storage, untouched = storages
    at = btf.vmlinux().offset
    first, second = (each.fileno() for each in listeners)
    storage[first] = 1
    untouched[first] = 1
    note_the_process = program(
        "task_file",
        ldxdw(r7, r6, 8),
        jeq(r7, 0, "out"),
        ldxdw(r1, r6, 24),
        jeq(r1, 0, "out"),
        call(uapi.BPF_FUNC_sock_from_file),
        jeq(r0, 0, "out"),
        ldxdw(r2, r0, at("socket", "sk")),
        get(storage, uapi.BPF_LOCAL_STORAGE_GET_F_CREATE),
        ldxw(r1, r7, at("task_struct", "tgid")),
        stxdw(r0, 0, r1),
    )
    negate = program(
        "tcp", ldxdw(r2, r6, 8), jeq(r2, 0, "out"), get(storage), ldxdw(r1, r0), neg(r1), stxdw(r0, 0, r1)
    )
    us = os.getpid()
    with note_the_process, negate:
        with Link.iterator(note_the_process, info=IterTaskInfo(pid=us)) as files:
            assert files.read_iterator() == b""
        assert values(storage, listeners) == [us, us]

        storage.delete(second)
        with Link.iterator(negate) as sockets:
            assert sockets.read_iterator() == b""
        assert values(storage, listeners) == [-us, None]
    assert values(untouched, listeners) == [1, None]


def test_an_iterator_deletes_the_storage_that_it_is_shown(
    storages: tuple[Map, Map], listeners: Sockets
) -> None:
    """MTRACE-ITER-001, -007, upstream prog_tests/bpf_iter.c: bpf_sk_storage_delete: each element, of this map only."""
    storage, untouched = storages
    for map in storages:
        for each in listeners:
            map[each.fileno()] = 7
    delete = program(
        "bpf_sk_storage_map",
        ldxdw(r2, r6, 16),
        jeq(r2, 0, "out"),
        ld_map_fd(r1, storage),
        call(uapi.BPF_FUNC_sk_storage_delete),
    )
    with delete, Link.iterator(delete, map=storage) as link:
        assert link.read_iterator() == b""
    assert values(storage, listeners) == [None, None]
    assert values(untouched, listeners) == [7, 7]


def test_an_iterator_that_writes_past_the_storage_cannot_be_attached(storages: tuple[Map, Map]) -> None:
    """MTRACE-ITER-001, upstream prog_tests/bpf_iter.c: bpf_sk_storage_map."""

    def writer(offset: int) -> Prog:
        return program("bpf_sk_storage_map", ldxdw(r7, r6, 24), jeq(r7, 0, "out"), stdw(r7, offset, 1))

    with writer(0) as whole, writer(8) as past:
        Link.iterator(whole, map=storages[0]).close()
        with refused(errno.EACCES):
            Link.iterator(past, map=storages[0])
