# SPDX-License-Identifier: MIT
"""kernrig's own test modules, loaded for a while: kr_kptr (a kptr type), kr_ops (a struct_ops type), kr_offload (a
device that takes programs).

The first two count what happens to them; the counters and controls are those of images/modules/*.c.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Self

from harness.guest import modules

DEBUGFS = Path("/sys/kernel/debug")


def missing(name: str) -> str | None:
    """Why there is no test module `name` for this kernel, or None when there is one."""
    if (modules.directory() / f"{name}.ko").exists():
        return None
    return os.environ.get("KERNRIG_MODULES_MISSING") or f"{name}.ko was not built for this kernel"


class TestModule:
    """A test module that is loaded as long as the context lasts, if nothing unloads it earlier."""

    __test__ = False  # pytest: this is no test class
    name: ClassVar[str]

    def __init__(self, params: str = "") -> None:
        modules.load_test_module(self.name, params)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if modules.state(self.name) is not None:
            modules.unload_when_unused(self.name)

    @property
    def debugfs(self) -> Path:
        """The module's directory in debugfs."""
        return DEBUGFS / self.name

    def counters(self) -> dict[str, int]:
        """All counters of the module, since it was loaded. Raises OSError once it is unloaded."""
        lines = (self.debugfs / "stats").read_text().splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}

    def count(self, name: str) -> int:
        """One of the counters. Raises KeyError, OSError."""
        return self.counters()[name]

    def users(self) -> int:
        """The module's reference count. Raises KernrigError once it is unloaded."""
        return modules.refcount(self.name)

    def unload(self) -> None:
        """Unload it now or not at all. Raises OSError with the kernel's errno (EAGAIN: it has users)."""
        modules.unload(self.name)

    def set_param(self, name: str, value: int) -> None:
        """Change one of its parameters while it is loaded. Raises OSError."""
        (modules.SYS_MODULE / self.name / "parameters" / name).write_text(str(value))


class KrKptr(TestModule):
    """kr_kptr: objects of struct kr_obj, their kfuncs and their destructor."""

    name = "kr_kptr"

    def static_refs(self, id: int) -> int:
        """References that programs and maps hold to static object `id`. Raises OSError, IndexError."""
        line = (self.debugfs / "static").read_text().splitlines()[id]
        fields = dict(field.split("=") for field in line.split())
        return int(fields["refs"]) - 1  # the module's own


class KrOffload(TestModule):
    """kr_offload: the network device `kr_offload` in the initial namespace, for which programs can be loaded."""

    name = "kr_offload"


class KrOps(TestModule):
    """kr_ops: the struct_ops type kr_ops, and a file to call the members of registered tables."""

    name = "kr_ops"

    def call(self, member: str, slot: int, *values: int) -> int:
        """What `member` of the table in `slot` returns. Raises OSError (ENOTCONN: there is no table)."""
        fd = os.open(self.debugfs / "call", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, " ".join(map(str, (member, slot, *values))).encode())
            return int(os.read(fd, 64).split()[0])
        finally:
            os.close(fd)

    def tables(self) -> list[str]:
        """The registered tables, one line each. Raises OSError."""
        return (self.debugfs / "tables").read_text().splitlines()

    def hold(self, command: str) -> None:
        """ "take SLOT" or "drop": let an object of the module use a table beyond its registration.

        Raises OSError (EOPNOTSUPP: this build cannot).
        """
        fd = os.open(self.debugfs / "hold", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, command.encode())
        finally:
            os.close(fd)
