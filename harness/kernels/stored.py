# SPDX-License-Identifier: MIT
"""How a kernel lies in the cache: written once in full, then read in milliseconds.

An entry of kind `kernel` holds `vmlinuz`, `config`, `vmlinux.btf`, `root/lib/modules/RELEASE` (if there are
modules) and `provenance.json`. Small pointer files map what a user types to an entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cache import Cache, digest
from harness.errors import HostError, KernrigError
from harness.kernels.config import KernelConfig
from harness.kernels.kernel import Kernel, Provenance

KIND = "kernel"
# Part of every key: a change to what an entry holds makes new entries.
LAYOUT = "1"


@dataclass(frozen=True)
class Parts:
    """What an entry is made from: files anywhere on the host. `config` is its text, None to look inside the
    kernel.

    `modules` must lie in the entry already, as `root/lib/modules/RELEASE`, or be None.
    """

    vmlinuz: Path
    config: str | None
    package: str
    version: str
    source: str
    suites: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def modules_folder(entry: Path, release: str) -> Path:
    """Where the modules of an entry lie: the content of `lib/modules/RELEASE`."""
    return entry / "root" / "lib" / "modules" / release


def write(entry: Path, parts: Parts) -> None:
    """Fill an entry. Raises KernrigError for a file that is no kernel, or a kernel that cannot run
    scenarios."""
    from harness.kernels import vmlinux

    image = vmlinux.identify(parts.vmlinuz)
    elf = vmlinux.vmlinux(image)
    (entry / "vmlinux.btf").write_bytes(vmlinux.btf(elf, parts.vmlinuz))
    config = parts.config if parts.config is not None else vmlinux.embedded_config(elf)
    if config is None:
        raise KernrigError(
            f"no configuration found for the kernel {parts.vmlinuz} (release {image.release})",
            hint=f"put it beside the kernel as config-{image.release} or .config, or build the kernel with "
            "CONFIG_IKCONFIG=y",
        )
    _check_config(KernelConfig.parse(config), parts.vmlinuz)
    (entry / "config").write_text(config, encoding="utf-8")
    _place(parts.vmlinuz, entry / "vmlinuz")
    modules: Path | None = None
    if (trees := entry / "root" / "lib" / "modules").is_dir():
        modules = modules_folder(entry, image.release)
        if not modules.is_dir():
            there = ", ".join(sorted(path.name for path in trees.iterdir())) or "none"
            raise KernrigError(
                f"the kernel {parts.vmlinuz} is {image.release}, but the modules are for: {there}",
                hint="kernel and modules must come from the same build",
            )
        _depmod(entry / "root", image.release)
    with (entry / "vmlinuz").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    contents: list[Path | str] = [entry / "vmlinuz", entry / "config", LAYOUT]
    if modules is not None:
        contents.append(modules)
    provenance = Provenance(parts.source, parts.package, parts.version, sha256, parts.suites, parts.parts)
    about = {
        "release": image.release,
        "digest": digest(*contents),
        "modules": digest("none" if modules is None else modules),
        "provenance": asdict(provenance),
    }
    (entry / "provenance.json").write_text(json.dumps(about, indent=1))


def load(entry: Path, name: str) -> Kernel:
    """The kernel in an entry, under the name that was asked for."""
    about = json.loads((entry / "provenance.json").read_bytes())
    release = about["release"]
    told = about["provenance"]
    modules = modules_folder(entry, release)
    return Kernel(
        name=name,
        release=release,
        vmlinuz=entry / "vmlinuz",
        modules=modules if modules.is_dir() else None,
        btf=entry / "vmlinux.btf",
        digest=about["digest"],
        provenance=Provenance(
            told["source"],
            told["package"],
            told["version"],
            told["sha256"],
            tuple(told["suites"]),
            tuple(told["parts"]),
        ),
        config=KernelConfig.read(entry / "config"),
        modules_digest=about.get("modules", ""),
        headers_digest=about.get("headers", ""),
    )


def note_headers(entry: Path, headers_digest: str) -> None:
    """Add to an entry that was written what its headers are told apart by."""
    path = entry / "provenance.json"
    about = json.loads(path.read_bytes())
    path.write_text(json.dumps(about | {"headers": headers_digest}, indent=1))


@dataclass(frozen=True)
class Pointer:
    """The entry that a name stood for `age_s` seconds ago."""

    key: str
    age_s: float


def point(cache: Cache, name: str, key: str) -> None:
    """Remember that `name` stands for the entry `key`, as of now."""
    path = _pointer_path(cache, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"name": name, "key": key, "time": time.time()}, file)
        Path(new).replace(path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


def pointer(cache: Cache, name: str) -> Pointer | None:
    """What `point` remembered, or None. A clock that was set back makes the pointer old, not young for
    years."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(_pointer_path(cache, name).read_bytes())
        if told["name"] == name:
            age = time.time() - float(told["time"])
            return Pointer(str(told["key"]), age if age >= 0 else float("inf"))
    return None


def _pointer_path(cache: Cache, name: str) -> Path:
    return cache.root / "state" / "kernel-names" / f"{digest(name)}.json"


def _check_config(config: KernelConfig, path: Path) -> None:
    if not config.builtin("CONFIG_BLK_DEV_INITRD"):
        raise KernrigError(
            f"the kernel {path} has no initramfs support, and the initramfs is the scenarios' whole root",
            hint="build it with CONFIG_BLK_DEV_INITRD=y",
        )


def _place(source: Path, target: Path) -> None:
    """Copy, or move when the source lies in the entry already."""
    if source.is_relative_to(target.parent):
        source.rename(target)
    else:
        shutil.copyfile(source, target)


def _depmod(root: Path, release: str) -> None:
    """Index the modules below `root` once, as facts of the tree: without it the guest's modprobe finds
    nothing."""
    program = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise HostError("depmod is not installed", hint="apt-get install kmod")
    # kmod 33 and newer can be built to look in usr/lib/modules instead.
    (root / "usr").mkdir(exist_ok=True)
    (root / "usr" / "lib").symlink_to("../lib")
    done = subprocess.run(
        [program, "-b", str(root), release], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise KernrigError(f"depmod failed on the modules of {release}: {done.stderr.strip()}")
