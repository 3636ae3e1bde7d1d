# SPDX-License-Identifier: MIT
"""A kernel and the recipe in images/ become one initramfs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.cache import Cache, digest
from harness.image import cpio, modules, native, recipe, rootfs
from harness.image.recipe import Recipe
from harness.image.rootfs import Say
from harness.kernels.kernel import Kernel

INITRAMFS = "initramfs.cpio"
MANIFEST = "manifest.json"

# Each kernel has its image, 65 MB; one that is missed is made again in seconds.
_KEPT_IMAGES = 24
_UNUSED_S = 3 * 24 * 3600.0

# A change of these may change the image that unchanged inputs give.
_MAKERS = tuple(
    Path(__file__).with_name(f"{name}.py") for name in ("build", "cpio", "modules", "native", "recipe")
)


@dataclass(frozen=True)
class Image:
    """A root file system that a kernel can boot.

    `digest` is the SHA-256 of the file `initramfs`; `manifest` is a JSON file: the packages with versions,
    and which modules are included, built into the kernel, or missing.
    """

    initramfs: Path
    digest: str
    manifest: Path


def build_image(
    kernel: Kernel,
    *,
    cache: Cache,
    say: Say,
    extra_modules: Iterable[Path] = (),
    mirror: str | None = None,
    images: Path = recipe.IMAGES,
) -> Image:
    """The image of the recipe in `images` for `kernel`, from the cache when nothing has changed.

    `extra_modules` are .ko files to add; `mirror` is the address of a Debian archive (None: KERNRIG_MIRROR or
    the host's). `say` gets one line per slow step. Raises KernrigError when a step fails; the cache holds
    nothing of it then.
    """
    what = recipe.read(images)
    extra_modules = tuple(sorted(extra_modules))
    root = rootfs.rootfs(what, cache=cache, mirror=mirror, say=say)
    contents = json.loads((root / rootfs.MANIFEST).read_text())
    key = digest(
        *_MAKERS,
        contents["sha256"],
        kernel.release,
        kernel.modules_digest,
        " ".join(what.modules),
        what.overlay,
        *native.sources(what.native),
        *(part for path in extra_modules for part in (path.name, path)),
    )

    def make(target: Path) -> None:
        say(f"image: adding the modules of kernel {kernel.release}")
        _make(target, kernel, what, root, contents, extra_modules)
        cache.prune("image", keep=_KEPT_IMAGES, idle_s=_UNUSED_S)

    entry = cache.build("image", key, make, say=say)
    manifest = entry / MANIFEST
    return Image(entry / INITRAMFS, json.loads(manifest.read_text())["sha256"], manifest)


def _make(
    target: Path,
    kernel: Kernel,
    what: Recipe,
    root: Path,
    contents: dict[str, object],
    extra_modules: tuple[Path, ...],
) -> None:
    selection = modules.select(kernel.modules, what.modules)
    with tempfile.TemporaryDirectory(prefix="build.", dir=target) as scratch:
        top = Path(scratch)
        modules.install(top, kernel.release, kernel.modules, selection, extra_modules)
        native.install(what.native, top)
        entries = [*cpio.tree(top), *cpio.tree(what.overlay)]
        # Again, because the overlay's directories carry no permissions of their own.
        entries += [cpio.directory(path, mode) for path, mode in rootfs.DIRECTORIES.items()]
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
