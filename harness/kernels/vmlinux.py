# SPDX-License-Identifier: MIT
"""What a bzImage holds: its release, and inside its compressed payload the BTF and perhaps the
configuration."""

from __future__ import annotations

import bz2
import io
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.errors import HostError, KernrigError

# The setup header, by Documentation/arch/x86/boot.rst.
_SETUP_SECTS = 0x1F1
_HDR_S = 0x202
_PROTOCOL = 0x206
_KERNEL_VERSION = 0x20E
_XLOADFLAGS = 0x236
_PAYLOAD = 0x248
_XLF_KERNEL_64 = 1

_BTF_MAGIC = 0xEB9F
_GIVE_A_BZIMAGE = (
    "give the bzImage of an x86-64 kernel: arch/x86/boot/bzImage of a build, or /boot/vmlinuz-RELEASE"
)


@dataclass(frozen=True)
class BzImage:
    """An x86-64 bzImage: `release` as `uname -r` says it, `banner` with the builder and date after it."""

    path: Path
    release: str
    banner: str
    payload_offset: int
    payload_length: int


def identify(path: Path) -> BzImage:
    """Read the setup header of a bzImage. Raises KernrigError when there is no such file or it is no
    kernel."""
    try:
        with path.open("rb") as file:
            head = file.read(64 * 1024)
    except FileNotFoundError as error:
        raise KernrigError(f"there is no kernel {path}: no such file", hint=_GIVE_A_BZIMAGE) from error
    except IsADirectoryError as error:
        raise KernrigError(f"{path} is a directory, not a kernel", hint=_GIVE_A_BZIMAGE) from error
    except OSError as error:
        raise KernrigError(f"the kernel {path} cannot be read: {error.strerror}") from error
    if head[:4] == b"\x7fELF":
        raise KernrigError(
            f"{path} is an ELF file (vmlinux?), which QEMU does not boot", hint=_GIVE_A_BZIMAGE
        )
    if len(head) < 0x260 or head[_HDR_S : _HDR_S + 4] != b"HdrS":
        raise KernrigError(
            f"{path} is not a kernel: the bzImage signature 'HdrS' is missing", hint=_GIVE_A_BZIMAGE
        )
    (protocol,) = struct.unpack_from("<H", head, _PROTOCOL)
    (xloadflags,) = struct.unpack_from("<H", head, _XLOADFLAGS)
    # 2.12 (Linux 3.8) brought xloadflags; 2.08 the payload fields.
    if protocol < 0x020C or not xloadflags & _XLF_KERNEL_64:
        raise KernrigError(f"{path} is not a 64-bit kernel (or one before 3.8)", hint=_GIVE_A_BZIMAGE)
    (version_offset,) = struct.unpack_from("<H", head, _KERNEL_VERSION)
    start = version_offset + 0x200
    banner = head[start : start + 512].partition(b"\0")[0].decode("ascii", errors="replace")
    release = banner.partition(" ")[0]
    if not version_offset or not release or not release.isprintable() or "/" in release:
        raise KernrigError(f"{path} has no version in its header", hint=_GIVE_A_BZIMAGE)
    offset, length = struct.unpack_from("<II", head, _PAYLOAD)
    # 0 stands for 4 in ancient headers; the setup code is preceded by the boot sector.
    return BzImage(path, release, banner, ((head[_SETUP_SECTS] or 4) + 1) * 512 + offset, length)


def vmlinux(image: BzImage) -> bytes:
    """The uncompressed kernel (an ELF file) inside. Raises KernrigError when it cannot be unpacked."""
    with image.path.open("rb") as file:
        file.seek(image.payload_offset)
        packed = file.read(image.payload_length)
    if len(packed) < image.payload_length:
        promised = image.payload_offset + image.payload_length
        raise KernrigError(
            f"{image.path} is cut short: its header promises {promised} bytes",
            hint="fetch or build it again",
        )
    for magic, name, unpack in _FORMATS:
        if packed.startswith(magic):
            try:
                return unpack(packed)
            except (ValueError, EOFError, OSError, RuntimeError, lzma.LZMAError, zlib.error) as error:
                raise KernrigError(
                    f"{image.path} is damaged: its {name} payload cannot be unpacked: {error}",
                    hint="fetch or build it again",
                ) from error
    raise KernrigError(
        f"{image.path} has a payload in an unknown format (it starts with {packed[:6].hex(' ')})",
        hint="build the kernel with CONFIG_KERNEL_ZSTD=y, _XZ or _GZIP",
    )


def btf(elf: bytes, path: Path) -> bytes:
    """The raw BTF in the section `.BTF` of vmlinux; `path` is for messages. Raises KernrigError without
    one."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(elf)).get_section_by_name(".BTF")
    except ELFError as error:
        raise KernrigError(f"{path} is damaged: what it unpacks to is no ELF file: {error}") from error
    data: bytes = section.data() if section is not None else b""
    if len(data) < 24 or int.from_bytes(data[:2], "little") != _BTF_MAGIC:
        raise KernrigError(
            f"the kernel {path} has no BTF (no section .BTF in its vmlinux), which scenarios need",
            hint="build it with CONFIG_DEBUG_INFO_BTF=y (pahole must be installed), or take another kernel",
        )
    return data


def embedded_config(elf: bytes) -> str | None:
    """The configuration that CONFIG_IKCONFIG embeds (kernel/configs.c), or None."""
    start = elf.find(b"IKCFG_ST\x1f\x8b")
    if start < 0:
        return None
    try:
        return _gunzip(elf[start + 8 :]).decode("utf-8", errors="replace")
    except (zlib.error, EOFError):
        return None


class _Unpacker(Protocol):
    """What the decompressors of the standard library and of zstandard share. A payload is followed by its
    unpacked size, so that "nothing may follow" does not hold."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _whole(unpacker: _Unpacker, data: bytes) -> bytes:
    unpacked = unpacker.decompress(data)
    if not unpacker.eof:
        raise EOFError("it ends too early")
    return unpacked


def _gunzip(data: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data)


def _unxz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(format=lzma.FORMAT_XZ), data)


def _unlzma(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(format=lzma.FORMAT_ALONE), data)


def _bunzip2(data: bytes) -> bytes:
    return _whole(bz2.BZ2Decompressor(), data)


def _unzstd(data: bytes) -> bytes:
    import zstandard

    try:
        return _whole(zstandard.ZstdDecompressor().decompressobj(), data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _by_program(*command: str) -> Callable[[bytes], bytes]:
    """Python has no module for these; whoever built such a kernel has the program. Trailing bytes (the
    unpacked size) make them complain after they have written everything."""

    def unpack(data: bytes) -> bytes:
        if shutil.which(command[0]) is None:
            raise HostError(
                f"the kernel is compressed with {command[0]}, which is not installed",
                hint=f"install {command[0]}, or build the kernel with CONFIG_KERNEL_ZSTD=y, _XZ or _GZIP",
            )
        done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
        if not done.stdout:
            raise ValueError(done.stderr.decode(errors="replace").strip() or f"{command[0]} wrote nothing")
        return done.stdout

    return unpack


def _as_it_is(data: bytes) -> bytes:
    return data


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _gunzip),
    (b"\xfd7zXZ\0", "xz", _unxz),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
    (b"BZh", "bzip2", _bunzip2),
    (b"\x5d\0\0", "lzma", _unlzma),
    (b"\x02\x21\x4c\x18", "lz4", _by_program("lz4", "-dc", "-")),
    (b"\x89LZO", "lzo", _by_program("lzop", "-dc")),
    (b"\x7fELF", "uncompressed", _as_it_is),
)
