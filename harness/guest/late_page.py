# SPDX-License-Identifier: MIT
"""A page of memory whose first reader waits, in the kernel too, until the page is allowed to come (userfaultfd)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
from types import TracebackType
from typing import Self

from harness.errors import KernrigError
from harness.guest.waiting import slow_factor

SYSCALLS = {"x86_64": 323, "aarch64": 282}

# include/uapi/linux/userfaultfd.h
UFFD_API = 0xAA
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
UFFDIO_REGISTER_MODE_MISSING = 1


class LatePage:
    """One page of zeroes that does not come before `arrive`: a context manager, which lets it come at its end.

    Raises OSError where the kernel has no userfaultfd, or does not let this process use it.
    """

    def __init__(self) -> None:
        number = SYSCALLS.get(os.uname().machine)
        if number is None:
            raise KernrigError(f"userfaultfd: no system call number known for {os.uname().machine}")
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC | os.O_NONBLOCK)))
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"userfaultfd: {os.strerror(code)}")
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._here = False
        try:
            fcntl.ioctl(self._fd, UFFDIO_API, struct.pack("=QQQ", UFFD_API, 0, 0))
            wanted = struct.pack("=QQQQ", self.address, mmap.PAGESIZE, UFFDIO_REGISTER_MODE_MISSING, 0)
            fcntl.ioctl(self._fd, UFFDIO_REGISTER, wanted)
        except BaseException:
            os.close(self._fd)
            raise

    def wait_for_reader(self, timeout: float) -> bool:
        """Whether somebody waits for the page, now or within `timeout` native seconds."""
        readable, _, _ = select.select([self._fd], [], [], timeout * slow_factor())
        return bool(readable)

    def arrive(self) -> None:
        """Let the page come, once: who waits for it goes on."""
        if not self._here:
            self._here = True
            fcntl.ioctl(self._fd, UFFDIO_ZEROPAGE, struct.pack("=QQQq", self.address, mmap.PAGESIZE, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.arrive()
        os.close(self._fd)
