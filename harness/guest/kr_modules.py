# SPDX-License-Identifier: MIT
"""kernrig's own test modules, loaded for a while: kr_kptr (a kptr type), kr_ops and kr_ops2 (a struct_ops type),
kr_offload (a device that takes programs), kr_traced (things to attach programs to), kr_dependent (uses a symbol of
kr_traced).

They count what happens to them; the counters and controls are those of images/modules/*.c.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import ClassVar, Self

from harness.guest import modules
from harness.guest.bpf import btf

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

    @classmethod
    def loaded(cls) -> Self:
        """The module that somebody else has loaded, whether it is there or not."""
        return cls.__new__(cls)

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


class KrTraced(TestModule):
    """kr_traced: tracepoints, functions, a per-CPU variable and a kfunc, and a file to run through them."""

    name = "kr_traced"

    def call(self, value: int) -> tuple[int, int]:
        """Run through everything with this number: twice that (or what a program that modifies returns says), and what
        a program wrote into the writable tracepoint's argument. Raises OSError.
        """
        fd = os.open(self.debugfs / "call", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
            returned, written = os.read(fd, 64).split()
        finally:
            os.close(fd)
        return int(returned), int(written)


class KrDependent(TestModule):
    """kr_dependent, which cannot be loaded without kr_traced."""

    name = "kr_dependent"


class KrOps(TestModule):
    """kr_ops: the struct_ops type kr_ops, a file to call the members of registered tables, objects that use tables
    beyond their registration.

    A table is named by its slot, by "#ID" (the id of its map), or by "@NUMBER" (an object that uses it).
    """

    name = "kr_ops"

    def call(
        self, member: str, table: int | str, *values: int, context: str = "process", times: int = 1
    ) -> int:
        """What `member` of a table returns, the last time if it is called several `times`.

        `context` is where it is called from: "process", "kthread", or "timer" (a soft interrupt). Raises OSError:
        ENOTCONN when there is no such table any more, ENOENT when there is no such object.
        """
        return self._ask(table, context, f"x{times}", member, table, *values)[0]

    def seen(self, member: str, table: int | str) -> int:
        """What a call of `member` left in its argument's field `seen`. Raises OSError as `call`."""
        return self._ask(table, member, table, 0)[1]

    def _ask(self, table: int | str, *words: int | str) -> tuple[int, int]:
        self._locate(table)
        fd = os.open(self.debugfs / "call", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, " ".join(map(str, words)).encode())
            result, seen = os.read(fd, 64).split()
            return int(result), int(seen)
        finally:
            os.close(fd)

    def tables(self) -> list[str]:
        """The registered tables, one line each. Raises OSError."""
        return (self.debugfs / "tables").read_text().splitlines()

    def bind(self, number: int, table: int | str) -> None:
        """Make object `number` use a registered table until that registration ends: then it answers ENOTCONN.

        The object follows an update of the link. Raises OSError: ENOTCONN when there is no such table, EBUSY when the
        object is in use.
        """
        self._control("bind", number, table)

    def own(self, number: int, table: int | str) -> None:
        """Make object `number` use a registered table, with a reference to it, until it is dropped.

        Raises as `bind`.
        """
        self.set_param("table_offset", _table_offset())
        self._control("own", number, table)

    def drop(self, number: int) -> None:
        """End object `number`, and the reference that it may have. Raises OSError (ENOENT: there is none)."""
        self._control("drop", number)

    def detach_link(self, slot: int) -> None:
        """Detach the link of the table in `slot` from the module's side. Raises OSError (ENOENT: there is no link)."""
        self._control("detach", slot)

    def _control(self, verb: str, number: int, table: int | str = "") -> None:
        self._locate(table)
        fd = os.open(self.debugfs / "control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{verb} {number} {table}".encode())
        finally:
            os.close(fd)

    def _locate(self, table: int | str) -> None:
        if isinstance(table, str) and table.startswith("#"):
            self.set_param("table_offset", _table_offset())


class KrTypes(TestModule):
    """kr_types: further struct_ops types, see images/modules/kr_types.c."""

    name = "kr_types"

    def call(self, what: str, number: int = 0, value: int = 0) -> int:
        """What a member returned: "first" (of table `number`), "many" (member `number`), "deep", "take", "both",
        "give", "wrapped" (and in tens and hundreds how often the module's code ran before and behind the program).
        Raises OSError.
        """
        fd = os.open(self.debugfs / "call", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, f"{what} {number} {value}".encode())
            return int(os.read(fd, 16))
        finally:
            os.close(fd)


class KrOps2(KrOps):
    """kr_ops2: kr_ops by another name, whose struct kr_ops_arg has the same members in other places."""

    name = "kr_ops2"


@functools.cache
def _table_offset() -> int:
    """Where a table lies in the kernel's struct bpf_struct_ops_map, in bytes."""
    types = btf.vmlinux()
    map, value = types.struct("bpf_struct_ops_map"), types.struct("bpf_struct_ops_value")
    return types.member(map, "kvalue").offset + types.member(value, "data").offset
