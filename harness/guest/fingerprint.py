# SPDX-License-Identifier: MIT
"""A cheap answer to "is anything at all different from the baseline?", for the usual scenario that leaves nothing.

It errs on the side of "different" only; then the inventory (objects.py) is compared item by item.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from harness.guest import objects
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import ATTR_SIZE
from harness.guest.bpf.descriptor import ids
from harness.guest.bpf.syscall import system_call
from harness.guest.netns import libc
from harness.guest.state import TAINTED

_NEXT_ID = (
    uapi.BPF_PROG_GET_NEXT_ID,
    uapi.BPF_MAP_GET_NEXT_ID,
    uapi.BPF_LINK_GET_NEXT_ID,
    uapi.BPF_BTF_GET_NEXT_ID,
)
_FILES = (os.fspath(TAINTED), "/proc/modules")
_UTS = "/proc/self/ns/uts"
CLONE_NEWUTS = 0x04000000  # include/uapi/linux/sched.h


class Fingerprint:
    """The baseline in a form that is quick to compare. Make it, then `same()` in any process forked afterwards.

    BPF ids are handed out in ascending order (kernel/bpf/syscall.c: idr_alloc_cyclic): nothing above the highest one
    means nothing new. Namespaces take the lowest free inode number of procfs (fs/proc/generic.c: proc_alloc_inum), as
    do the procfs entries of a network namespace: as long as a new UTS namespace gets the number that it got before,
    no namespace was left behind.
    """

    def __init__(self) -> None:
        self._highest = []
        for command in _NEXT_ID:
            highest = max(ids(command), default=0)
            attr = ctypes.create_string_buffer(struct.pack("I", highest), ATTR_SIZE)
            self._highest.append((command, attr))
        self._files = [(path, _read(path)) for path in _FILES]
        self._pins = os.listdir(objects.BPFFS)  # noqa: PTH208 - names are enough, and no Path objects
        self._inode = self._new_uts_inode()

    def _new_uts_inode(self) -> int:
        """The inode number that the next namespace gets, tried in a child, whose namespace goes with it."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write_end, b"%d" % _own_uts_inode())
            os._exit(0)
        os.waitpid(pid, 0)
        try:
            return int(os.read(read_end, 32))
        finally:
            os.close(read_end)
            os.close(write_end)

    def same(self) -> bool:
        """Whether nothing was added. Puts the calling process into a UTS namespace of its own."""
        for command, attr in self._highest:
            if system_call(command, attr, ATTR_SIZE) != errno.ENOENT:
                return False
        if any(_read(path) != content for path, content in self._files):
            return False
        if os.listdir(objects.BPFFS) != self._pins:  # noqa: PTH208
            return False
        return _own_uts_inode() == self._inode


def _own_uts_inode() -> int:
    """Enter a new UTS namespace; its inode number."""
    if libc().unshare(CLONE_NEWUTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUTS)")
    return os.stat(_UTS).st_ino  # noqa: PTH116 - called once per scenario


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
