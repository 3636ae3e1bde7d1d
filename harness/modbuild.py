# SPDX-License-Identifier: MIT
"""Build kernrig's own test modules (`images/modules`) for one kernel, out of tree, against its headers.

Debian's headers packages expect to lie in /usr/src and to run on the release they come from. Neither is so
here: kbuild is started from the shared makefile directly, in a directory that mirrors the headers by links,
with copies of kbuild's programs that run on the kernel's own toolchain (harness/toolchain.py). Nothing on the
host is installed or changed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness import host
from harness.cache import Cache, Say, digest
from harness.errors import HostError, KernrigError
from harness.kernels import Headers, Kernel

if TYPE_CHECKING:
    from harness.toolchain import Toolchain

KIND = "test-modules"
SOURCES = Path(__file__).resolve().parent.parent / "images" / "modules"
# Part of every key: a change to how modules are built makes new ones.
RECIPE = "2"

_BUILD_TIMEOUT_S = 600.0
_LOG_LINES = 20
_RESOLVE_BTFIDS = Path("tools/bpf/resolve_btfids/resolve_btfids")
# Stands in what would otherwise tell time, user and host of the build.
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "kernrig",
    "KBUILD_BUILD_HOST": "kernrig",
}
# A module from outside the tree would bring a copy of what it uses of the kernel's types (.BTF.base), for kernels
# other than its own. pahole made it first, resolve_btfids does since 7.0 (scripts/Makefile.btf).
_SPLIT_FROM_VMLINUX = ("MODULE_PAHOLE_FLAGS=", "RESOLVE_BTFIDS_FLAGS=")


@dataclass(frozen=True)
class Modules:
    """The test modules of one kernel: `directory` holds a NAME.ko each; `digest` changes when they may."""

    directory: Path
    digest: str

    @cached_property
    def files(self) -> dict[str, Path]:
        """The module files by module name, sorted. Kernels before 6.9 have no kr_ops."""
        return {path.stem: path for path in sorted(self.directory.glob("*.ko"))}


def build_modules(kernel: Kernel, *, cache: Cache, say: Say | None = None) -> Modules:
    """The test modules for `kernel`, built when they are not in the cache; then headers and toolchain are
    fetched as needed.

    Raises KernrigError when the kernel has no headers, when the build fails (with the end of its output), or
    when a module came out without BTF or for another kernel.
    """
    sources = _sources(SOURCES)
    key = digest(
        RECIPE,
        kernel.release,
        kernel.headers_digest,
        *(part for path in sources for part in (path.name, path)),
    )

    def make(entry: Path) -> None:
        headers = kernel.headers(cache, say)
        toolchain = _toolchain(kernel, headers, cache=cache, say=say)
        if say is not None:
            say(f"building test modules for {kernel.release}")
        _build(kernel, headers, toolchain, sources, entry)

    return Modules(cache.build(KIND, key, make, say=say), key)


def _sources(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.name == "Kbuild" or path.suffix in (".c", ".h"))
    if not found:
        raise KernrigError(f"there are no sources of test modules in {folder}")
    return found


def _toolchain(kernel: Kernel, headers: Headers, *, cache: Cache, say: Say | None) -> Toolchain | None:
    """Debian's own for its packages; None, meaning the host's, for a kernel that was built on the host."""
    if headers.root == headers.build:
        return None
    version = kernel.config.get("CONFIG_GCC_VERSION", "0")
    releases = [suite.partition("-")[0] for suite in kernel.provenance.suites]
    if not releases or not version.isdigit() or int(version) < 10000:
        raise KernrigError(
            f"what {kernel.release} was built with is unknown: suites {releases or 'none'}, gcc {version}",
            hint="`kernrig kernel fetch` takes Debian's current version",
        )
    # Imported here, as below: most runs find the modules in the cache.
    from harness.toolchain import debian_toolchain

    release = "sid" if releases[0] == "experimental" else releases[0]
    return debian_toolchain(release, int(version) // 10000, cache=cache, say=say)


def _build(
    kernel: Kernel, headers: Headers, toolchain: Toolchain | None, sources: Sequence[Path], entry: Path
) -> None:
    from harness import btfids
    from harness.splitbtf import Btf

    make = host.which("make")
    if make is None:
        raise HostError("building the test modules needs make", hint="apt-get install make")
    # Beside the result rather than in /tmp, from which some hosts let no program run.
    with tempfile.TemporaryDirectory(prefix=".work-", dir=entry) as folder:
        work = Path(folder).resolve()
        source = work / "modules"
        source.mkdir()
        for path in sources:
            shutil.copyfile(path, source / path.name)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work), "LC_ALL": "C.UTF-8"}
        command = [str(make), f"-j{os.cpu_count() or 1}", f"M={source}"]
        # Warnings and the build id tell files and folders: they must not be where this happened to run.
        folders = {work: "/kernrig", headers.root.resolve(): "/headers"}
        command += [
            "KCFLAGS=" + " ".join(f"-ffile-prefix-map={path}={name}" for path, name in folders.items()),
            *(f"{k}={v}" for k, v in _REPRODUCIBLE.items()),
            *_SPLIT_FROM_VMLINUX,
        ]
        strip = "strip"
        resolves_itself = True
        if toolchain is None:
            command += ["-C", str(headers.build)]
            if "CONFIG_CC_IS_CLANG" in kernel.config:
                command.append("LLVM=1")
        else:
            build = work / "build"
            kbuild = mirror(headers, build, kernel.btf)
            for name in ("scripts", "tools"):
                toolchain.wrap(build / name)
            resolves_itself = (kbuild / _RESOLVE_BTFIDS).exists()
            if not resolves_itself:
                command.append("RESOLVE_BTFIDS=:")
            command += ["-C", str(build), "-f", str(shared_makefile(headers)), f"KBUILD_OUTPUT={build}"]
            command += ["DEB_BUILD_ARCH=amd64", "DEB_HOST_ARCH=amd64"]
            environment["PATH"] = f"{toolchain.bin}:{environment['PATH']}"
            strip = str(toolchain.bin / "x86_64-linux-gnu-strip")
        _run([*command, "modules"], environment, what=f"building test modules for {kernel.release}")
        built = sorted(source.glob("*.ko"))
        vmlinux = Btf(kernel.btf.read_bytes())
        for path in built:
            btfids.share(path, vmlinux)
            if not resolves_itself:
                btfids.resolve(path, vmlinux)
            check(path, kernel.release)
            # Debugging information is most of the size, and each scenario's clone gets the file sent.
            _run([strip, "--strip-debug", str(path)], environment, what=f"stripping {path.name}")
            shutil.copyfile(path, entry / path.name)
    if not built:
        raise KernrigError(f"building test modules for {kernel.release} gave no module")


def shared_makefile(headers: Headers) -> Path:
    """The makefile in linux-headers-VERSION-common that the headers' own includes by its absolute path."""
    text = (headers.build / "Makefile").read_text()
    match = re.search(r"^include /(\S+)$", text, re.MULTILINE)
    if match is None or not (headers.root / match[1]).exists():
        raise KernrigError(
            f"the headers of {headers.release} are laid out in an unknown way: {headers.build}/Makefile "
            f"includes {match[1] if match else 'nothing'}",
            hint="Debian may have changed its packaging; take another version of the kernel",
        )
    return headers.root / match[1]


