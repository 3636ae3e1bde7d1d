# SPDX-License-Identifier: MIT
"""After a module's BTF was made: share its types with the kernel, fill in the numbers of types.

`BTF_ID(func, name)` in a module reserves four bytes that the build must replace by the number of that type
in the module's BTF (include/linux/btf_ids.h), as the kernel's tools/bpf/resolve_btfids does. Debian's headers
for kernels before 6.12 lack the tool.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness import splitbtf
from harness.errors import KernrigError
from harness.splitbtf import Btf

_KINDS = {
    "struct": splitbtf.STRUCT,
    "union": splitbtf.UNION,
    "typedef": splitbtf.TYPEDEF,
    "func": splitbtf.FUNC,
}
_SYMBOL = re.compile(
    r"__BTF_ID__(?:(?P<kind>struct|union|typedef|func)__(?P<name>.+)__\d+|(?P<set>set8?)__.+)"
)
# Elf64_Ehdr.e_shoff, and in a section's header (sh_size), elf(5).
_SECTIONS_AT, _SIZE_AT = 40, 32


def resolve(module: Path, vmlinux: Btf) -> list[str]:
    """Write the type numbers into `module` (a .ko with .BTF) in place, and sort its sets as the kernel wants.

    `vmlinux` is what the module's BTF was split from. Returns the names that were resolved. Raises KernrigError
    for a name that neither has.
    """
    content = bytearray(module.read_bytes())
    resolved = []
    with module.open("rb") as file:
        elf = ELFFile(file)
        if elf.get_section_by_name(".BTF_ids") is None:
            return []
        own = _btf(module, elf, vmlinux)

        def number(kind: str, name: str, _: int) -> int:
            found = own.find(_KINDS[kind], name)
            if found is None:
                raise KernrigError(f"{module.name}: neither its BTF nor the kernel's has {kind} {name}")
            resolved.append(name)
            return found

        _fill(content, elf, number)
    module.write_bytes(content)
    return resolved


def share(module: Path, vmlinux: Btf) -> int:
    """Leave out of `module`'s BTF, in place, the types that `vmlinux` has, and renumber the BTF ids that are there.

    Returns how many types fewer there are: 0 if the build did it right. Raises KernrigError for a module without
    BTF or with a distilled base.
    """
    content = bytearray(module.read_bytes())
    with module.open("rb") as file:
        elf = ELFFile(file)
        own = _btf(module, elf, vmlinux)
        equal = splitbtf.repeated(own)
        if not equal:
            return 0
        data, numbers = splitbtf.without(own, equal)
        index = elf.get_section_index(".BTF") or 0
        section = elf.get_section(index)
        start, size = section["sh_offset"], section["sh_size"]
        content[start : start + size] = data.ljust(size, b"\0")
        (table,) = struct.unpack_from("<Q", content, _SECTIONS_AT)
        struct.pack_into("<Q", content, table + index * elf.header["e_shentsize"] + _SIZE_AT, len(data))

        def number(_kind: str, _name: str, old: int) -> int:
            return numbers.get(old, old)

        _fill(content, elf, number)
    module.write_bytes(content)
    return own.end - own.first - sum(number >= own.first for number in numbers.values())


def _btf(module: Path, elf: ELFFile, vmlinux: Btf) -> Btf:
    section = elf.get_section_by_name(".BTF")
    if section is None or not section["sh_size"]:
        raise KernrigError(
            f"{module.name} was built without BTF, so its types do not exist for BPF programs",
            hint="the kernel needs CONFIG_DEBUG_INFO_BTF_MODULES, and its headers the BTF of vmlinux",
        )
    if elf.get_section_by_name(".BTF.base") is not None:
        raise KernrigError(
            f"{module.name} has a distilled base of its own, so that its BTF was not split from the kernel's"
        )
    return Btf(section.data(), vmlinux)


def _fill(content: bytearray, elf: ELFFile, number: Callable[[str, str, int], int]) -> None:
    """Replace each BTF id by what `number` makes of its kind, its name and the number that is there; sort the sets."""
    section = elf.get_section_by_name(".BTF_ids")
    if section is None:
        return
    sets = []
    for name, offset, size in _symbols(elf, section):
        match = _SYMBOL.fullmatch(name)
        at = section["sh_offset"] + offset
        if match is None:
            continue
        if match["set"]:
            sets.append((match["set"], at, size))
        else:
            (old,) = struct.unpack_from("<I", content, at)
            struct.pack_into("<I", content, at, number(match["kind"], match["name"], old))
    for kind, at, size in sets:
        _sort(content, kind, at, size)


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
