# SPDX-License-Identifier: MIT
"""BTF on the host: read it, and leave out of a module's whatever repeats the kernel's.

A module's BTF is split from vmlinux's: it should hold only types that vmlinux lacks, and refer to vmlinux's for the
rest. pahole leaves that to libbpf's btf__dedup(). Two releases that Debian has don't see that types are equal: those
before 1.6 once a pointer type is there twice (kernels since 6.15 have such, made of per-CPU variables' types by
TYPEOF_UNQUAL), 1.7.0 for typedefs that the base has. Then a module has a `struct sock` of its own, which the verifier
takes for another type. The kernel's own resolve_btfids mends it since 7.3. Layout: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from harness.errors import KernrigError

STRUCT, UNION, TYPEDEF, FUNC = 4, 5, 8, 12
_INT, _ENUM, _FORWARD, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _ENUM64 = 1, 6, 7, 14, 15, 16, 17, 19

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")


@dataclass(frozen=True)
class _Kind:
    """What follows a type: `fixed` words, or `each` words for each of its elements, of which number `name` is a string
    and number `id` a type; `refers`: the type's third word is a type, not a size."""

    fixed: int = 0
    each: int = 0
    name: int | None = None
    id: int | None = None
    refers: bool = False


_REFERENCE = _Kind(refers=True)
_MEMBERS = _Kind(each=3, name=0, id=1)
_KINDS = {
    _INT: _Kind(fixed=1),
    2: _REFERENCE,  # pointer
    3: _Kind(fixed=3),  # array: the types of element and index, and the count
    STRUCT: _MEMBERS,
    UNION: _MEMBERS,
    _ENUM: _Kind(each=2, name=0),
    _FORWARD: _Kind(),
    TYPEDEF: _REFERENCE,
    9: _REFERENCE,  # volatile
    10: _REFERENCE,  # const
    11: _REFERENCE,  # restrict
    FUNC: _REFERENCE,
    13: _Kind(each=2, name=0, id=1, refers=True),  # a function's prototype
    _VAR: _Kind(fixed=1, refers=True),
    _DATASEC: _Kind(each=3, id=0),
    _FLOAT: _Kind(),
    _DECL_TAG: _Kind(fixed=1, refers=True),
    18: _REFERENCE,  # type tag
    _ENUM64: _Kind(each=3, name=0),
}
_ARRAY = 3
# Functions, variables and tags belong to whoever has them, whatever their names are.
_COMPARED = frozenset((_INT, STRUCT, UNION, _ENUM, _FORWARD, TYPEDEF, _FLOAT, _ENUM64))


class Type(NamedTuple):
    """One type as it is stored: `name` is the place of a string, `info` holds kind, flag and the number of elements."""

    name: int
    info: int
    size: int
    words: tuple[int, ...]

    @property
    def kind(self) -> int:
        """BTF_KIND_*."""
        return self.info >> 24 & 0x1F

    def references(self) -> Iterator[int]:
        """The types that this one refers to, in the order of the format."""
        kind = _KINDS[self.kind]
        if kind.refers:
            yield self.size
        if self.kind == _ARRAY:
            yield from self.words[:2]
        if kind.id is not None:
            yield from self.words[kind.id :: kind.each]


_VOID = Type(0, 0, 0, ())


class Btf:
    """The types of raw BTF `data`, with those of the `base` that it was split from.

    Raises KernrigError when it is no BTF or has a kind of type that is not known here.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise KernrigError("reading BTF: the data does not start with BTF's magic number")
        _, _, _, header, type_start, type_length, string_start, string_length = _HEADER.unpack_from(data)
        self.base = base
        self.first: int = base.end if base else 1
        self.first_string: int = base.end_string if base else 0
        self.end_string: int = self.first_string + string_length
        self._strings = data[header + string_start :][:string_length]
        self._types = list(_types(data, header + type_start, type_length, self.first))
        self.end: int = self.first + len(self._types)

    def type(self, id: int) -> Type:
        """The type with this number; 0 is void."""
        if self.base is not None and id < self.first:
            return self.base.type(id)
        return self._types[id - self.first] if id else _VOID

    def string(self, offset: int) -> str:
        """The string at this place."""
        if self.base is not None and offset < self.first_string:
            return self.base.string(offset)
        at = offset - self.first_string
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    @cached_property
    def named(self) -> dict[tuple[int, str], list[int]]:
        """The numbers of all types that have a name, those of the base left out, by kind and name."""
        found: dict[tuple[int, str], list[int]] = {}
        for id, type in enumerate(self._types, self.first):
            if type.name:
                found.setdefault((type.kind, self.string(type.name)), []).append(id)
        return found

    def find(self, kind: int, name: str) -> int | None:
        """The number of the first type of this kind and name, the base's if this one has none; or None."""
        for btf in (self, self.base):
            if btf is not None and (kind, name) in btf.named:
                return btf.named[kind, name][0]
        return None

    def shape(self, id: int) -> tuple[object, ...]:
        """All of a type but what it refers to."""
        type = self.type(id)
        if not type.info:
            return ()
        kind = _KINDS[type.kind]
        words: list[object] = list(type.words)
        if type.kind == _ARRAY:
            del words[:2]
        if kind.name is not None:
            words[kind.name :: kind.each] = map(self.string, type.words[kind.name :: kind.each])
        if kind.id is not None:
            del words[kind.id :: kind.each]
        return (type.info, self.string(type.name), None if kind.refers else type.size, *words)


