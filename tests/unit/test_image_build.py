# SPDX-License-Identifier: MIT
"""How an image is put together, and what is made again when something changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.image import build_image, cpio, recipe, rootfs
from harness.kernels.config import KernelConfig
from harness.kernels.kernel import Kernel, Provenance
from tests.image_files import kernel_module, read_archives


class Rig:
    """A recipe and a kernel, with a root file system that is made in no time; counts how often it was."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = path / "images"
        shutil.copytree(recipe.IMAGES / "overlay", self.images / "overlay")
        (self.images / "native").mkdir()
        (self.images / "native/answer.c").write_text("int answer(void) { return 42; }\n")
        for name in ("packages.list", "prune.list", "modules.list", "requirements.txt"):
            shutil.copy(recipe.IMAGES / name, self.images)
        modules = path / "modules"
        (modules / "kernel").mkdir(parents=True)
        (modules / "kernel/veth.ko").write_bytes(kernel_module(name="veth", depends=""))
        self.kernel = Kernel(
            name="test",
            release="6.99.0-test",
            vmlinuz=path / "vmlinuz",
            modules=modules,
            btf=path / "btf",
            digest="first",
            provenance=Provenance("local", "test", "6.99", "0" * 64),
            config=KernelConfig({}),
        )
        self.cache = Cache(path / "cache")
        self.said: list[str] = []
        self.roots_made = 0
        monkeypatch.setattr(rootfs, "make", self._make_root)

    def _make_root(self, target: Path, what: recipe.Recipe, *, mirror: str | None, say: rootfs.Say) -> None:
        self.roots_made += 1
        with (target / rootfs.ARCHIVE).open("wb") as out:
            cpio.write(out, [cpio.directory("usr"), cpio.regular("usr/base", what.prune_list)])
        sha256 = hashlib.sha256((target / rootfs.ARCHIVE).read_bytes()).hexdigest()
        (target / rootfs.MANIFEST).write_text(json.dumps({"sha256": sha256, "packages": {"a": "1"}}))

    def build(self, **changes: object) -> tuple[str, bytes]:
        kernel = replace(self.kernel, **changes)  # type: ignore[arg-type]
        image = build_image(kernel, cache=self.cache, say=self.said.append, images=self.images)
        blob = image.initramfs.read_bytes()
        assert image.digest == hashlib.sha256(blob).hexdigest()
        assert json.loads(image.manifest.read_text())["sha256"] == image.digest
        return image.digest, blob


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_an_image_is_the_root_then_modules_and_overlay(rig: Rig) -> None:
    _, blob = rig.build()
    root, rest = read_archives(blob)
    assert "usr/base" in root
    assert "usr/lib/modules/6.99.0-test/kernel/veth.ko" in rest
    assert "usr/lib/modules/6.99.0-test/modules.dep.bin" in rest
    assert stat.S_IMODE(rest["init"].mode) == 0o755
    assert rest["init"].data == (rig.images / "overlay/init").read_bytes()


def test_a_second_build_is_silent_and_the_same(rig: Rig) -> None:
    first = rig.build()
    rig.said.clear()
    assert rig.build() == first
    assert (rig.said, rig.roots_made) == ([], 1)


def test_another_kernel_gets_its_own_image_on_the_same_root(rig: Rig) -> None:
    first, _ = rig.build()
    second, _ = rig.build(digest="second", release="7.0.0-test")
    assert first != second
    assert rig.roots_made == 1


def test_an_edit_of_the_overlay_keeps_the_root(rig: Rig) -> None:
    first, _ = rig.build()
    (rig.images / "overlay/etc/added").write_text("x")
    second, blob = rig.build()
    assert first != second
    assert read_archives(blob)[1]["etc/added"].data == b"x"
    assert rig.roots_made == 1


def test_native_sources_are_compiled_into_the_image(rig: Rig) -> None:
    first, blob = rig.build()
    assert read_archives(blob)[1]["usr/lib/kernrig/answer.so"].data.startswith(b"\x7fELF")
    (rig.images / "native/answer.c").write_text("int answer(void) { return 43; }\n")
    assert rig.build()[0] != first
    assert rig.roots_made == 1


def test_an_edit_of_the_module_list_keeps_the_root(rig: Rig) -> None:
    first, _ = rig.build()
    (rig.images / "modules.list").write_text("dummy  another one\n")
    assert rig.build()[0] != first
    assert rig.roots_made == 1


@pytest.mark.parametrize("name", ["packages.list", "prune.list", "requirements.txt"])
def test_an_edit_of_the_root_s_recipe_makes_it_again(rig: Rig, name: str) -> None:
    rig.build()
    with (rig.images / name).open("a") as file:
        file.write("# more\n")
    rig.build()
    assert rig.roots_made == 2


def test_the_manifest_says_what_is_in_the_image(rig: Rig) -> None:
    (rig.images / "modules.list").write_text("veth  there\nnetkit  not there\n")
    rig.build()
    (entry,) = (rig.cache.root / "image").iterdir()
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["packages"] == {"a": "1"}
    assert manifest["modules"] == {
        "builtin": [],
        "extra": [],
        "included": ["kernel/veth.ko"],
        "missing": ["netkit"],
    }


def test_the_overlay_does_not_open_what_must_stay_closed(rig: Rig) -> None:
    (rig.images / "overlay/root").mkdir()
    (rig.images / "overlay/root/.profile").write_text("")
    _, blob = rig.build()
    assert stat.S_IMODE(read_archives(blob)[1]["root"].mode) == 0o700
