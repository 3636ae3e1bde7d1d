# SPDX-License-Identifier: MIT
"""The values that describe a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.kernels.config import KernelConfig

if TYPE_CHECKING:
    from harness.cache import Cache


@dataclass(frozen=True)
class Provenance:
    """Where a kernel comes from.

    `source` is `debian`, `local` or `source` (built here), `package` the Debian image package or the path or
    name that was given, `version` the Debian version, the kernel's release or the tree's commit, `sha256` the
    checksum of the bzImage. `suites` are Debian's suites that had it when it was fetched, `parts` the files it
    was made from, each as `SHA256 NAME`.
    """

    source: str
    package: str
    version: str
    sha256: str
    suites: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headers:
    """What modules are built against. `build` is the directory for `make -C` (it has `Makefile`, `.config`
    and `Module.symvers`); it lies in `root`.

    Debian's packages are unpacked into `root` as they are: `usr/src/linux-headers-RELEASE` (= `build`),
    `usr/src/linux-headers-*-common` and `usr/lib/linux-kbuild-*`. Their makefiles and links name each other
    by absolute paths (`/usr/src`, `/usr/lib`), which nothing here rewrites; the programs in
    `linux-kbuild-*` need the libc of their suite (trixie's `resolve_btfids`: glibc 2.38), which an older
    host lacks. For a kernel tree `root == build`.
    """

    root: Path
    build: Path
    release: str


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to boot: all files lie in the cache and do not change.

    `name` is what the user asked for, `release` what `uname -r` says; `modules` is the directory whose
    content is that of `lib/modules/RELEASE`, with `depmod`'s indexes, or None when there are none; `btf`
    holds the raw BTF of vmlinux; `digest` changes when the bzImage, a module or the configuration does.

    `modules_digest` changes when a module does, `headers_digest` when a module that is built against its headers may:
    neighbours in a tree's history mostly share both. Either is `digest` where nothing finer is known.
    """

    name: str
    release: str
    vmlinuz: Path
    modules: Path | None
    btf: Path
    digest: str
    provenance: Provenance
    config: KernelConfig = field(compare=False, repr=False)
    modules_digest: str = ""
    headers_digest: str = ""

    def __post_init__(self) -> None:
        for name in ("modules_digest", "headers_digest"):
            if not getattr(self, name):
                object.__setattr__(self, name, self.digest)

    @property
    def vmlinux(self) -> Path | None:
        """vmlinux with symbols and line numbers, for gdb and for splats; None for a kernel that was not built here."""
        path = self.vmlinuz.with_name("vmlinux")
        return path if path.exists() else None

    @property
    def coverage(self) -> Path | None:
        """What reading the counters of its lines needs (harness/kernels/source/profile.py); None where it has none."""
        path = self.vmlinuz.with_name("coverage")
        return path if path.is_dir() else None

    def headers(self, cache: Cache, say: Callable[[str], None] | None = None) -> Headers:
        """What is needed to build modules for this kernel, fetched when it is not in the cache.

        Raises KernrigError when there is none.
        """
        if self.provenance.source == "debian":
            from harness.kernels import debian

            return debian.headers(self, cache=cache, say=say)
        if self.provenance.source == "source":
            from harness.kernels import source

            return source.headers(self, cache=cache, say=say)
        from harness.kernels import local

        return local.headers(self)


@dataclass(frozen=True)
class AvailableKernel:
    """One kernel that a name can stand for. `incomplete` says why it cannot be used, None if it can;
    `fetched` whether it is in the cache already; `name` is the exact name that selects it."""

    name: str
    release: str
    version: str
    suites: tuple[str, ...]
    incomplete: str | None
    fetched: bool
