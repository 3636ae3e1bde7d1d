# SPDX-License-Identifier: MIT
"""Fill in a kernel module's .BTF_ids section, as the kernel's tools/bpf/resolve_btfids does.

`BTF_ID(func, name)` in a module reserves four bytes that the build must replace by the number of that type
in the module's BTF (include/linux/btf_ids.h). Debian's headers for kernels before 6.12 lack the tool.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.errors import KernrigError

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")

# Documentation/bpf/btf.rst: bytes that follow a type, fixed and for each of its vlen elements.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ELEMENT = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_KINDS = {"struct": 4, "union": 5, "typedef": 8, "func": 12}

_SYMBOL = re.compile(
    r"__BTF_ID__(?:(?P<kind>struct|union|typedef|func)__(?P<name>.+)__\d+|(?P<set>set8?)__.+)"
)


@dataclass(frozen=True)
class Types:
    """What BTF declares: the number of each named type, by (kind, name), and where the numbers and strings of
    BTF that is split from it go on."""

    ids: dict[tuple[int, str], int]
    end_id: int
    end_string: int


def parse(data: bytes, base: Types | None = None) -> Types:
    """The named types in raw BTF `data` that was split from `base`; names of the base are not repeated.

    Raises KernrigError when it is no BTF or has a kind of type that is not known here.
    """
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
        raise KernrigError("reading BTF: the data does not start with BTF's magic number")
    _, _, _, header, type_start, type_length, string_start, string_length = _HEADER.unpack_from(data)
    first_string = base.end_string if base else 0
    strings = header + string_start
    number = base.end_id if base else 1
    ids: dict[tuple[int, str], int] = {}
    wanted = frozenset(_KINDS.values())
    at, end = header + type_start, header + type_start + type_length
    while at < end:
        name, info, _ = _TYPE.unpack_from(data, at)
        kind = info >> 24 & 0x1F
        if not 1 <= kind <= 19:
            raise KernrigError(f"reading BTF: type {number} is of the unknown kind {kind}")
        if kind in wanted and name and name >= first_string:
            start = strings + name - first_string
            ids.setdefault((kind, data[start : data.index(b"\0", start)].decode()), number)
        at += _TYPE.size + _FIXED.get(kind, 0) + _PER_ELEMENT.get(kind, 0) * (info & 0xFFFF)
        number += 1
    return Types(ids, number, first_string + string_length)


def resolve(module: Path, vmlinux_btf: bytes) -> list[str]:
    """Write the type numbers into `module` (a .ko with .BTF) in place, and sort its sets as the kernel wants.

    `vmlinux_btf` is the raw BTF that the module's was split from. Returns the names that were resolved.
    Raises KernrigError for a name that neither has.
    """
    content = bytearray(module.read_bytes())
    with module.open("rb") as file:
        elf = ELFFile(file)
        section = elf.get_section_by_name(".BTF_ids")
        btf = elf.get_section_by_name(".BTF")
        if section is None:
            return []
        if btf is None:
            raise KernrigError(f"{module.name} uses BTF ids but has no BTF")
        # pahole 1.26 and later keep a minimal copy of what the module uses of the kernel's types.
        distilled = elf.get_section_by_name(".BTF.base")
        base = parse(vmlinux_btf if distilled is None else distilled.data())
        own = parse(btf.data(), base)
        start, sets, resolved = section["sh_offset"], [], []
        for name, offset, size in _symbols(elf, section):
            match = _SYMBOL.fullmatch(name)
            if match is None:
                continue
            if match["set"]:
                sets.append((match["set"], start + offset, size))
                continue
            wanted = (_KINDS[match["kind"]], match["name"])
            number = own.ids.get(wanted) or base.ids.get(wanted)
            if number is None:
                raise KernrigError(
                    f"{module.name}: neither its BTF nor the kernel's has {match['kind']} {match['name']}"
                )
            struct.pack_into("<I", content, start + offset, number)
            resolved.append(match["name"])
    for kind, at, size in sets:
        _sort(content, kind, at, size)
    module.write_bytes(content)
    return resolved


def _symbols(elf: ELFFile, section: object) -> Iterator[tuple[str, int, int]]:
    """Name, offset in `section` and size of each symbol there."""
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return
    for symbol in table.iter_symbols():
        index = symbol["st_shndx"]
        if isinstance(index, int) and elf.get_section(index) == section:
            yield symbol.name, symbol["st_value"], symbol["st_size"]


def _sort(content: bytearray, kind: str, at: int, size: int) -> None:
    """Count and sort a struct btf_id_set {cnt, ids[]} or btf_id_set8 {cnt, flags, {id, flags}[]}: the kernel
    searches them by bisection."""
    head, element = (8, 8) if kind == "set8" else (4, 4)
    body = bytes(content[at + head : at + size])
    elements = sorted(
        (body[i : i + element] for i in range(0, len(body), element)),
        key=lambda each: int.from_bytes(each[:4], "little"),
    )
    struct.pack_into("<I", content, at, len(elements))
    content[at + head : at + size] = b"".join(elements)
