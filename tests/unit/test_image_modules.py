# SPDX-License-Identifier: MIT
"""Which kernel modules an image gets, and in what state."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from harness.errors import KernrigError
from harness.image import modules
from tests.image_files import kernel_module

RELEASE = "6.99.0-test"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A kernel's module directory: three modules in a chain, one alone, one built in."""
    net = tmp_path / "modules" / "kernel" / "net"
    net.mkdir(parents=True)
    (net / "nf_conntrack.ko.xz").write_bytes(
        lzma.compress(kernel_module(name="nf_conntrack", depends="nf-defrag,crc"))
    )
    (net / "nf-defrag.ko.gz").write_bytes(gzip.compress(kernel_module(name="nf_defrag", depends="crc")))
    (net / "crc.ko.zst").write_bytes(
        zstandard.ZstdCompressor(write_content_size=False).compress(kernel_module(name="crc", depends=""))
    )
    (net / "veth.ko").write_bytes(kernel_module(name="veth", depends="", softdep="pre: crc gone"))
    (net / "dummy.ko").write_bytes(kernel_module(name="dummy", depends=""))
    (tmp_path / "modules" / "modules.builtin").write_text("kernel/drivers/virtio/virtio_console.ko\n")
    (tmp_path / "modules" / "modules.order").write_text("")
    return tmp_path / "modules"


def names(selection: modules.Selection) -> list[str]:
    return [path.name for path in selection.included]


def test_dependencies_come_along_and_nothing_else(directory: Path) -> None:
    assert names(modules.select(directory, ["nf_conntrack"])) == [
        "crc.ko.zst",
        "nf-defrag.ko.gz",
        "nf_conntrack.ko.xz",
    ]


def test_hyphen_and_underscore_are_the_same(directory: Path) -> None:
    assert names(modules.select(directory, ["nf_defrag"])) == names(modules.select(directory, ["nf-defrag"]))


def test_built_in_and_missing_modules_are_told_apart(directory: Path) -> None:
    selection = modules.select(directory, ["virtio-console", "bpf_testmod", "dummy"])
    assert selection.builtin == ("virtio_console",)
    assert selection.missing == ("bpf_testmod",)
    assert names(selection) == ["dummy.ko"]


def test_a_soft_dependency_comes_along_if_it_exists(directory: Path) -> None:
    selection = modules.select(directory, ["veth"])
    assert names(selection) == ["crc.ko.zst", "veth.ko"]
    assert selection.missing == ()


def test_a_kernel_without_modules_has_none() -> None:
    assert modules.select(None, ["veth", "dummy"]) == modules.Selection((), (), ("dummy", "veth"))


def test_modules_are_installed_uncompressed_and_indexed(directory: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    modules.install(root, RELEASE, directory, modules.select(directory, ["nf_conntrack", "veth"]))
    target = root / "usr/lib/modules" / RELEASE
    assert (target / "kernel/net/nf_conntrack.ko").read_bytes().startswith(b"\x7fELF")
    assert (target / "kernel/net/crc.ko").read_bytes() == kernel_module(name="crc", depends="")
    dependencies = (target / "modules.dep").read_text().splitlines()
    assert sorted(line.partition(":")[0] for line in dependencies) == [
        "kernel/net/crc.ko",
        "kernel/net/nf-defrag.ko",
        "kernel/net/nf_conntrack.ko",
        "kernel/net/veth.ko",
    ]
    assert (target / "modules.dep.bin").exists()
    assert not (root / "lib").exists()


def test_extra_modules_land_in_updates(directory: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.ko"
    own.write_bytes(kernel_module(name="own", depends=""))
    root = tmp_path / "root"
    modules.install(root, RELEASE, None, modules.select(None, []), [own])
    assert (root / "usr/lib/modules" / RELEASE / "updates/own.ko").exists()
    assert "updates/own.ko:" in (root / "usr/lib/modules" / RELEASE / "modules.dep").read_text()


@pytest.mark.parametrize("damage", [b"no xz at all", b"", lzma.compress(b"x" * 4000)[:40]])
def test_a_damaged_module_is_named(directory: Path, damage: bytes) -> None:
    (directory / "kernel/net/nf_conntrack.ko.xz").write_bytes(damage)
    with pytest.raises(KernrigError, match=r"nf_conntrack\.ko\.xz"):
        modules.select(directory, ["nf_conntrack"])


def test_a_file_that_is_no_module_is_refused(directory: Path) -> None:
    (directory / "kernel/net/dummy.ko").write_bytes(b"text")
    with pytest.raises(KernrigError, match=r"dummy\.ko is no kernel module"):
        modules.select(directory, ["dummy"])
