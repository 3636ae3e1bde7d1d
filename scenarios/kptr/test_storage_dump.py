# SPDX-License-Identifier: MIT
"""Socket storage as socket diagnostics report it (`ss --bpf-maps`): the pointers in it are zeros there, too."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from harness.guest import modules
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE
from scenarios.kptr.storage import KINDS, Storage

# include/uapi/linux/sock_diag.h, inet_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_DONE = 3
INET_DIAG_REQ_SK_BPF_STORAGES, INET_DIAG_SK_BPF_STORAGES = 2, 20
SK_DIAG_BPF_STORAGE_REQ_MAP_FD, SK_DIAG_BPF_STORAGE, SK_DIAG_BPF_STORAGE_MAP_VALUE = 1, 1, 3
INET_DIAG_MSG_SIZE = 72


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", len(payload) + 4, kind) + payload.ljust(-(-len(payload) // 4) * 4, b"\0")


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        size, kind = struct.unpack_from("=HH", raw, at)
        yield kind & 0x3FFF, raw[at + 4 : at + size]
        at += -(-size // 4) * 4


def nested(raw: bytes, *path: int) -> Iterator[bytes]:
    """The payloads of the attributes that this path leads to."""
    for kind, payload in attributes(raw):
        if kind == path[0]:
            if path[1:]:
                yield from nested(payload, *path[1:])
            else:
                yield payload


def reported(storage: Storage) -> list[bytes]:
    """The values of the map for all TCP sockets."""
    request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + bytes(48)
    request += attribute(
        INET_DIAG_REQ_SK_BPF_STORAGES,
        attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, struct.pack("=I", storage.map.fd)),
    )
    header = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
    values: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
        diag.send(header + request)
        while True:
            answer = diag.recv(65536)
            while answer:
                size, kind = struct.unpack_from("=IH", answer)
                if kind == NLMSG_DONE:
                    return values
                assert kind == SOCK_DIAG_BY_FAMILY, answer[:size]
                values += nested(
                    answer[16 + INET_DIAG_MSG_SIZE : size],
                    INET_DIAG_SK_BPF_STORAGES,
                    SK_DIAG_BPF_STORAGE,
                    SK_DIAG_BPF_STORAGE_MAP_VALUE,
                )
                answer = answer[-(-size // 4) * 4 :]


def leave_bytes_in_free_memory() -> None:
    """Fill buffers of the size of a dump's with a byte, and free them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        for size in (3000, 7000, 15000, 30000):
            for _ in range(3):
                ours.send(b"\xee" * size)
            for _ in range(3):
                theirs.recv(size)


@pytest.mark.known_issue(
    "SK-STORAGE-DUMP-UNCLEARED",
    reason="the place of a pointer keeps what was in the memory before",
    spared=("7.3.4",),
    shown_by="!CONFIG_INIT_ON_ALLOC_DEFAULT_ON",
)
@pytest.mark.requires("storage_kptr")
def test_dump_of_socket_storage_shows_zeros_for_pointers(kr_kptr: KrKptr) -> None:
    """KPTR-USER-001, KPTR-LAW-004: neither the address nor what was in the kernel's memory before.

    Where the allocator clears all memory (init_on_alloc, as in Debian's kernels), or gives out fresh pages, a kernel
    that does not (net/core/bpf_sk_storage.c:diag_get) is not seen to.
    """
    modules.modprobe("tcp_diag")
    expected = bytearray(b"\x11" * VALUE_SIZE)
    expected[SEEN : SEEN + 8] = expected[OWNED : OWNED + 8] = bytes(8)
    with Storage(KINDS["socket"]) as storage, socket.create_server(("127.0.0.1", 0)) as some:
        storage.map.update(some.fileno(), b"\x11" * VALUE_SIZE)
        storage.put(some.fileno(), 1)

        shown = []
        for _ in range(20):
            leave_bytes_in_free_memory()
            shown += reported(storage)

        assert shown == [bytes(expected)] * 20
