# SPDX-License-Identifier: MIT
"""Small files that are built like kernels, for tests of what reads them."""

from __future__ import annotations

import gzip
import struct

BTF = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"
CONFIG = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_VETH=m\n"


def elf(sections: dict[str, bytes], trailer: bytes = b"") -> bytes:
    """A 64-bit ELF file with these sections and nothing else; `trailer` follows it."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    contents = [*sections.values(), names]
    headers = b"\0" * 64
    data = b""
    for name, content in zip((*sections, ".shstrtab"), contents, strict=True):
        kind = 3 if name == ".shstrtab" else 1
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(data), len(content), 0, 0, 1, 0)
        data += content
    count = len(contents) + 1
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 64 + len(data), 0, 64, 0, 0, 64, count, count - 1
    )
    return head + data + headers + trailer


def embedded(config: str) -> bytes:
    """What CONFIG_IKCONFIG puts into a kernel."""
    return b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"


def bzimage(
    payload: bytes,
    *,
    banner: str = "6.12.1-test (me@here) #1 SMP",
    protocol: int = 0x020F,
    xloadflags: int = 0x7F,
    signature: bytes = b"HdrS",
) -> bytes:
    """A file with a bzImage's setup header around a payload that is compressed already."""
    setup_sects = 3
    head = bytearray((setup_sects + 1) * 512)
    head[0x1F1] = setup_sects
    head[0x202:0x206] = signature
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<H", head, 0x20E, 0x400 - 0x200)
    struct.pack_into("<H", head, 0x236, xloadflags)
    struct.pack_into("<II", head, 0x248, 0x40, len(payload))
    head[0x400 : 0x400 + len(banner) + 1] = banner.encode() + b"\0"
    return bytes(head) + b"\x90" * 0x40 + payload + b"\xcc" * 100


def sized(packed: bytes, unpacked: bytes) -> bytes:
    """Append the unpacked size, as the kernel's build does to all formats but gzip, which has it."""
    return packed + struct.pack("<I", len(unpacked))
