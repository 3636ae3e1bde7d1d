# SPDX-License-Identifier: MIT
"""Kernel modules in the guest: load, unload with the kernel's own answer, state and reference counts."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError
from harness.guest.waiting import slow_factor, wait_until

# finit_module and delete_module have no wrapper in glibc's headers; numbers from the kernel's syscall tables.
SYSCALLS = {
    "x86_64": {"finit_module": 313, "delete_module": 176},
    "aarch64": {"finit_module": 273, "delete_module": 106},
}

MODULE_INIT_COMPRESSED_FILE = 4

PROC_MODULES = Path("/proc/modules")
SYS_MODULE = Path("/sys/module")


@dataclass(frozen=True)
class Module:
    """One line of /proc/modules (kernel/module/procfs.c:m_show).

    `refcount` is None when the kernel can't unload modules; `state` is "Live", "Loading" or "Unloading";
    `used_by` are the modules that hold it, with "[permanent]" for one that has no exit function.
    """

    name: str
    size_bytes: int
    refcount: int | None
    used_by: tuple[str, ...]
    state: str
    taint: str


def module_name(name: str) -> str:
    """The name as the kernel knows it: a file name's dashes are underscores there."""
    return name.replace("-", "_")


def directory() -> Path:
    """The directory of kernrig's own test modules: KERNRIG_MODULES, or /opt/kernrig/modules."""
    return Path(os.environ.get("KERNRIG_MODULES") or "/opt/kernrig/modules")


def path_of(name: str) -> Path:
    """The file of the test module `name`. Raises `KernrigError`, which lists what there is."""
    path = directory() / f"{name}.ko"
    if not path.exists():
        there = sorted(p.stem for p in directory().glob("*.ko"))
        raise KernrigError(
            f"test module {name}: no file {path}",
            hint=f"in {directory()} there are: {', '.join(there) if there else 'no modules'}",
        )
    return path


def parse_modules(text: str) -> list[Module]:
    """The modules in a /proc/modules text, in its order (the last loaded first)."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        refcount = None if fields[2] == "-" else int(fields[2])
        used_by = () if fields[3] == "-" else tuple(u for u in fields[3].split(",") if u)
        taint = fields[6].strip("()") if len(fields) > 6 else ""
        found.append(Module(fields[0], int(fields[1]), refcount, used_by, fields[4], taint))
    return found


def loaded() -> list[Module]:
    """All loaded modules, the last loaded first; an empty list where the kernel has no module support."""
    try:
        return parse_modules(PROC_MODULES.read_text())
    except FileNotFoundError:
        return []


def find(name: str) -> Module | None:
    """The loaded module `name`, or None."""
    wanted = module_name(name)
    return next((m for m in loaded() if m.name == wanted), None)


def state(name: str) -> str | None:
    """`live`, `coming` or `going` (/sys/module/NAME/initstate); None when it isn't loaded, or is built in."""
    try:
        return (SYS_MODULE / module_name(name) / "initstate").read_text().strip()
    except FileNotFoundError:
        return None


def refcount(name: str) -> int:
    """How many users the loaded module has (/sys/module/NAME/refcnt).

    It is 0 for an idle one: the kernel takes its own base reference off
    (kernel/module/main.c:module_refcount). Raises `KernrigError` when the module isn't loaded.
    """
    try:
        return int((SYS_MODULE / module_name(name) / "refcnt").read_text())
    except FileNotFoundError:
        raise KernrigError(
            f"reference count of module {name}: it is not loaded",
            hint="loaded are: " + ", ".join(m.name for m in loaded()),
        ) from None


def load(path: Path | str, params: str = "", *, flags: int = 0) -> str:
    """Load the module file `path` with finit_module(2) and return its name in the kernel.

    `params` is the parameter string ("a=1 b=2"). A compressed file (.xz, .zst, .gz) is left to the kernel to
    unpack. Raises OSError with the kernel's errno: EEXIST when it is loaded already, ENOENT for an unknown
    symbol, ENOEXEC for a wrong version magic; the reason is in the kernel log.
    """
    path = Path(path)
    if path.suffix in {".xz", ".zst", ".gz"}:
        flags |= MODULE_INIT_COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _syscall("finit_module", str(path), fd, params.encode(), flags)
    finally:
        os.close(fd)
    return module_name(path.name.partition(".ko")[0])


def load_test_module(name: str, params: str = "") -> str:
    """Load kernrig's own test module `name` (see `path_of`, `load`)."""
    return load(path_of(name), params)


def modprobe(name: str, *params: str, timeout: float = 10.0) -> None:
    """Load `name` from the kernel's module tree together with what it depends on, by kmod's modprobe.

    A module that is loaded or built in already is fine. Raises `KernrigError` with modprobe's own words when
    it can't, or when it takes longer than `timeout` native seconds.
    """
    if state(name) == "live":
        return
    command = ["modprobe", name, *params]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout * slow_factor(), check=False
        )
    except FileNotFoundError:
        raise KernrigError(f"{' '.join(command)}: there is no modprobe in this image") from None
    except subprocess.TimeoutExpired as late:
        raise KernrigError(f"{' '.join(command)} did not end within {late.timeout:.3g} s") from None
    if done.returncode:
        said = done.stderr.strip() or "no message"
        raise KernrigError(
            f"{' '.join(command)} failed with exit code {done.returncode}: {said}",
            hint=f"is the module part of the image for kernel {os.uname().release}?",
        )


def unload(name: str, *, nonblocking: bool = True, force: bool = False) -> None:
    """Unload by the raw delete_module(2), so that the caller sees the kernel's own errno as OSError.

    ENOENT: not loaded; EWOULDBLOCK: it has users, or other modules depend on it; EBUSY: it isn't live, or has
    no exit function (kernel/module/main.c:delete_module). No kernel since 3.13 waits for users, whatever
    `nonblocking` says. `force` adds O_TRUNC, which taints the kernel.
    """
    flags = (os.O_NONBLOCK if nonblocking else 0) | (os.O_TRUNC if force else 0)
    _syscall("delete_module", module_name(name), module_name(name).encode(), flags)


def unload_when_unused(name: str, *, timeout: float = 2.0) -> None:
    """Unload as soon as the reference count allows it, for references that are dropped in the background.

    Raises `WaitTimeout` with the last reference count when users remain, OSError for any errno but
    EWOULDBLOCK.
    """

    def attempt() -> bool:
        try:
            unload(name)
        except OSError as refused:
            if refused.errno == errno.EWOULDBLOCK:
                return False
            raise
        return True

    wait_until(attempt, timeout=timeout, what=f"module {name} to have no users, so that it can be unloaded")


def _syscall(name: str, subject: str, *arguments: int | bytes) -> None:
    machine = os.uname().machine
    try:
        number = SYSCALLS[machine][name]
    except KeyError:
        raise KernrigError(f"{name}: no system call number known for {machine}") from None
    libc = ctypes.CDLL(None, use_errno=True)
    packed = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    if libc.syscall(ctypes.c_long(number), *packed) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", subject)
