# SPDX-License-Identifier: MIT
"""What is sent into a guest: the scenarios, the guest's half of this package, compiled BPF objects, test modules."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cache import digest
from harness.errors import KernrigError

GUEST_ROOT = "/opt/kernrig/tree"
GUEST_MODULES = f"{GUEST_ROOT}/modules"
_PACKAGE = Path(__file__).parent
# What the guest imports of this package besides harness/guest.
_SHARED = (
    "__init__.py",
    "errors.py",
    "verdict/klog.py",
    "verdict/inventory.py",
    "verdict/leaks.py",
)
# Rooms of the host of which the guest has a part: their own __init__ would import the rest.
_ROOMS = ("verdict",)
_LEFT_OUT = ("__pycache__", ".kernrig", ".pytest_cache")
# pytest compares a cached module's time with its source's: one constant for all makes the archive reproducible.
_MTIME = 1_700_000_000


def guest_package() -> dict[str, Path | bytes]:
    """The files of this package that the guest needs, by their place in the guest's tree."""
    files = [_PACKAGE / name for name in _SHARED]
    files += [path for path in (_PACKAGE / "guest").rglob("*.py") if "__pycache__" not in path.parts]
    package: dict[str, Path | bytes] = {f"harness/{room}/__init__.py": b"" for room in _ROOMS}
    return package | {f"harness/{path.relative_to(_PACKAGE).as_posix()}": path for path in files}


def scenario_files(rootdir: Path, folder: str) -> dict[str, Path | bytes]:
    """Everything below rootdir/folder but caches and hidden files, by its place in the guest's tree."""
    found: dict[str, Path | bytes] = {}
    for path in sorted((rootdir / folder).rglob("*")):
        parts = path.relative_to(rootdir).parts
        if path.is_file() and not any(part in _LEFT_OUT or part.startswith(".") for part in parts):
            found["/".join(parts)] = path
    return found


@dataclass(frozen=True)
class Tree:
    """An archive to be. `files` maps a path in the guest's tree to a file or its content; `paths` are what pytest
    collects there."""

    files: Mapping[str, Path | bytes]
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Changes whenever what the guest gets changes."""
        parts: list[str | bytes] = []
        for name, data in self.contents.items():
            parts += [name, data]
        return digest(*parts, repr((self.paths, self.options, sorted(self.environment.items()))))

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """All files, read once: an editor may be at work while a template is made."""
        contents = {}
        for name, file in sorted(self.files.items()):
            try:
                contents[name] = file if isinstance(file, bytes) else file.read_bytes()
            except OSError as error:
                raise KernrigError(
                    f"{name} could not be read: {error.strerror}.", hint="run it again"
                ) from error
        return contents

    @property
    def scenario_files(self) -> int:
        """How many test files there are."""
        return sum(Path(name).name.startswith("test_") and name.endswith(".py") for name in self.files)

    def archive(self, bytecode: Mapping[str, bytes] | None = None) -> bytes:
        """A tar archive; the same tree gives the same bytes. `bytecode` are compiled files to add."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in (self.contents | dict(bytecode or {})).items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.mode = len(data), _MTIME, 0o644
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    def request(self) -> dict[str, Any]:
        """The message that announces the archive to the guest."""
        return {
            "op": "load",
            "root": GUEST_ROOT,
            "paths": list(self.paths),
            "options": list(self.options),
            "environment": {"KERNRIG_MODULES": GUEST_MODULES, **self.environment},
        }
