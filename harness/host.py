# SPDX-License-Identifier: MIT
"""What the host must have: packages, a QEMU that can be trusted, an apt mirror.

Standard library only: `harness/bootstrap.py` imports this before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError

QEMU_COMMAND = "qemu-system-x86_64"
QEMU_MINIMUM = (10, 0, 0)
QEMU_PACKAGE = "qemu-system-x86"
QEMU_TOO_OLD = (
    "older releases corrupt guests with more than one CPU under TCG (7.2 panicked or hung most boots), "
    "which would be blamed on the kernel under test"
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A user's PATH often lacks the sbin folders, where depmod and friends live.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Need:
    """One thing kernrig uses on the host: a command or a file, the Debian package that brings it, and why."""

    name: str
    package: str
    why: str
    path: Path | None = None

    def find(self) -> Path | None:
        """Where it is (a command is searched in PATH and the sbin folders), None when it is missing."""
        if self.path is not None:
            return self.path if self.path.exists() else None
        return which(self.name)


NEEDS: tuple[Need, ...] = (
    Need("mmdebstrap", "mmdebstrap", "unpacks the guest's root file system"),
    Need("keyring", "debian-archive-keyring", "verifies what is downloaded from Debian", KEYRING),
    Need("depmod", "kmod", "indexes the guest's modules"),
    Need("clang", "clang", "compiles .bpf.c files"),
    Need("llvm-strip", "llvm", "strips what BPF objects do not need"),
    Need("bpf_helpers.h", "libbpf-dev", "included by .bpf.c files", Path("/usr/include/bpf/bpf_helpers.h")),
    Need("linux/bpf.h", "linux-libc-dev", "included by .bpf.c files", Path("/usr/include/linux/bpf.h")),
    Need("make", "make", "builds test modules"),
    # Debian's kernels bring the compiler they were built with; an own kernel was built with the host's.
    Need("gcc", "gcc", "builds test modules for your own kernels"),
    Need("ld", "binutils", "links test modules for your own kernels"),
    Need("pahole", "dwarves", "gives kernels from source and their modules their BTF"),
    Need("git", "git", "reads kernel trees"),
    Need("flex", "flex", "builds kernels from source"),
    Need("bison", "bison", "builds kernels from source"),
    Need("bc", "bc", "builds kernels from source"),
    Need("gelf.h", "libelf-dev", "builds kernels from source", Path("/usr/include/gelf.h")),
    Need("openssl/ssl.h", "libssl-dev", "builds kernels from source", Path("/usr/include/openssl/ssl.h")),
    Need("ccache", "ccache", "makes the second build of a kernel short"),
    Need("zstd", "zstd", "packs what modules are built against"),
)


@dataclass(frozen=True)
class Qemu:
    """A QEMU binary that is new enough."""

    path: Path
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.version))} ({self.path})"


@dataclass(frozen=True)
class Distribution:
    """The host's distribution, from os-release(5)."""

    id: str
    version: str
    codename: str

    @property
    def is_debian(self) -> bool:
        """Whether set-up may use apt here: Debian itself, no derivative (their package sets differ)."""
        return self.id == "debian"

    def __str__(self) -> str:
        return " ".join(part for part in (self.id, self.version, self.codename) if part)


@dataclass(frozen=True)
class AptSource:
    """One repository that the host's apt uses: address, name below dists/, and what its Release file says."""

    uri: str
    release: str
    origin: str
    label: str
    codename: str


def which(command: str) -> Path | None:
    """The full path of `command` from PATH or one of the sbin folders, None when there is none."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    found = shutil.which(command, path=path)
    return None if found is None else Path(found)


def missing_needs() -> list[Need]:
    """Those of NEEDS that are not there."""
    return [need for need in NEEDS if need.find() is None]


def distribution() -> Distribution:
    """What os-release says; all fields empty on a system without the file."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return Distribution(
        id=release.get("ID", ""),
        version=release.get("VERSION_ID", ""),
        codename=release.get("VERSION_CODENAME", ""),
    )


def qemu_version(path: Path) -> tuple[int, int, int]:
    """Major, minor and micro version that the binary at `path` reports; HostError when it reports none."""
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"{path} --version failed: {error}", hint="name another one with --kr-qemu"
        ) from error
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    if done.returncode != 0 or found is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(
            f"{path} --version ended with status {done.returncode}"
            f" and no QEMU version{f': {said[-1]}' if said else ''}",
            hint=f"name a {QEMU_COMMAND} with --kr-qemu",
        )
    major, minor, micro = found.groups(default="0")
    return int(major), int(minor), int(micro)


def find_qemu(setting: str | None = None) -> Qemu:
    """The QEMU to use: the path or command in `setting`, else the first in PATH.

    Raises HostError when there is none, or when it is older than QEMU_MINIMUM (measured with 7.2 under TCG).
    """
    wanted = setting or QEMU_COMMAND
    path = which(os.path.expanduser(wanted))  # noqa: PTH111 - a bare command must stay without a folder
    if path is None:
        raise HostError(
            f"no QEMU: {wanted} is not an executable file" + ("" if setting else " in PATH"),
            hint="give --kr-qemu the path of a QEMU 10 or newer" if setting else "make setup installs one",
        )
    version = qemu_version(path)
    if version < QEMU_MINIMUM:
        raise HostError(
            f"{path} is QEMU {'.'.join(map(str, version))}; kernrig needs {QEMU_MINIMUM[0]} or newer: "
            + QEMU_TOO_OLD,
            hint="make setup installs a newer one where Debian has it; --kr-qemu PATH names another",
        )
    return Qemu(path, version)


def _ask_apt(*words: str) -> list[str]:
    """The lines of apt-get's answer, none without apt."""
    apt = which("apt-get")
    if apt is None:
        return []
    done = subprocess.run(
        [apt, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    return done.stdout.splitlines()


def apt_sources() -> list[AptSource]:
    """The repositories the host's apt is configured for (those with a component main); empty without apt.

    Before the first `apt-get update` only address and release are known, the rest is empty: indextargets
    lists nothing then (apt-get(8)), and what update would fetch has to serve.
    """
    target = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(LABEL)|$(CODENAME)"
    lines = _ask_apt("indextargets", "--format", target, "Created-By: Packages", "Component: main")
    rows = [row for line in lines if len(row := line.split("|")) == 5]
    if not rows:
        for line in _ask_apt("update", "--print-uris"):
            found = re.match(r"'(.+/)dists/([^/']+)/InRelease'", line)
            if found:
                rows.append([found[1], found[2], "", "", ""])
    return list(dict.fromkeys(AptSource(*row) for row in rows))


def debian_mirror(sources: list[AptSource], codename: str) -> str | None:
    """The address of the Debian archive with `codename`: KERNRIG_MIRROR, else the one apt already uses."""
    setting = os.environ.get("KERNRIG_MIRROR")
    if setting:
        return setting
    labelled = [s for s in sources if (s.origin, s.label) == ("Debian", "Debian")]
    for source in labelled or [s for s in sources if not s.origin]:
        if codename in (source.codename, source.release):
            return source.uri
    return None
