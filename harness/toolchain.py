# SPDX-License-Identifier: MIT
"""The compiler, binutils and pahole that a Debian kernel was built with, usable on any x86-64 host.

The packages of the kernel's own suite are unpacked into the cache. Their programs may need a newer C library
than the host's, so each is replaced by a script that starts it through the packages' own dynamic loader: no
privilege, chroot or namespace is needed, and the modules come out the same on every host.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from debian.debian_support import Version

from harness.cache import Cache, Say, digest
from harness.errors import HostError, KernrigError
from harness.kernels.apt import PrivateApt
from harness.kernels.debian_index import Package, parse

KIND = "toolchain"
# Part of every key: a change to what an entry holds makes new entries.
LAYOUT = "1"

_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_PROGRAMS = ("usr/bin", "usr/libexec", "usr/lib/gcc")
_LOADER = "ld-linux-x86-64.so.2"
_UNPACK_TIMEOUT_S = 300.0

# Depended on, but for linking programs, documentation or configuration: a kernel module needs none of it.
_UNNEEDED = re.compile(
    r"(libgcc-\d+-dev|lib.*san\d+|libitm1|libgomp1|libatomic1|libquadmath0|libcc1-0|gcc-\d+-base|binutils|binutils-common"
    r"|libgprofng0|libc6-dev|libc-dev|debconf|debconf-2\.0|dpkg|install-info|cpp|gcc)"
)
_UNNEEDED_FILES = ("lto1", "lto-wrapper", "*lto-dump*", "g++-mapper-server", "*gcov*", "gprof*")


@dataclass(frozen=True)
class Toolchain:
    """Debian packages unpacked below `root`, made to run there."""

    root: Path

    @property
    def bin(self) -> Path:
        """The directory for PATH; programs have their Debian names (`x86_64-linux-gnu-gcc-14`, `pahole`)."""
        return self.root / "usr/bin"

    def wrap(self, folder: Path) -> list[Path]:
        """Make the programs below `folder` start through this toolchain's loader, and return them; `folder`
        must then stay where it is."""
        return wrap_programs(folder, self.root)


def debian_toolchain(release: str, gcc: int, *, cache: Cache, say: Say | None = None) -> Toolchain:
    """GCC's major version `gcc` and what belongs to it from Debian's `release` (bookworm, trixie, sid).

    Downloaded (about 45 MB) on first use. Raises KernrigError when the release has no such compiler or the
    mirror can't be reached.
    """

    def make(entry: Path) -> None:
        with cache.state("apt", say=say) as home:
            apt = PrivateApt(home, say=say)
            apt.ensure_lists()
            packages = toolchain_packages(lambda names: parse(*apt.records(list(names))), release, gcc)
            size = sum(package.size for package in packages)
            if say is not None:
                say(f"downloading gcc-{gcc}, binutils and pahole of Debian {release} ({size / 1e6:.0f} MB)")
            downloads = entry / ".downloads"
            downloads.mkdir()
            wanted = [(each.name, each.version) for each in packages]
            for archive in apt.download(wanted, downloads, size=size):
                _unpack(archive, entry)
            shutil.rmtree(downloads)
        _tidy(entry)
        for below in _PROGRAMS:
            wrap_programs(entry / below, entry)
        # The compiler looks for the assembler by its plain name.
        (entry / "usr/bin/as").symlink_to("x86_64-linux-gnu-as")

    return Toolchain(cache.build(KIND, digest(LAYOUT, release, str(gcc)), make, say=say).resolve())


def wrap_programs(folder: Path, root: Path) -> list[Path]:
    """Replace each dynamically linked program below `folder` by a script that runs it (now NAME.elf) through
    the loader below `root`. Paths in the script are relative to it, so that both can move together.

    Returns the programs, sorted; raises KernrigError when `root` has no loader.
    """
    loader = next((root / lib / _LOADER for lib in _LIBRARIES if (root / lib / _LOADER).exists()), None)
    if loader is None:
        raise KernrigError(f"there is no dynamic loader {_LOADER} in the packages unpacked in {root}")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".elf" or path.is_symlink() or not is_dynamic_program(path):
            continue
        program = path.with_name(path.name + ".elf")
        path.rename(program)
        here = path.parent
        libraries = ":".join(f"$here/{os.path.relpath(root / lib, here)}" for lib in _LIBRARIES)
        path.write_text(
            "#!/bin/sh\n"
            "here=${0%/*}\n"
            f'exec "$here/{os.path.relpath(loader, here)}" --library-path "{libraries}"'
            f' --argv0 "$0" "$here/{program.name}" "$@"\n'
        )
        path.chmod(0o755)
        found.append(path)
    return found


def is_dynamic_program(path: Path) -> bool:
    """Whether `path` is a 64-bit little-endian ELF file with a PT_INTERP segment, elf(5)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
    return any(
        struct.unpack_from("<I", table, i * size)[0] == 3 for i in range(len(table) // size if size else 0)
    )


def toolchain_packages(
    offered: Callable[[Iterable[str]], Iterable[Package]], release: str, gcc: int
) -> list[Package]:
    """GCC `gcc`, binutils, pahole and what they need, sorted by name, in `release`'s newest versions.

    `offered` returns all versions of the named packages in all suites. Raises KernrigError when the release
    lacks the compiler.
    """
    suites = {release, f"{release}-updates", f"{release}-security"}

    def newest(names: Iterable[str]) -> dict[str, Package]:
        fitting = [each for each in offered(sorted(names)) if suites & set(each.suites)]
        return {each.name: each for each in sorted(fitting, key=lambda each: Version(each.version))}

    # Since trixie the compiler proper lies in a package of its own.
    names = (f"gcc-{gcc}-x86-64-linux-gnu", f"gcc-{gcc}")
    compilers = newest(names)
    compiler = next((compilers[name] for name in names if name in compilers), None)
    if compiler is None:
        raise KernrigError(
            f"Debian {release} has no gcc-{gcc}, which the kernel was built with",
            hint="take the kernel's current version: `kernrig kernel list` shows it",
        )
    found = {compiler.name: compiler}
    wanted = {*_needs(compiler), "binutils-x86-64-linux-gnu", "pahole", "libc6", "zlib1g"}
    while missing := {name for name in wanted if name not in found and not _UNNEEDED.fullmatch(name)}:
        level = newest(missing)
        # What is in no list is virtual, and nothing virtual is needed here.
        found.update(level)
        wanted = {name for package in level.values() for name in _needs(package)}
    return sorted(found.values(), key=lambda package: package.name)


def _needs(package: Package) -> list[str]:
    return [choice[0].name for choice in package.depends]


def _unpack(archive: Path, into: Path) -> None:
    command = ["dpkg-deb", "--extract", str(archive), str(into)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_UNPACK_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise HostError("unpacking a Debian package failed: there is no dpkg-deb on this host") from error
    except subprocess.TimeoutExpired as error:
        raise KernrigError(f"unpacking {archive.name} took more than {_UNPACK_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise KernrigError(
            f"unpacking {archive.name} failed: {done.stderr.strip()}", hint="is the disk full?"
        )


def _tidy(root: Path) -> None:
    shutil.rmtree(root / "usr/share", ignore_errors=True)
    shutil.rmtree(root / "etc", ignore_errors=True)
    for pattern in _UNNEEDED_FILES:
        for path in root.glob(f"usr/**/{pattern}"):
            if not path.is_dir():
                path.unlink()
