# SPDX-License-Identifier: MIT
"""What is read from a bzImage, and what is said of files that are none."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from harness.errors import KernrigError
from harness.kernels import vmlinux
from tests.unit.bzimage import BTF, CONFIG, bzimage, elf, embedded, sized

ELF = elf({".text": b"\x90" * 5000, ".BTF": BTF}, trailer=embedded(CONFIG))


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(gzip.compress(ELF)))
    return path


def test_the_release_is_the_first_word_of_the_version(kernel: Path) -> None:
    image = vmlinux.identify(kernel)
    assert image.release == "6.12.1-test"
    assert image.banner == "6.12.1-test (me@here) #1 SMP"


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lambda data: sized(lzma.compress(data, check=lzma.CHECK_CRC32), data),
        lambda data: sized(lzma.compress(data, format=lzma.FORMAT_ALONE), data),
        lambda data: sized(bz2.compress(data), data),
        lambda data: sized(zstandard.compress(data), data),
        lambda data: sized(zstandard.ZstdCompressor(write_content_size=False).compress(data), data),
        lambda data: data,
    ],
    ids=["gzip", "xz", "lzma", "bzip2", "zstd", "zstd-unsized", "uncompressed"],
)
def test_every_compression_gives_the_same_kernel(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(pack(ELF)))
    unpacked = vmlinux.vmlinux(vmlinux.identify(path))
    assert unpacked[: len(ELF)] == ELF
    assert vmlinux.btf(unpacked, path) == BTF
    assert vmlinux.embedded_config(unpacked) == CONFIG


def test_a_kernel_without_embedded_config_has_none() -> None:
    assert vmlinux.embedded_config(elf({".BTF": BTF})) is None
    assert vmlinux.embedded_config(b"IKCFG_ST\x1f\x8bgarbage") is None


@pytest.mark.parametrize("sections", [{".text": b"x"}, {".BTF": b""}, {".BTF": b"\0" * 40}])
def test_a_kernel_without_btf_says_how_to_get_it(sections: dict[str, bytes]) -> None:
    with pytest.raises(KernrigError, match="has no BTF") as caught:
        vmlinux.btf(elf(sections), Path("k"))
    assert "CONFIG_DEBUG_INFO_BTF=y" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a kernel"),
        (b"#!/bin/sh\n" * 100, "is not a kernel"),
        (ELF, "is an ELF file"),
        (bzimage(b"x", signature=b"HdrX"), "is not a kernel"),
        (bzimage(b"x", xloadflags=0), "not a 64-bit kernel"),
        (bzimage(b"x", protocol=0x0209), "not a 64-bit kernel"),
        (bzimage(b"x", banner=""), "has no version"),
    ],
)
def test_what_is_no_bzimage_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(KernrigError, match=message) as caught:
        vmlinux.identify(path)
    assert str(path) in caught.value.what
    assert "arch/x86/boot/bzImage" in str(caught.value)


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="no such file"):
        vmlinux.identify(tmp_path / "nothing")
    with pytest.raises(KernrigError, match="is a directory"):
        vmlinux.identify(tmp_path)


@pytest.mark.parametrize(
    "pack", [gzip.compress, lzma.compress, zstandard.compress], ids=["gzip", "xz", "zstd"]
)
def test_a_damaged_payload_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(ELF))
    packed[8:24] = b"\xff" * 16
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(bytes(packed)))
    with pytest.raises(KernrigError, match="damaged"):
        vmlinux.btf(vmlinux.vmlinux(vmlinux.identify(path)), path)


def test_a_truncated_file_is_named(kernel: Path) -> None:
    kernel.write_bytes(kernel.read_bytes()[:2200])
    with pytest.raises(KernrigError, match="cut short"):
        vmlinux.vmlinux(vmlinux.identify(kernel))


@pytest.mark.parametrize(
    "pack", [gzip.compress, lzma.compress, zstandard.compress], ids=["gzip", "xz", "zstd"]
)
def test_a_payload_that_ends_too_early_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(pack(ELF)[:-30]))
    with pytest.raises(KernrigError, match="damaged"):
        vmlinux.vmlinux(vmlinux.identify(path))


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(b"\x01\x02\x03\x04\x05\x06\x07"))
    with pytest.raises(KernrigError, match="01 02 03 04 05 06"):
        vmlinux.vmlinux(vmlinux.identify(path))
