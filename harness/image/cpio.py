# SPDX-License-Identifier: MIT
"""A deterministic writer of `newc` cpio archives, the format of an initramfs.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow each other in
one initramfs; a later one overwrites files of an earlier one, which is how the kernel-independent root and
the kernel's own part become one image.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512
# The size field has eight hexadecimal digits.
_MAX_FILE = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One member: `path` is relative, without a leading slash; `mode` holds the file type and the permission
    bits.

    What the member holds is `source` (a regular file on the host), `data` (bytes; the target for a symbolic
    link) or `device` (major and minor number of a device node). Directories have none of them.
    """

    path: str
    mode: int
    source: Path | None = None
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """An empty directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, content: Path | bytes, permissions: int = 0o644) -> Entry:
    """A regular file with the content of a file on the host, or the given bytes."""
    if isinstance(content, Path):
        return Entry(path, stat.S_IFREG | permissions, source=content)
    return Entry(path, stat.S_IFREG | permissions, data=content)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(path, stat.S_IFLNK | 0o777, data=target.encode())


def char_device(path: str, major: int, minor: int, permissions: int) -> Entry:
    """A character device node; it exists only in the archive, so no privilege is needed to build one."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def tree(root: Path) -> list[Entry]:
    """Everything below `root` as members, sorted by path.

    Permissions are normalised to 0755 (directories, and files that somebody may execute) and 0644, so that
    neither the umask nor the builder's identity shows in the archive. Raises ValueError for anything but
    files, directories and symbolic links.
    """
    entries = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            entries.append(symlink(name, str(path.readlink())))
        elif stat.S_ISDIR(mode):
            entries.append(directory(name))
        elif stat.S_ISREG(mode):
            entries.append(regular(name, path, 0o755 if mode & 0o111 else 0o644))
        else:
            raise ValueError(f"{path} is neither a file, a directory nor a symbolic link")
    return entries


def write(out: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write one complete archive (trailer included), padded to 512 bytes so that another may follow.

    Members are sorted by path (a directory before what it holds); of several with the same path the last one
    counts. Owner is 0:0, times are 0 and inode numbers count from 1: the same entries always give the same
    bytes. Raises ValueError for a file of 4 GiB.
    """
    by_path = {entry.path: entry for entry in entries}
    written = 0
    for inode, path in enumerate(sorted(by_path, key=lambda name: name.split("/")), start=1):
        written += _write_entry(out, by_path[path], inode)
    written += _write_entry(out, Entry(_TRAILER, 0), 0)
    out.write(bytes(-written % _BLOCK))


def _write_entry(out: BinaryIO, entry: Entry, inode: int) -> int:
    size = len(entry.data) if entry.source is None else entry.source.stat().st_size
    if size > _MAX_FILE:
        raise ValueError(f"{entry.path}: {size} bytes do not fit into a newc archive")
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name), 0)
    header = _MAGIC.encode() + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-len(header) % 4)
    out.write(header)
    if entry.source is None:
        out.write(entry.data)
    else:
        with entry.source.open("rb") as content:
            start = out.tell()
            shutil.copyfileobj(content, out, 1 << 20)
            if out.tell() - start != size:
                raise ValueError(f"{entry.source} changed its size while it was being read")
    padding = -size % 4
    out.write(bytes(padding))
    return len(header) + size + padding
