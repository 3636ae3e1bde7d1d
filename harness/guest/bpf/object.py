# SPDX-License-Identifier: MIT
"""Compiled `.bpf.c` objects, opened, tuned and loaded by libbpf; its programs and maps as our own objects."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Self

from harness.guest.bpf import uapi
from harness.guest.bpf.btf import Btf, Type, records
from harness.guest.bpf.libbpf import checked, libbpf, messages
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog


class _OpenOptions(ctypes.Structure):
    """The head of struct bpf_object_open_opts, whose size says how much of it there is."""

    _fields_ = (("sz", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


class Object:
    """An object file.

    Open, tune maps and programs, `load`, take out `prog` and `map`; closing frees what is left.
    """

    def __init__(self, handle: int, name: str) -> None:
        self._handle: int | None = handle
        self.name = name
        self.log = ""

    @classmethod
    def open(cls, source: str | os.PathLike[str] | bytes, *, name: str = "") -> Self:
        """Open a file, or an ELF image in memory. Raises BpfError with libbpf's messages."""
        with messages() as log:
            if isinstance(source, bytes):
                options = _OpenOptions(ctypes.sizeof(_OpenOptions), (name or "object").encode())
                handle = libbpf().bpf_object__open_mem(source, len(source), ctypes.byref(options))
            else:
                name = name or os.fspath(source)
                handle = libbpf().bpf_object__open_file(os.fsencode(source), None)
            return cls(checked(handle, "bpf_object__open", log, name), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def close(self) -> None:
        """Close libbpf's descriptors and free its memory; again is harmless. Taken-out objects live on."""
        handle, self._handle = self._handle, None
        if handle:
            libbpf().bpf_object__close(handle)

    @property
    def handle(self) -> int:
        """libbpf's struct bpf_object. Raises ValueError once closed."""
        if not self._handle:
            raise ValueError(f"object {self.name} is closed")
        return self._handle

    def program_names(self) -> list[str]:
        """Names of all programs."""
        return self._names("program")

    def _names(self, kind: str) -> list[str]:
        names, item = [], None
        step = getattr(libbpf(), f"bpf_object__next_{kind}")
        while item := step(self.handle, item):
            names.append(getattr(libbpf(), f"bpf_{kind}__name")(item).decode())
        return names

    def tune_prog(
        self,
        name: str,
        *,
        autoload: bool | None = None,
        attach_target: str | None = None,
        attach_prog: Prog | None = None,
        expected_attach_type: int | None = None,
        prog_type: int | None = None,
        flags: int | None = None,
    ) -> None:
        """Change a program before `load`; None leaves a thing as it is. Raises BpfError, LookupError."""
        program = self._find("program", name)
        if autoload is not None:
            self._do("bpf_program__set_autoload", program, autoload)
        if prog_type is not None:
            self._do("bpf_program__set_type", program, prog_type)
        if expected_attach_type is not None:
            self._do("bpf_program__set_expected_attach_type", program, expected_attach_type)
        if flags is not None:
            self._do("bpf_program__set_flags", program, flags)
        if attach_target is not None:
            fd = 0 if attach_prog is None else attach_prog.fd
            self._do("bpf_program__set_attach_target", program, fd, attach_target.encode())

    def tune_map(
        self,
        name: str,
        *,
        autocreate: bool | None = None,
        max_entries: int | None = None,
        flags: int | None = None,
        pin_path: str | None = None,
        reuse: Map | None = None,
    ) -> None:
        """Change a map before `load`; `reuse` puts an existing map in its place.

        Raises BpfError, LookupError.
        """
        map = self._find("map", name)
        if autocreate is not None:
            self._do("bpf_map__set_autocreate", map, autocreate)
        if max_entries is not None:
            self._do("bpf_map__set_max_entries", map, max_entries)
        if flags is not None:
            self._do("bpf_map__set_map_flags", map, flags)
        if pin_path is not None:
            self._do("bpf_map__set_pin_path", map, pin_path.encode())
        if reuse is not None:
            self._do("bpf_map__reuse_fd", map, reuse.fd)

    def load(self) -> Self:
        """Create the maps and load the programs.

        Raises BpfError with libbpf's messages, verifier log included.
        """
        with messages() as log:
            checked(libbpf().bpf_object__load(self.handle), "bpf_object__load", log, self.name)
            self.log = "".join(log)
        return self

    def prog(self, name: str) -> Prog:
        """A loaded program, with a descriptor of its own. Raises BpfError, LookupError."""
        fd = checked(libbpf().bpf_program__fd(self._find("program", name)), "bpf_program__fd", about=name)
        return Prog(os.dup(fd))

    def map(self, name: str) -> Map:
        """A created map, with a descriptor of its own; ".bss" and the like find the internal ones.

        Raises BpfError, LookupError.
        """
        fd = checked(libbpf().bpf_map__fd(self._find("map", name)), "bpf_map__fd", about=name)
        return Map(os.dup(fd))

    def variable(self, name: str) -> ctypes.Array[ctypes.c_char]:
        """The memory of a global variable: its initial value before `load`, the live one (mapped) afterwards.

        Use `.raw` to read and write all of it. It must not be used once the object is closed. Raises
        LookupError.
        """
        types = Btf(libbpf().bpf_object__btf(self.handle), self.name)
        for id in range(1, libbpf().btf__type_cnt(types.handle)):
            section = types.type(id)
            if section.kind != uapi.BTF_KIND_DATASEC:
                continue
            for variable, offset, size in records(section, 3):
                if types.type(variable).name == name:
                    return self._memory(section, offset, size)
        raise LookupError(f"{self.name} has no global variable {name}")

    def initial_value(self, name: str) -> ctypes.Array[ctypes.c_char]:
        """The memory that a map's value will be made of: of a struct_ops map, the variable as the object has it.

        Pointers to programs in it are libbpf's own. Raises LookupError.
        """
        length = ctypes.c_size_t()
        start = libbpf().bpf_map__initial_value(self._find("map", name), ctypes.byref(length))
        if not start:
            raise LookupError(f"{self.name}: map {name} has no initial value")
        return (ctypes.c_char * length.value).from_address(start)

    def attach_struct_ops(self, name: str) -> Link:
        """Write the value of a struct_ops map of section .struct_ops.link, and link it.

        Raises BpfError, LookupError.
        """
        with messages() as log:
            handle = libbpf().bpf_map__attach_struct_ops(self._find("map", name))
            checked(handle, "bpf_map__attach_struct_ops", log, name)
        try:
            return Link(os.dup(libbpf().bpf_link__fd(handle)))
        finally:
            libbpf().bpf_link__destroy(handle)

    def number(self, name: str) -> int:
        """A global variable as an unsigned integer. Raises LookupError."""
        return int.from_bytes(self.variable(name).raw, "little")

    def set_number(self, name: str, value: int) -> None:
        """Write a global variable from an integer. Raises LookupError."""
        memory = self.variable(name)
        memory.raw = (value & ((1 << 8 * len(memory)) - 1)).to_bytes(len(memory), "little")

    def _memory(self, section: Type, offset: int, size: int) -> ctypes.Array[ctypes.c_char]:
        length = ctypes.c_size_t()
        start = libbpf().bpf_map__initial_value(self._find("map", section.name), ctypes.byref(length))
        if not start:
            raise LookupError(f"{self.name}: {section.name} is not mapped")
        return (ctypes.c_char * size).from_address(start + offset)

    def _find(self, kind: str, name: str) -> int:
        found: int | None = getattr(libbpf(), f"bpf_object__find_{kind}_by_name")(self.handle, name.encode())
        if not found:
            raise LookupError(f"{self.name} has no {kind} {name}, but {', '.join(self._names(kind))}")
        return found

    def _do(self, function: str, *arguments: Any) -> None:
        with messages() as log:
            checked(getattr(libbpf(), function)(*arguments), function, log, self.name)