def _types(data: bytes, start: int, length: int, number: int) -> Iterator[Type]:
    at = start
    while at < start + length:
        name, info, size = _TYPE.unpack_from(data, at)
        at += _TYPE.size
        kind = _KINDS.get(info >> 24 & 0x1F)
        if kind is None:
            raise KernrigError(
                f"reading BTF: type {number} is of the unknown kind {info >> 24 & 0x1F}",
                hint="the kernel's BTF is newer than this kernrig",
            )
        # 24 bits of elements since 7.2; older kernels have 16 and leave the others zero.
        words = struct.unpack_from(f"<{kind.fixed + kind.each * (info & 0xFFFFFF)}I", data, at)
        at += 4 * len(words)
        yield Type(name, info, size, words)
        number += 1


def repeated(own: Btf) -> dict[int, int]:
    """Which of `own`'s types its base has too, and as which number.

    Two types are equal if they have the same shape and refer to equal types; a structure that is only declared equals
    one that is defined. Types without a name are found where a named one refers to them.
    """
    if own.base is None:
        return {}
    # Pairs that have to be equal, with the pairs that need them to be.
    users: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (kind, name), ids in own.named.items():
        for twin in _twins(own.base, kind, name, own.type(ids[0])):
            users.update({(id, twin): [] for id in ids})
    todo, unequal = list(users), []
    while todo:
        pair = todo.pop()
        mine, theirs = (own.type(id) for id in pair)
        if _is_declaration_of(mine, theirs) or _is_declaration_of(theirs, mine):
            if own.string(mine.name) != own.string(theirs.name):
                unequal.append(pair)
            continue
        if own.shape(pair[0]) != own.shape(pair[1]):
            unequal.append(pair)
            continue
        for needed in zip(mine.references(), theirs.references(), strict=True):
            if needed[0] == needed[1]:
                continue
            if needed not in users:
                users[needed] = []
                todo.append(needed)
            users[needed].append(pair)
    while unequal:
        unequal += users.pop(unequal.pop(), [])
    equal: dict[int, int] = {}
    for id, twin in sorted(users, reverse=True):
        # Where the base only declares what the module defines, the module's is needed.
        if id >= own.first and not _is_declaration_of(own.type(twin), own.type(id)):
            equal[id] = twin
    return equal


def _twins(base: Btf, kind: int, name: str, type: Type) -> Iterable[int]:
    if kind not in _COMPARED:
        return []
    if kind == _FORWARD and not base.named.get((kind, name)):
        return base.named.get((UNION if type.info >> 31 else STRUCT, name), [])
    return base.named.get((kind, name), [])


def _is_declaration_of(one: Type, other: Type) -> bool:
    return one.kind == _FORWARD and other.kind == (UNION if one.info >> 31 else STRUCT)


def without(own: Btf, equal: Mapping[int, int]) -> tuple[bytes, dict[int, int]]:
    """`own` as raw BTF that refers to the types in `equal` instead of repeating them, and its types' new numbers.

    Types without a name that only those referred to are dropped, too: they have no new number.
    """
    everything = range(own.first, own.end)
    used = {each for id in everything for each in own.type(id).references()}
    kept: set[int] = set()
    # Nobody needs to refer to an enumeration: its constants are what counts.
    todo = [
        id
        for id in everything
        if id not in equal
        and (own.type(id).name or (own.type(id).kind in (_ENUM, _ENUM64) and id not in used))
    ]
    while todo:
        id = todo.pop()
        if id >= own.first and id not in equal and id not in kept:
            kept.add(id)
            todo += own.type(id).references()
    numbers = {**equal, **{id: number for number, id in enumerate(sorted(kept), own.first)}}
    strings = bytearray(b"" if own.base else b"\0")
    places: dict[int, int] = {}

    def place(offset: int) -> int:
        if offset < max(own.first_string, 1):
            return offset
        if offset not in places:
            places[offset] = own.first_string + len(strings)
            strings.extend(own.string(offset).encode() + b"\0")
        return places[offset]

    body = bytearray()
    for id in sorted(kept):
        type = own.type(id)
        kind = _KINDS[type.kind]
        words = list(type.words)
        if type.kind == _ARRAY:
            words[:2] = (numbers.get(each, each) for each in words[:2])
        if kind.id is not None:
            words[kind.id :: kind.each] = [numbers.get(each, each) for each in words[kind.id :: kind.each]]
        if kind.name is not None:
            words[kind.name :: kind.each] = map(place, words[kind.name :: kind.each])
        size = numbers.get(type.size, type.size) if kind.refers else type.size
        body += struct.pack(f"<{3 + len(words)}I", place(type.name), type.info, size, *words)
    header = _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(body), len(body), len(strings))
    return header + body + strings, numbers
