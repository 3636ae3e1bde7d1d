# SPDX-License-Identifier: MIT
"""A BPF object held by a file descriptor: closing, ids, pins; the base of Prog, Map, Link and BtfObject."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import ClassVar, Self

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import GetId, Obj
from harness.guest.bpf.syscall import BpfError, bpf, system_call


class Descriptor:
    """Owns `fd`; closes it when the context ends, by `close`, or when collected, whichever comes first."""

    _GET_FD: ClassVar[int]
    _GET_NEXT: ClassVar[int]

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor. Raises ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor has been closed (or handed over by `release`)."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor; again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def release(self) -> int:
        """Give the descriptor away: the caller closes it from now on."""
        fd, self._fd = self.fd, -1
        return fd

    def dup(self) -> Self:
        """Another holder of the same kernel object, with a descriptor of its own."""
        return type(self)(os.dup(self.fd))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    @classmethod
    def from_id(cls, id: int, *, open_flags: int = 0) -> Self:
        """A new descriptor of the object with this id. Raises BpfError (ENOENT: there is none)."""
        return cls(bpf(cls._GET_FD, GetId(id=id, open_flags=open_flags)))

    @classmethod
    def ids(cls) -> Iterator[int]:
        """The ids of all such objects in the kernel, ascending. Raises BpfError (EPERM)."""
        return ids(cls._GET_NEXT)

    def pin(self, path: str | os.PathLike[str], *, flags: int = 0) -> None:
        """Pin under `path` in a bpf file system. Raises BpfError."""
        attr = Obj(bpf_fd=self.fd, file_flags=flags)
        attr.point("pathname", ctypes.create_string_buffer(os.fsencode(path)))
        bpf(uapi.BPF_OBJ_PIN, attr)

    @classmethod
    def get(cls, path: str | os.PathLike[str], *, flags: int = 0) -> Self:
        """Reopen what is pinned under `path`; the kernel does not check that it is of this class.

        Raises BpfError.
        """
        attr = Obj(file_flags=flags)
        attr.point("pathname", ctypes.create_string_buffer(os.fsencode(path)))
        return cls(bpf(uapi.BPF_OBJ_GET, attr))


def ids(command: int) -> Iterator[int]:
    """The ids that one of the BPF_*_GET_NEXT_ID commands walks over, ascending. Raises BpfError (EPERM)."""
    attr = GetId()
    at, size = ctypes.byref(attr), ctypes.sizeof(attr)
    while (error := system_call(command, at, size)) == 0:
        yield attr.next_id
        attr.start_id = attr.next_id
    if error != errno.ENOENT:
        raise BpfError(error, uapi.name_of("cmd", command) or f"bpf command {command}", attr.describe())


def fd_of(holder: Descriptor | int | None) -> int:
    """The descriptor of an object or the number itself; 0 for None."""
    return holder.fd if isinstance(holder, Descriptor) else holder or 0
