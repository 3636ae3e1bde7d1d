# SPDX-License-Identifier: MIT
"""What the image's tests need: a cpio archive read back, a kernel module of nothing but .modinfo."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One member of a cpio archive, with the header's fields that matter."""

    mode: int
    inode: int
    uid: int
    gid: int
    mtime: int
    links: int
    device: tuple[int, int]
    data: bytes


def read_archives(blob: bytes) -> list[dict[str, Member]]:
    """The newc archives in `blob`, one after the other, as the kernel's init/initramfs.c reads them."""
    archives: list[dict[str, Member]] = []
    current: dict[str, Member] = {}
    at = 0
    while at < len(blob):
        if blob[at] == 0:
            at += 4 - at % 4 if at % 4 else 4
            continue
        assert blob[at : at + 6] == b"070701", f"no header at {at}"
        fields = [int(blob[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, _ = fields
        name = blob[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        data = blob[start : start + size]
        at = (start + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            archives.append(current)
            current = {}
        else:
            assert name not in current, f"{name} twice"
            current[name] = Member(mode, inode, uid, gid, mtime, links, (major, minor), data)
    assert not current, "no trailer"
    return archives


def kernel_module(**modinfo: str) -> bytes:
    """A 64-bit ELF relocatable with one section, .modinfo, that holds `modinfo` as a kernel module does."""
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in modinfo.items())
    names = b"\0.modinfo\0.shstrtab\0"
    info_at = 64
    names_at = info_at + len(info)
    table_at = (names_at + len(names) + 7) // 8 * 8
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, info_at, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return (header + info + names).ljust(table_at, b"\0") + sections
