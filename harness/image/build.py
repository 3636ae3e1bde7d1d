# SPDX-License-Identifier: MIT
"""A kernel and the recipe in images/ become one initramfs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from harness.cache import Cache, digest
from harness.image import cpio, modules, recipe, rootfs
from harness.image.recipe import Recipe
from harness.image.rootfs import Say

INITRAMFS = "initramfs.cpio"
MANIFEST = "manifest.json"

# A change of these may change the image that unchanged inputs give.
_MAKERS = tuple(Path(__file__).with_name(f"{name}.py") for name in ("build", "cpio", "modules", "recipe"))


@dataclass(frozen=True)
class Image:
    """A root file system that a kernel can boot.

    `digest` is the SHA-256 of the file `initramfs`; `manifest` is a JSON file: the packages with versions,
    and which modules are included, built into the kernel, or missing.
    """

    initramfs: Path
    digest: str
    manifest: Path


class ModuleSource(Protocol):
    """What an image needs of a kernel (harness.kernels.Kernel has it): `modules` is what lib/modules/RELEASE
    holds, or None."""

    @property
    def release(self) -> str:
        """As `uname -r` says."""

    @property
    def modules(self) -> Path | None:
        """The directory with what belongs below lib/modules/RELEASE."""

    @property
    def digest(self) -> str:
        """Changes with the kernel and its modules."""


def build_image(
    kernel: ModuleSource,
    *,
    cache: Cache,
    say: Say,
    extra_modules: Iterable[Path] = (),
    extra_files: Mapping[str, Path] | None = None,
    mirror: str | None = None,
    images: Path = recipe.IMAGES,
) -> Image:
    """The image of the recipe in `images` for `kernel`, from the cache when nothing has changed.

    `extra_modules` are .ko files to add; `extra_files` maps paths in the guest to files or directories on the
    host; `mirror` is the address of a Debian archive (None: KERNRIG_MIRROR or the host's). `say` gets one
    line per slow step. Raises KernrigError when a step fails; the cache then holds nothing of it.
    """
    what = recipe.read(images)
    extra_modules = tuple(sorted(extra_modules))
    extra_files = {path.strip("/"): source for path, source in sorted((extra_files or {}).items())}
    root = rootfs.rootfs(what, cache=cache, mirror=mirror, say=say)
    contents = json.loads((root / rootfs.MANIFEST).read_text())
    key = digest(
        *_MAKERS,
        contents["sha256"],
        kernel.release,
        kernel.digest,
        " ".join(what.modules),
        what.overlay,
        *(part for path in extra_modules for part in (path.name, path)),
        *(part for path, source in extra_files.items() for part in (path, source)),
    )

    def make(target: Path) -> None:
        say(f"image: adding the modules of kernel {kernel.release}")
        _make(target, kernel, what, root, contents, extra_modules, extra_files)

    entry = cache.build("image", key, make, say=say)
    manifest = entry / MANIFEST
    return Image(entry / INITRAMFS, json.loads(manifest.read_text())["sha256"], manifest)


def _make(
    target: Path,
    kernel: ModuleSource,
    what: Recipe,
    root: Path,
    contents: dict[str, object],
    extra_modules: tuple[Path, ...],
    extra_files: Mapping[str, Path],
) -> None:
    selection = modules.select(kernel.modules, what.modules)
    with tempfile.TemporaryDirectory(prefix="build.", dir=target) as scratch:
        top = Path(scratch)
        modules.install(top, kernel.release, kernel.modules, selection, extra_modules)
        entries = [*cpio.tree(top), *cpio.tree(what.overlay)]
        for path, source in extra_files.items():
            entries += _extra(path, source)
        with (target / INITRAMFS).open("wb") as out:
            with (root / rootfs.ARCHIVE).open("rb") as base:
                shutil.copyfileobj(base, out, 1 << 20)
            cpio.write(out, entries)
    with (target / INITRAMFS).open("rb") as whole:
        sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
    manifest = contents | {
        "rootfs_sha256": contents["sha256"],
        "sha256": sha256,
        "kernel": kernel.release,
        "modules": {
            "included": [path.as_posix() for path in selection.included],
            "extra": [path.name for path in extra_modules],
            "builtin": selection.builtin,
            "missing": selection.missing,
        },
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _extra(path: str, source: Path) -> list[cpio.Entry]:
    if source.is_dir():
        below = cpio.tree(source)
        entries = [cpio.directory(path)]
        entries += [replace(entry, path=f"{path}/{entry.path}") for entry in below]
    else:
        entries = [cpio.regular(path, source, 0o755 if source.stat().st_mode & 0o111 else 0o644)]
    return entries
