# SPDX-License-Identifier: MIT
"""Local storage that owns objects of kr_kptr: maps whose keys are tasks, sockets, inodes and cgroups of either version.

The programs are LSM programs, run by a look of user space at the owner: an ioctl or socket option that nobody knows.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    call_kfunc,
    exit_,
    jeq,
    jne,
    label,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r9,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.kptr.owning_map import OWNED, VALUE_SIZE, owning_map

UNKNOWN = 0x4B52
"""The number of the ioctl and of the socket option."""

HIERARCHY = "kr_owner"
"""The name of the hierarchy of version 1."""


def _inode_of_file() -> Item:
    return [ldxdw(r8, r6, 0), ldxdw(r8, r8, btf.vmlinux().offset("file", "f_inode"))]


def _current_task() -> Item:
    return [call(uapi.BPF_FUNC_get_current_task_btf), mov(r8, r0)]


def _current_cgroup() -> Item:
    return [
        _current_task(),
        ldxdw(r8, r8, btf.vmlinux().offset("task_struct", "cgroups")),
        ldxdw(r8, r8, btf.vmlinux().offset("css_set", "dfl_cgrp")),
    ]


def _current_cgroup1() -> Item:
    return [
        call(uapi.BPF_FUNC_get_current_task_btf),
        mov(r1, r0),
        mov(r2, _hierarchy()),
        call_kfunc(btf.vmlinux().func("bpf_task_get_cgroup1")),
        mov(r8, r0),
        jeq(r8, 0, "out"),
    ]


def _hierarchy() -> int:
    """The number of the mounted hierarchy of version 1. Raises StopIteration if there is none."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(int(line.split(":")[0]) for line in lines if line.split(":")[1] == f"name={HIERARCHY}")


def _sock_of_socket() -> Item:
    return [ldxdw(r8, r6, 0), ldxdw(r8, r8, btf.vmlinux().offset("socket", "sk")), jeq(r8, 0, "out")]


def look_at_file(fd: int) -> None:
    """Run the programs at the ioctl: in this task, in its cgroup, on the file's inode."""
    with suppress(OSError):
        fcntl.ioctl(fd, UNKNOWN)


def look_at_socket(fd: int) -> None:
    """Run the programs at the socket option."""
    with socket.socket(fileno=os.dup(fd)) as same, suppress(OSError):
        same.getsockopt(socket.SOL_SOCKET, UNKNOWN)


@dataclass(frozen=True)
class Kind:
    """One of the four local storages, and a kind of owner.

    `owner` sets r8 from r6, the program's context; `look` runs the programs, given the descriptor that is the key;
    `release` is the kfunc for the owner, if `owner` takes a reference.
    """

    map_type: int
    get: int
    delete: int
    owner: Callable[[], Item]
    hook: str = "file_ioctl"
    argument: int = 1
    look: Callable[[int], None] = look_at_file
    release: str = ""

    def let_go(self) -> Item:
        """Release the owner in r8, which may be 0 if `owner` takes a reference."""
        if not self.release:
            return []
        return [jeq(r8, 0, 2), mov(r1, r8), call_kfunc(btf.vmlinux().func(self.release))]


KINDS = {
    "task": Kind(
        uapi.BPF_MAP_TYPE_TASK_STORAGE,
        uapi.BPF_FUNC_task_storage_get,
        uapi.BPF_FUNC_task_storage_delete,
        _current_task,
    ),
    "socket": Kind(
        uapi.BPF_MAP_TYPE_SK_STORAGE,
        uapi.BPF_FUNC_sk_storage_get,
        uapi.BPF_FUNC_sk_storage_delete,
        _sock_of_socket,
        "socket_getsockopt",
        2,
        look_at_socket,
    ),
    "inode": Kind(
        uapi.BPF_MAP_TYPE_INODE_STORAGE,
        uapi.BPF_FUNC_inode_storage_get,
        uapi.BPF_FUNC_inode_storage_delete,
        _inode_of_file,
    ),
    "cgroup": Kind(
        uapi.BPF_MAP_TYPE_CGRP_STORAGE,
        uapi.BPF_FUNC_cgrp_storage_get,
        uapi.BPF_FUNC_cgrp_storage_delete,
        _current_cgroup,
    ),
    "cgroup1": Kind(
        uapi.BPF_MAP_TYPE_CGRP_STORAGE,
        uapi.BPF_FUNC_cgrp_storage_get,
        uapi.BPF_FUNC_cgrp_storage_delete,
        _current_cgroup1,
        release="bpf_cgroup_release",
    ),
}
EACH_TYPE = ("task", "socket", "inode", "cgroup")
"""A kind for each type of map."""
CGROUP1 = pytest.param("cgroup1", marks=pytest.mark.requires("kfunc:bpf_task_get_cgroup1"))
EACH_OWNER = (*EACH_TYPE, CGROUP1)


