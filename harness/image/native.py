# SPDX-License-Identifier: MIT
"""Compile images/native/*.c to the small shared objects that the guest preloads; they need no C library."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.errors import HostError, KernrigError
from harness.host import which

DIRECTORY = "usr/lib/kernrig"
_FLAGS = ("-O2", "-shared", "-fPIC", "-nostdlib", "-fno-stack-protector", "-s", "-Wl,--build-id=none")


def sources(folder: Path) -> tuple[Path, ...]:
    """The C files, sorted."""
    return tuple(sorted(folder.glob("*.c")))


def install(folder: Path, top: Path) -> None:
    """Compile each source into `top`/usr/lib/kernrig/NAME.so. Raises KernrigError with the compiler's words."""
    compiler = which("gcc")
    if compiler is None:
        raise HostError("gcc is not on this host; the image needs it.", hint="apt-get install gcc")
    target = top / DIRECTORY
    target.mkdir(parents=True, exist_ok=True)
    for source in sources(folder):
        command = [str(compiler), *_FLAGS, "-o", str(target / f"{source.stem}.so"), source.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise KernrigError(f"{source} does not compile:\n{done.stderr.strip()}")
