# SPDX-License-Identifier: MIT
"""The root file system without anything of a kernel: the slow part of an image, made once for all kernels."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.cache import Cache, digest
from harness.image import cpio, debian, python, tools
from harness.image.recipe import Recipe

ARCHIVE = "rootfs.cpio"
MANIFEST = "rootfs.json"

# Mount points and what daemons expect, with permissions.
DIRECTORIES = {
    ".": 0o755,
    "dev": 0o755,
    "etc/dropbear": 0o700,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "root/.ssh": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr/lib/kernrig": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
_LINKS = {"etc/mtab": "../proc/self/mounts", "usr/bin/python3": "python3.13", "var/run": "../run"}
# The kernel opens /dev/console for the first process before anything is mounted. Linux,
# Documentation/admin-guide/devices.txt.
_NODES = (cpio.char_device("dev/console", 5, 1, 0o600), cpio.char_device("dev/null", 1, 3, 0o666))

# A change of these may change the archive that an unchanged recipe gives.
_MAKERS = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in ("cpio", "debian", "python", "recipe", "rootfs", "tools")
)

Say = Callable[[str], None]


def rootfs(what: Recipe, *, cache: Cache, mirror: str | None, say: Say) -> Path:
    """The cache entry with `rootfs.cpio` and `rootfs.json` (the archive's SHA-256, packages with versions).

    `mirror` is the address of a Debian archive; None takes KERNRIG_MIRROR or the host's. Raises KernrigError,
    see `make`.
    """
    key = digest(*_MAKERS, what.packages_list, what.prune_list, what.requirements)
    return cache.build("rootfs", key, lambda target: make(target, what, mirror=mirror, say=say), say=say)


def make(target: Path, what: Recipe, *, mirror: str | None, say: Say) -> None:
    """Build the archive and its manifest in the directory `target`; raises KernrigError when a step fails."""
    with tempfile.TemporaryDirectory(prefix="build.", dir=target) as scratch:
        tar, root = Path(scratch) / "root.tar", Path(scratch) / "root"
        say(f"image: downloading and unpacking Debian {debian.SUITE} packages")
        packages = debian.download(tar, what.packages, mirror)
        debian.unpack(tar, root, what)
        tar.unlink()
        say("image: installing the guest's Python packages")
        python_packages = python.install(root, what)
        say("image: compiling the guest's Python library")
        python.compile_all(root, (python.LIBRARY, python.SITE))
        links = debian.MERGED_USR | _LINKS
        entries = [
            *cpio.tree(root),
            *(cpio.symlink(path, aim) for path, aim in links.items()),
            *_busybox_links(root),
            *(cpio.directory(path, permissions) for path, permissions in DIRECTORIES.items()),
            *_NODES,
        ]
        with (target / ARCHIVE).open("wb") as out:
            cpio.write(out, entries)
    with (target / ARCHIVE).open("rb") as archive:
        sha256 = hashlib.file_digest(archive, "sha256").hexdigest()
    manifest = {
        "sha256": sha256,
        "suite": debian.SUITE,
        "packages": packages,
        "python_packages": python_packages,
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _busybox_links(root: Path) -> list[cpio.Entry]:
    """A link for each busybox applet whose name no package uses."""
    listed = tools.run(
        [*tools.inside(root, "usr/bin/busybox"), "--list"],
        step="asking the guest's busybox for its applets",
        hint=tools.NOEXEC_HINT,
    )
    taken = {path.name for place in ("usr/bin", "usr/sbin") for path in (root / place).iterdir()}
    return [cpio.symlink(f"usr/bin/{name}", "busybox") for name in listed.out.split() if name not in taken]
