# SPDX-License-Identifier: MIT
"""A kernel given by path: what belongs to it is found beside it, and copied into the store once."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.errors import KernrigError
from harness.kernels import Kernel, resolve
from tests.unit.bzimage import BTF, CONFIG, bzimage, elf, embedded

RELEASE = "6.12.1-test"
IMAGE = bzimage(gzip.compress(elf({".BTF": BTF})))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "bzImage").write_bytes(IMAGE)
    (folder / f"config-{RELEASE}").write_text(CONFIG)
    return folder


def install_modules(tree: Path, *, content: bytes = b"") -> Path:
    """A module tree as `make modules_install` leaves it, before depmod."""
    module = tree / "kernel" / "drivers" / "net" / "veth.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(content or elf({".modinfo": b"license=GPL\0name=veth\0"}))
    (tree / "modules.order").write_text("kernel/drivers/net/veth.ko\n")
    (tree / "modules.builtin").write_text("")
    (tree / "build").symlink_to("/nowhere")
    return tree


def resolve_path(path: Path, cache: Cache, modules: Path | None = None) -> Kernel:
    return resolve(str(path), modules=modules, cache=cache)


def test_a_kernel_alone_is_resolved(cache: Cache, boot: Path) -> None:
    kernel = resolve_path(boot / "bzImage", cache)
    assert kernel.release == RELEASE
    assert kernel.name == str(boot / "bzImage")
    assert kernel.vmlinuz.read_bytes() == IMAGE
    assert kernel.btf.read_bytes() == BTF
    assert kernel.modules is None
    assert kernel.config["CONFIG_VETH"] == "m"
    assert kernel.provenance.source == "local"
    assert kernel.vmlinuz.is_relative_to(cache.root)


@pytest.mark.parametrize(
    "place", [f"lib/modules/{RELEASE}", f"modules/{RELEASE}", f"modules/lib/modules/{RELEASE}", "modules"]
)
def test_modules_beside_it_are_found_and_indexed(cache: Cache, boot: Path, place: str) -> None:
    install_modules(boot / place)
    kernel = resolve_path(boot / "bzImage", cache)
    assert kernel.modules is not None and kernel.modules.name == RELEASE
    assert "kernel/drivers/net/veth.ko:" in (kernel.modules / "modules.dep").read_text()
    assert not (kernel.modules / "build").is_symlink()


@pytest.mark.parametrize("below", ["", f"{RELEASE}", f"lib/modules/{RELEASE}", f"usr/lib/modules/{RELEASE}"])
def test_modules_can_be_given(cache: Cache, boot: Path, tmp_path: Path, below: str) -> None:
    install_modules(tmp_path / "mine" / below)
    kernel = resolve_path(boot / "bzImage", cache, tmp_path / "mine")
    assert kernel.modules is not None
    assert (kernel.modules / "kernel/drivers/net/veth.ko").exists()


def test_modules_of_another_release_are_refused(cache: Cache, boot: Path, tmp_path: Path) -> None:
    install_modules(tmp_path / "mine" / "lib" / "modules" / "6.1.0-other")
    with pytest.raises(KernrigError, match=r"it has those of 6\.1\.0-other"):
        resolve_path(boot / "bzImage", cache, tmp_path / "mine")
    with pytest.raises(KernrigError, match="there is no such directory"):
        resolve_path(boot / "bzImage", cache, tmp_path / "nothing")
    with pytest.raises(KernrigError, match="holds no module tree"):
        resolve_path(boot / "bzImage", cache, boot)


def test_a_build_tree_gives_modules_config_and_headers(cache: Cache, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    (tree / "arch/x86/boot").mkdir(parents=True)
    (tree / "arch/x86/boot/bzImage").write_bytes(IMAGE)
    (tree / "arch/x86_64/boot").mkdir(parents=True)
    (tree / "arch/x86_64/boot/bzImage").symlink_to("../../x86/boot/bzImage")
    (tree / ".config").write_text(CONFIG)
    (tree / "Makefile").write_text("all:\n")
    (tree / "Kbuild").write_text("")
    (tree / "kernel").mkdir()
    (tree / "modules.order").write_text("drivers/net/veth.o\n")
    (tree / "modules.builtin").write_text("kernel/net/core.ko\n")
    with pytest.raises(KernrigError, match=r"lists the module drivers/net/veth\.ko, but it is not built"):
        resolve_path(tree / "arch/x86/boot/bzImage", cache)
    (tree / "drivers/net").mkdir(parents=True)
    (tree / "drivers/net/veth.ko").write_bytes(elf({".modinfo": b"license=GPL\0name=veth\0"}))
    for path in ("arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage"):
        kernel = resolve_path(tree / path, cache)
        assert kernel.modules is not None
        assert "kernel/drivers/net/veth.ko:" in (kernel.modules / "modules.dep").read_text()
        assert (kernel.modules / "modules.builtin").read_text() == "kernel/net/core.ko\n"
        assert kernel.headers(cache).build == tree


def test_without_a_tree_there_are_no_headers(cache: Cache, boot: Path) -> None:
    with pytest.raises(KernrigError, match="nothing to build modules with"):
        resolve_path(boot / "bzImage", cache).headers(cache)


def test_the_second_time_it_is_found_and_a_change_is_noticed(cache: Cache, boot: Path) -> None:
    tree = install_modules(boot / "lib" / "modules" / RELEASE)
    first = resolve_path(boot / "bzImage", cache)
    assert resolve_path(boot / "bzImage", cache) == first
    module = tree / "kernel" / "drivers" / "net" / "veth.ko"
    module.write_bytes(elf({".modinfo": b"license=GPL\0name=veth\0version=2\0"}))
    changed = resolve_path(boot / "bzImage", cache)
    assert changed.digest != first.digest
    os.utime(boot / "bzImage", (1, 1))
    assert resolve_path(boot / "bzImage", cache).digest == changed.digest


def test_the_config_may_be_embedded(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(gzip.compress(elf({".BTF": BTF}, trailer=embedded(CONFIG)))))
    assert resolve_path(tmp_path / "vmlinuz", cache).config["CONFIG_VETH"] == "m"


def refused(path: Path, cache: Cache, message: str) -> str:
    with pytest.raises(KernrigError, match=message) as caught:
        resolve_path(path, cache)
    assert cache.entries() == []
    assert not list(cache.root.rglob(".new-*"))
    return str(caught.value)


def test_a_kernel_without_any_config_is_refused(cache: Cache, boot: Path) -> None:
    (boot / f"config-{RELEASE}").unlink()
    assert f"config-{RELEASE}" in refused(boot / "bzImage", cache, "no configuration found")


def test_a_kernel_without_initramfs_support_is_refused(cache: Cache, boot: Path) -> None:
    (boot / f"config-{RELEASE}").write_text("# CONFIG_BLK_DEV_INITRD is not set\n")
    assert "CONFIG_BLK_DEV_INITRD=y" in refused(boot / "bzImage", cache, "no initramfs support")


def test_a_kernel_without_btf_is_refused(cache: Cache, boot: Path) -> None:
    (boot / "bzImage").write_bytes(bzimage(gzip.compress(elf({".text": b"x"}))))
    assert "CONFIG_DEBUG_INFO_BTF=y" in refused(boot / "bzImage", cache, "has no BTF")


@pytest.mark.parametrize("name", ["6.12", "nothing", "", " ", "ubuntu:6.8"])
def test_a_name_that_is_nothing_says_what_names_there_are(cache: Cache, name: str) -> None:
    with pytest.raises(KernrigError) as caught:
        resolve(name, cache=cache)
    assert "debian:6.12" in str(caught.value)


def test_a_path_that_is_nothing_is_named(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="no such file"):
        resolve_path(tmp_path / "nothing", cache)
    with pytest.raises(KernrigError, match="is a directory"):
        resolve_path(tmp_path, cache)


def test_modules_do_not_go_with_debian(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="brings its own"):
        resolve("debian:6.12", modules=tmp_path, cache=cache)
