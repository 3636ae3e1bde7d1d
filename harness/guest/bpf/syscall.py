# SPDX-License-Identifier: MIT
"""The system call bpf(2): any command, any bytes, and an error that tells everything the kernel said."""

from __future__ import annotations

import ctypes
import errno as errno_numbers
import functools
import platform
import re
from typing import Any, Self

from harness.errors import KernrigError
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import ATTR_SIZE, Attr

# include/linux/errno.h: an errno the kernel keeps to itself but that bpf(2) lets out; not EOPNOTSUPP (95)
ENOTSUPP = 524

_SYSCALL_NUMBER = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "s390x": 351,
    "ppc64le": 361,
}


class BpfError(OSError):
    """bpf(2), or libbpf, refused: `command`, `errno`, `attributes` (those that are set) and the kernel's
    `log`.
    """

    def __init__(self, errno: int, command: str, attributes: str = "", log: str = "") -> None:
        super().__init__(errno, errno_name(errno))
        self.command = command
        self.attributes = attributes
        self.log = log

    @property
    def errno_name(self) -> str:
        """The errno's symbolic name, such as "EINVAL" or "ENOTSUPP"."""
        return errno_name(self.errno or 0)

    def __str__(self) -> str:
        text = f"{self.command}: {self.errno_name} ({self.errno})"
        if self.attributes:
            text += f"\n  attributes: {self.attributes}"
        if self.log:
            text += "\n  log:\n" + "\n".join(f"    {line}" for line in self.log.rstrip().splitlines())
        return text


def errno_name(number: int) -> str:
    """ "ENOENT" for 2, "ENOTSUPP" for 524, "errno 999" for one without a name."""
    if number == ENOTSUPP:
        return "ENOTSUPP"
    return errno_numbers.errorcode.get(number, f"errno {number}")


@functools.cache
def _libc() -> tuple[Any, int]:
    machine = platform.machine()
    if machine not in _SYSCALL_NUMBER:
        raise KernrigError(
            f"the number of the bpf system call is not known for {machine}", hint="add it to syscall.py"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc.syscall, _SYSCALL_NUMBER[machine]


def bpf(cmd: int, attr: Attr | bytes | bytearray, size: int | None = None) -> int:
    """Call bpf(2) and return its result (a new descriptor, or 0).

    The attributes are copied into a zeroed buffer of at least ATTR_SIZE bytes, and back after the call,
    failed or not, unless they are `bytes`. `size` is what the kernel is told (default: the buffer's size); it
    may be smaller than the attributes or larger. The buffer is never shorter than the full union, since some
    commands write fields that a short size does not cover (kernel/bpf/mprog.c:bpf_mprog_query). Raises
    BpfError.
    """
    raw = bytes(attr)
    buffer = ctypes.create_string_buffer(raw, max(ATTR_SIZE, len(raw), min(size or 0, 65536)))
    syscall, number = _libc()
    told = len(buffer) if size is None else size
    result: int = syscall(ctypes.c_long(number), ctypes.c_int(cmd), buffer, ctypes.c_uint(told))
    failure = ctypes.get_errno() if result < 0 else 0
    if isinstance(attr, bytearray):
        attr[:] = buffer.raw[: len(attr)]
    elif isinstance(attr, Attr):
        ctypes.memmove(ctypes.byref(attr), buffer, len(raw))
    if result < 0:
        described = attr.describe() if isinstance(attr, Attr) else raw.hex(" ", 4)
        if size is not None:
            described += f" (size {size})"
        raise BpfError(failure, uapi.name_of("cmd", cmd) or f"bpf command {cmd}", described)
    return result


def system_call(cmd: int, buffer: Any, size: int) -> int:
    """bpf(2) on a ctypes buffer as it is; the errno, 0 for success. For where every instruction counts."""
    return max(-raw_call(cmd, buffer, size), 0)


def raw_call(cmd: int, buffer: Any, size: int) -> int:
    """bpf(2) on a ctypes buffer as it is; the result (a descriptor, or 0), or the errno as a negative number."""
    syscall, number = _libc()
    result: int = syscall(number, cmd, buffer, size)
    return result if result >= 0 else -ctypes.get_errno()


class refused:
    """A context whose body must raise BpfError with one of `errnos` (any, if none is given).

    If `log` is given, this regex must be found in the verifier's log. `error` is the error afterwards. Raises
    AssertionError if the body succeeds or the error is another one.
    """

    error: BpfError

    def __init__(self, *errnos: int, log: str | None = None) -> None:
        self.errnos = errnos
        self.log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            wanted = " or ".join(map(errno_name, self.errnos)) or "an error"
            raise AssertionError(f"expected {wanted}, but the kernel accepted it")
        if not isinstance(error, BpfError):
            return False
        if self.errnos and error.errno not in self.errnos:
            wanted = " or ".join(map(errno_name, self.errnos))
            raise AssertionError(f"expected {wanted}, got {error}") from error
        if self.log is not None and not re.search(self.log, error.log):
            raise AssertionError(f"expected a log that matches {self.log!r}, got {error}") from error
        self.error = error
        return True
