# SPDX-License-Identifier: MIT
"""Compile the .bpf.c files beside the scenarios, once per content; CO-RE fits them to each kernel in the guest."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache as remember
from pathlib import Path

from harness.cache import Cache, digest
from harness.errors import HostError, KernrigError

KIND = "bpf-object"
_FLAGS = ("-target", "bpf", "-g", "-O2", "-mcpu=v3", "-Wall", "-Werror", "-D__TARGET_ARCH_x86")
_TIMEOUT_SECONDS = 120


@remember
def _clang() -> tuple[str, str]:
    """clang's path and version."""
    path = shutil.which("clang")
    if path is None:
        raise HostError("clang is not on this host; it compiles .bpf.c files.", hint="apt-get install clang")
    version = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    return path, version.splitlines()[0]


def compile_objects(
    files: Mapping[str, Path | bytes], *, cache: Cache, say: Callable[[str], None]
) -> dict[str, Path | bytes]:
    """The objects for all `*.bpf.c` among the files of a tree, by the name NAME.bpf.o in the same place.

    Headers (`*.h`) anywhere in the tree are part of each object's key; the folder of a source and its parents up to
    the tree's top are searched for them. Raises KernrigError with clang's words when a file does not compile.
    """
    sources = {
        name: path for name, path in files.items() if name.endswith(".bpf.c") and isinstance(path, Path)
    }
    headers = [path for name, path in sorted(files.items()) if name.endswith(".h") and isinstance(path, Path)]
    objects: dict[str, Path | bytes] = {}
    for name, source in sorted(sources.items()):
        folders = [source.parents[depth] for depth in range(len(Path(name).parts) - 1)]
        multiarch = Path("/usr/include/x86_64-linux-gnu")
        includes = [word for folder in (*folders, multiarch) for word in ("-idirafter", str(folder))]

        def make(
            entry: Path, source: Path = source, includes: list[str] = includes, name: str = name
        ) -> None:
            say(f"compiling {name}")
            _compile(source, includes, entry / "object.bpf.o")

        key = digest(*_FLAGS, str(_clang_stamp()), *headers, source, name)
        objects[name.removesuffix(".c") + ".o"] = cache.build(KIND, key, make, say=say) / "object.bpf.o"
    return objects


def _clang_stamp() -> int:
    """Changes with the compiler, without starting it."""
    path = shutil.which("clang")
    return Path(path).resolve().stat().st_mtime_ns if path else 0


def _compile(source: Path, includes: list[str], target: Path) -> None:
    clang, _ = _clang()
    command = [clang, *_FLAGS, *includes, "-fdebug-compilation-dir=.", "-c", str(source), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise KernrigError(f"clang took more than {_TIMEOUT_SECONDS} s for {source}.") from error
    if done.returncode != 0:
        raise KernrigError(f"{source} does not compile:\n{done.stderr.strip()}", hint="mend the file")