def own_cgroup() -> Path:
    """The directory of this process's cgroup of version 2."""
    return Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip())


@contextmanager
def cgroup1(tmp_path: Path) -> Iterator[Path]:
    """The root of a hierarchy of version 1, without a controller; mounted as long as the context lasts."""
    root = tmp_path / "hierarchy"
    root.mkdir()
    subprocess.run(["mount", "-t", "cgroup", "-o", f"none,name={HIERARCHY}", "none", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


@contextmanager
def _entered(group: Path) -> Iterator[int]:
    """A descriptor of a new cgroup of a hierarchy, which this process is in; otherwise it is in the root."""
    group.mkdir()
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    (group / "cgroup.procs").write_text("0")
    try:
        yield fd
    finally:
        (group.parent / "cgroup.procs").write_text("0")
        os.close(fd)
        group.rmdir()


@contextmanager
def some_owner(kind: str, tmp_path: Path) -> Iterator[int]:
    """A descriptor of this task, of this task's cgroup of either version, of a new socket or of a new file."""
    if kind == "socket":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
            yield some.fileno()
        return
    if kind == "cgroup1":
        with cgroup1(tmp_path) as root, _entered(root / "owner") as fd:
            yield fd
        return
    if kind == "task":
        fd = os.pidfd_open(os.getpid())
    elif kind == "cgroup":
        fd = os.open(own_cgroup(), os.O_RDONLY | os.O_DIRECTORY)
    else:
        fd = os.open(tmp_path / "owner", os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass
class Storage:
    """A storage map whose values own objects of kr_kptr, and programs on it; its keys are descriptors of owners."""

    kind: Kind
    flags: int = 0
    kfuncs: Kfuncs = field(default_factory=Kfuncs)

    def __post_init__(self) -> None:
        flags = self.flags | uapi.BPF_F_NO_PREALLOC
        self.map: Map = owning_map("kr_obj", self.kind.map_type, flags=flags, max_entries=0)
        self.notes = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1)

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.map.close()
        self.notes.close()

    def get(self, *, create: bool = False) -> Item:
        """r0 = the owner's value, or NULL."""
        return [
            ld_map_fd(r1, self.map),
            mov(r2, r8),
            mov(r3, 0),
            mov(r4, uapi.BPF_LOCAL_STORAGE_GET_F_CREATE if create else 0),
            call(self.kind.get),
        ]

    def value(self, *, create: bool = False) -> Item:
        """r9 = the owner's value; without one, the program ends."""
        return [self.get(create=create), jeq(r0, 0, "out"), mov(r9, r0)]

    def find(self, id: int) -> Item:
        """r7 = a new reference to the static object."""
        return [mov(r1, id), self.kfuncs.call("kr_obj_find"), jeq(r0, 0, "out"), mov(r7, r0)]

    def exchange(self, incoming: Item) -> Item:
        """Swap the value's object for what `incoming` sets r2 to, and release what comes out."""
        return [
            incoming,
            mov(r1, r9),
            add(r1, OWNED),
            call(uapi.BPF_FUNC_kptr_xchg),
            jeq(r0, 0, 2),
            mov(r1, r0),
            self.kfuncs.call("kr_obj_release"),
        ]

    def delete(self) -> Item:
        """Delete the owner's value."""
        return [ld_map_fd(r1, self.map), mov(r2, r8), call(self.kind.delete)]

    def load(self, *items: Item, at: Kind | None = None, owner: Item | None = None, flags: int = 0) -> Prog:
        """Load a program that does this for the owner that is looked at, in r8. Raises BpfError.

        `at` is the kind whose look runs it, this storage's if left out; `owner` sets r8 in another way, and takes no
        reference.
        """
        look = at or self.kind
        code = asm(
            mov(r6, r1),
            mov(r8, 0),
            ldxw(r7, r6, 8 * look.argument),
            jne(r7, UNKNOWN, "out"),
            look.owner() if owner is None else owner,
            *items,
            label("out"),
            look.let_go() if owner is None else [],
            mov(r0, 0),
            exit_(),
        )
        return Prog.load(
            code,
            uapi.BPF_PROG_TYPE_LSM,
            expected_attach_type=uapi.BPF_LSM_MAC,
            attach_btf_id=btf.vmlinux().func(f"bpf_lsm_{look.hook}"),
            fd_array=[0, self.kfuncs.btf.object],
            flags=flags,
        )

    def run(self, owner: int, *items: Item) -> None:
        """Do this once for an owner. Raises BpfError."""
        with self.load(*items) as prog, Link.raw_tracepoint(prog):
            self.kind.look(owner)

    def put(self, owner: int, id: int) -> None:
        """Put a new reference to a static object into the owner's value, which is made if need be. Raises BpfError."""
        self.run(owner, self.value(create=True), self.find(id), self.exchange(mov(r2, r7)))


VALUE = bytes(VALUE_SIZE)
