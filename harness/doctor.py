# SPDX-License-Identifier: MIT
"""What the host has, what it lacks, and what to do about it: the rows of `kernrig doctor`.

Each row comes from a function of plain values, so that every verdict can be had on any host.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from harness import host
from harness.cache import Cache, Entry
from harness.errors import HostError, KernrigError

KVM = Path("/dev/kvm")
MIB = 1 << 20
GIB = 1 << 30
# One machine of the default shape with QEMU's own needs; eight of them at once.
MEMORY_NEEDED = GIB
MEMORY_COMFORTABLE = 4 * GIB
# A kernel package with its image and template; several kernels side by side.
DISK_NEEDED = 2 * GIB
DISK_COMFORTABLE = 8 * GIB


class State(Enum):
    """How a row stands: `WARN` hampers, `MISSING` prevents."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Report:
    """All that was looked at, in the order in which it matters."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that is needed is missing (warnings are allowed)."""
        return all(row.state is not State.MISSING for row in self.rows)


def system_row(here: host.Distribution) -> Row:
    """The distribution: set-up can install what is missing on Debian 12 and 13 only."""
    if here.is_debian and (here.codename in ("bookworm", "trixie") or not here.version):
        return Row("system", State.OK, str(here))
    return Row(
        "system",
        State.WARN,
        f"{here or 'unknown'}: not Debian 12 or 13",
        "what the rows below call missing has to be installed by hand",
    )


def machine_row(machine: str) -> Row:
    """The processor architecture: guests are x86-64, whose BPF objects and modules are built on the host."""
    if machine == "x86_64":
        return Row("machine", State.OK, machine)
    return Row("machine", State.MISSING, f"{machine}, not x86_64", "run kernrig on an x86-64 host")


def python_row(version: tuple[int, int, int]) -> Row:
    """The interpreter that runs kernrig."""
    text = ".".join(map(str, version))
    if version >= (3, 11, 0):
        return Row("python", State.OK, text)
    return Row(
        "python",
        State.MISSING,
        f"{text} is older than 3.11",
        "make setup PYTHON=<path of a newer one>",
    )


def qemu_row(setting: str | None) -> Row:
    """QEMU's version and path; MISSING, with the reason, when there is none or it is too old."""
    try:
        return Row("qemu", State.OK, str(host.find_qemu(setting)))
    except HostError as error:
        return Row("qemu", State.MISSING, error.what, error.hint)


def need_row(need: host.Need) -> Row:
    """A command or file that comes with a host package."""
    found = need.find()
    if found is not None:
        return Row(need.name, State.OK, str(found))
    return Row(
        need.name,
        State.MISSING,
        f"not found; {need.why}",
        f"make setup, or as root: apt-get install {need.package}",
    )


def mirror_row(mirror: str | None, setting: str | None) -> Row:
    """Where Debian's packages come from: kernels and the guest's programs."""
    if mirror is not None:
        return Row("mirror", State.OK, mirror + (" (KERNRIG_MIRROR)" if setting else " (from apt's sources)"))
    return Row(
        "mirror",
        State.MISSING,
        "apt's sources name no Debian archive",
        "KERNRIG_MIRROR=<address of a Debian mirror>, or add one to apt's sources and run apt-get update",
    )


def memory_row(available: int, total: int) -> Row:
    """Memory in bytes: how much machines may take."""
    detail = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < MEMORY_NEEDED:
        return Row(
            "memory", State.MISSING, detail, f"free some: a machine needs {MEMORY_NEEDED / GIB:.0f} GiB"
        )
    if available < MEMORY_COMFORTABLE:
        return Row("memory", State.WARN, detail, "fewer machines will run at once; use a smaller -n")
    return Row("memory", State.OK, detail)


def disk_row(folder: Path, free: int) -> Row:
    """Free bytes where caches are kept."""
    detail = f"{free / GIB:.1f} GiB free in {folder}"
    remedy = "kernrig clean, or KERNRIG_CACHE=<folder on a larger disk>"
    if free < DISK_NEEDED:
        return Row("disk", State.MISSING, f"{detail}; a kernel takes {DISK_NEEDED / GIB:.0f} GiB", remedy)
    if free < DISK_COMFORTABLE:
        return Row("disk", State.WARN, detail, remedy)
    return Row("disk", State.OK, detail)


def cache_row(root: Path, entries: Sequence[Entry]) -> Row:
    """How much the caches hold."""
    size = sum(entry.size_bytes for entry in entries)
    kinds = sorted({entry.kind for entry in entries})
    detail = f"{size / MIB:.0f} MiB in {root}"
    if kinds:
        detail += f" ({', '.join(kinds)})"
    return Row("cache", State.OK, detail)


def kvm_row(device: Path) -> Row:
    """The state of /dev/kvm. That it opens proves nothing; the accelerator's row says what a boot proved."""
    if not device.exists():
        return Row("kvm", State.OK, f"no {device}: machines run under TCG, which is slower but complete")
    if not os.access(device, os.R_OK | os.W_OK):
        return Row(
            "kvm",
            State.WARN,
            f"{device} is not yours to open: machines run under TCG",
            "as root: usermod -aG kvm $USER, then log in again",
        )
    return Row("kvm", State.OK, f"{device} opens; whether it works is proved by booting")


def existing_parent(path: Path) -> Path:
    """`path` itself or its nearest parent that exists: where its disk space would come from."""
    return next(p for p in (path, *path.parents) if p.exists())


def check(
    *,
    qemu: str | None = None,
    cache: Cache | None = None,
    accelerator: Callable[[], tuple[str, str]] | None = None,
) -> Report:
    """Look at the host.

    `qemu` is the setting of --kr-qemu. `accelerator` returns the choice and its reason; it may boot a
    machine, so it is asked only when nothing is missing.
    """
    here = host.distribution()
    cache = cache or Cache.default()
    memory = psutil.virtual_memory()
    mirror = host.debian_mirror(host.apt_sources(), here.codename)
    rows = [
        system_row(here),
        machine_row(platform.machine()),
        python_row(sys.version_info[:3]),
        qemu_row(qemu),
        *(need_row(need) for need in host.NEEDS),
        mirror_row(mirror, os.environ.get("KERNRIG_MIRROR")),
        memory_row(memory.available, memory.total),
        disk_row(cache.root, shutil.disk_usage(existing_parent(cache.root)).free),
        cache_row(cache.root, cache.entries()),
        kvm_row(KVM),
    ]
    if accelerator is not None and Report(tuple(rows)).ok:
        rows.append(accelerator_row(accelerator))
    return Report(tuple(rows))


def accelerator_row(choose: Callable[[], tuple[str, str]]) -> Row:
    """Which accelerator machines get and why; MISSING when not even TCG boots."""
    try:
        name, reason = choose()
    except KernrigError as error:
        return Row("accelerator", State.MISSING, error.what, error.hint)
    return Row("accelerator", State.OK, f"{name}: {reason}")


def render(report: Report) -> str:
    """The report as lines for a terminal: one per row, its remedy below, and a closing line."""
    width = max((len(row.name) for row in report.rows), default=0)
    lines = []
    for row in report.rows:
        lines.append(f"{row.state.value:<8}{row.name:<{width}}  {row.detail}")
        if row.remedy is not None:
            indent = " " * (width + 10)
            lines.append(textwrap.indent(f"-> {row.remedy}", indent))
    missing = [row.name for row in report.rows if row.state is State.MISSING]
    lines.append(f"missing: {', '.join(missing)}" if missing else "this host can run kernrig")
    return "\n".join(lines)
