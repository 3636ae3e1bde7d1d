# SPDX-License-Identifier: MIT
"""Objects in local storage whose owner goes: a closed socket, a task that ended, a removed file or cgroup."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, mov, r2, r7
from harness.guest.bpf.link import Link
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE
from scenarios.kptr.storage import EACH_OWNER, KINDS, Storage, cgroup1, look_at_file, own_cgroup

pytestmark = pytest.mark.requires("storage_kptr")
OBJECT = 1


@contextmanager
def owner_that_goes(kind: str, tmp_path: Path, storage: Storage, program: Item) -> Iterator[None]:
    """Something that goes with the context; `program` is run for it meanwhile."""
    if kind == "socket":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
            storage.run(some.fileno(), program)
            yield
    elif kind == "inode":
        path = tmp_path / "owner"
        with path.open("wb") as file:
            storage.run(file.fileno(), program)
            path.unlink()
            yield
    else:
        with ExitStack() as stack:
            home = None
            if kind != "task":
                root = stack.enter_context(cgroup1(tmp_path)) if kind == "cgroup1" else own_cgroup()
                home = stack.enter_context(directory(root / "kr_owner"))
            with storage.load(program) as prog, Link.raw_tracepoint(prog), child_that_looks(home):
                yield


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    path.mkdir()
    yield path
    path.rmdir()


@contextmanager
def child_that_looks(cgroup: Path | None) -> Iterator[None]:
    """A process, in a cgroup of its own if one is given, that runs the programs once and ends with the context."""
    ready, until = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if cgroup:
            (cgroup / "cgroup.procs").write_text("0")
        os.close(until[1])
        look_at_file(until[0])
        os.write(ready[1], b"!")
        os.read(until[0], 1)
        os._exit(0)
    os.close(until[0])
    os.read(ready[0], 1)
    try:
        yield
    finally:
        for end in (*ready, until[1]):
            os.close(end)
        os.waitpid(child, 0)


@pytest.mark.parametrize("kind", EACH_OWNER)
def test_owner_that_goes_releases_its_object_once(kr_kptr: KrKptr, kind: str, tmp_path: Path) -> None:
    """KPTR-FREE-016, KPTR-LAW-001: not before it goes, and the map has nothing left to release."""
    with Storage(KINDS[kind]) as storage:
        calls = kr_kptr.count("dtor_calls")
        put: Item = [storage.value(create=True), storage.find(OBJECT), storage.exchange(mov(r2, r7))]

        with owner_that_goes(kind, tmp_path, storage, put):
            assert (kr_kptr.static_refs(OBJECT), kr_kptr.count("dtor_calls")) == (1, calls)

        wait_until(lambda: kr_kptr.static_refs(OBJECT) == 0, timeout=2, what="the owner to go")
    assert kr_kptr.count("dtor_calls") == calls + 1


def test_cloned_storage_owns_nothing(kr_kptr: KrKptr) -> None:
    """KPTR-LAW-001, KPTR-USER-002: an accepted socket has the listener's data, and NULL for the pointer."""
    data = bytearray(b"\x11" * VALUE_SIZE)
    data[SEEN : SEEN + 8] = data[OWNED : OWNED + 8] = bytes(8)
    with (
        Storage(KINDS["socket"], flags=uapi.BPF_F_CLONE) as storage,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        storage.map.update(listener.fileno(), data)
        storage.put(listener.fileno(), OBJECT)
        calls = kr_kptr.count("dtor_calls")

        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert storage.map.lookup(accepted.fileno()) == bytes(data)
                storage.run(accepted.fileno(), storage.value(), storage.exchange(mov(r2, 0)))

        assert (kr_kptr.static_refs(OBJECT), kr_kptr.count("released")) == (1, 0)
        assert kr_kptr.count("dtor_calls") == calls