def mirror(headers: Headers, build: Path, btf: Path) -> Path:
    """Make `build` look like the headers' build directory: links to its files, but copies of `scripts` and
    `tools`, whose programs are to be wrapped.

    Where the headers have no `vmlinux` (before 6.12), `btf` takes its place: only its types are used. Returns
    the linux-kbuild directory. Raises KernrigError when there is none.
    """
    kbuild = next(iter(sorted(headers.root.glob("usr/lib/linux-kbuild-*"))), None)
    if kbuild is None:
        raise KernrigError(f"the headers of {headers.release} come without linux-kbuild, in {headers.root}")
    build.mkdir()
    for path in headers.build.iterdir():
        if path.name not in ("Makefile", "scripts", "tools"):
            (build / path.name).symlink_to(path.resolve())
    for name in ("scripts", "tools"):
        shutil.copytree(kbuild / name, build / name, symlinks=True)
    if not (build / "vmlinux").exists():
        (build / "vmlinux").symlink_to(btf.resolve())
    return kbuild


def check(path: Path, release: str) -> None:
    """Raise KernrigError unless the module is made for `release` and its BTF ids are filled in."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            sections = {name: elf.get_section_by_name(name) for name in (".BTF_ids", ".modinfo")}
            contents = {name: section.data() if section else b"" for name, section in sections.items()}
    except ELFError as error:
        raise KernrigError(f"{path.name} is no kernel module: {error}") from error
    magic = next((each for each in contents[".modinfo"].split(b"\0") if each.startswith(b"vermagic=")), b"")
    made_for = magic.partition(b"=")[2].split(b" ")[0].decode()
    if made_for != release:
        raise KernrigError(
            f"{path.name} was built for {made_for or 'an unknown kernel'} instead of {release}"
        )
    if contents[".BTF_ids"] and not any(contents[".BTF_ids"]):
        raise KernrigError(f"the BTF ids of {path.name} were not filled in: resolve_btfids did not run")


def _run(command: Sequence[str], environment: dict[str, str], *, what: str) -> None:
    """Run a program in a process group of its own, which ends when this function does."""
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(
            f"{what} failed: {command[0]} cannot be run: {error}", hint="apt-get install make binutils"
        ) from error
    with process:
        try:
            log, _ = process.communicate(timeout=_BUILD_TIMEOUT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise KernrigError(f"{what} took more than {_BUILD_TIMEOUT_S:.0f} s") from error
            raise
    if process.returncode:
        tail = "".join(f"\n  {line}" for line in log.strip().splitlines()[-_LOG_LINES:])
        raise KernrigError(
            f"{what} failed: {Path(command[0]).name} ended with status {process.returncode}{tail}",
            hint="is the cache directory mounted noexec, or its path one with spaces?"
            if re.search(r"Permission denied|contain spaces", log)
            else None,
        )
