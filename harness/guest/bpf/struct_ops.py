# SPDX-License-Identifier: MIT
"""struct_ops: kernel function tables filled with BPF programs, by the member names of the kernel's BTF."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import Code
from harness.guest.bpf.attrs import MapCreate
from harness.guest.bpf.btf import Btf, BtfObject, Member
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import bpf

Filling = Prog | int | bytes | str
"""A function member takes a program (or a descriptor); data members an int, bytes, or text."""


def types(module_name: str | None = None) -> list[str]:
    """The struct_ops types that the kernel, or a loaded module, has in its BTF, sorted. Raises OSError, LookupError.

    A module that failed to register its type has it there all the same.
    """
    strings = (btf.KERNEL_BTF / (module_name or "vmlinux")).read_bytes()
    names = {name.decode() for name in re.findall(rb"\0bpf_struct_ops_(\w+)(?=\0)", strings)}
    # most are the kernel's own functions, of which no structure bears the rest of the name
    return sorted(n for n in names if b"\0%s\0" % n.encode() in strings and has_type(n, module_name))


def has_type(name: str, module_name: str | None = None) -> bool:
    """Whether BTF has struct_ops type `name`: a structure, and the map's value bpf_struct_ops_NAME whose member data
    it is (include/linux/bpf.h:REGISTER_BPF_STRUCT_OPS). Raises LookupError if the module is not loaded.
    """
    source = btf.of(module_name)
    value = source.find(f"bpf_struct_ops_{name}", uapi.BTF_KIND_STRUCT)
    if value is None:
        return False
    return any(
        member.name == "data" and source.strip(member.type).name == name for member in source.members(value)
    )


def load_struct_ops_prog(
    type_name: str,
    member: str,
    insns: Code | bytes,
    *,
    module: str | None = None,
    name: str = "",
    license: str = "GPL",
    flags: int = 0,
    log_level: int = 0,
) -> Prog:
    """Load a program for a member of a type (of a module, if one is named). Raises BpfError, LookupError.

    Its context is an array of 64-bit arguments. expected_attach_type is the member's number
    (kernel/bpf/verifier.c:check_struct_ops_btf_id).
    """
    source = btf.of(module)
    type_id = source.struct(type_name)
    return Prog.load(
        insns,
        uapi.BPF_PROG_TYPE_STRUCT_OPS,
        license=license,
        name=name or member[:15],
        expected_attach_type=source.member(type_id, member).index,
        attach_btf_id=type_id,
        attach_btf_obj_fd=source.attach_fd,
        flags=flags,
        log_level=log_level,
    )


def user_btf() -> BtfObject:
    """The BTF of the user's that map creation wants; the kernel looks at nothing in it
    (kernel/bpf/syscall.c:map_create). Raises BpfError.
    """
    own = BtfBuilder()
    own.integer("int", 4)
    return own.load()


def map_attributes(
    type_name: str, types: Descriptor, source: Btf, *, flags: int = 0, name: str = ""
) -> MapCreate:
    """What BPF_MAP_CREATE takes for a map of a type of `source`, to be sent, or spoilt before. Raises BpfError,
    LookupError.

    The attributes are good as long as `types` (the user's BTF) and `source` exist.
    """
    value_id = source.struct(f"bpf_struct_ops_{type_name}")
    return MapCreate(
        map_type=uapi.BPF_MAP_TYPE_STRUCT_OPS,
        key_size=4,
        value_size=source.size(value_id),
        max_entries=1,
        map_name=(name or type_name[:15]).encode(),
        map_flags=flags | (0 if source.base is None else uapi.BPF_F_VTYPE_BTF_OBJ_FD),
        btf_fd=types.fd,
        btf_vmlinux_value_type_id=value_id,
        value_type_btf_obj_fd=source.attach_fd,
    )


@dataclass(frozen=True)
class Contents:
    """What a look-up shows. Members of up to 8 bytes are numbers, those of functions program ids, others bytes."""

    state: int
    refcnt: int
    members: dict[str, int | bytes]


class StructOps:
    """A struct_ops map together with the layout of its value; owns the map."""

    def __init__(self, map: Map, type_name: str, source: Btf) -> None:
        self.map = map
        self.type_name = type_name
        self.btf = source
        self._value_id = source.struct(f"bpf_struct_ops_{type_name}")
        self._type_id = source.struct(type_name)

    @classmethod
    def create(cls, type_name: str, *, flags: int = 0, module: str | None = None, name: str = "") -> Self:
        """Create the map; BPF_F_LINK among `flags` makes a link map. Raises BpfError, LookupError."""
        source = btf.of(module)
        with user_btf() as types:
            attributes = map_attributes(type_name, types, source, flags=flags, name=name)
            return cls(Map(bpf(uapi.BPF_MAP_CREATE, attributes)), type_name, source)

    @classmethod
    def of(cls, map: Map, type_name: str, *, module: str | None = None) -> Self:
        """Look at a map that exists already, such as one of a loaded object. Raises LookupError."""
        return cls(map, type_name, btf.of(module))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the map's descriptor; a registered map lives on."""
        self.map.close()

    @functools.cached_property
    def members(self) -> dict[str, Member]:
        """The type's members by name, in order."""
        return {member.name: member for member in self.btf.members(self._type_id)}

    @functools.cached_property
    def data_offset(self) -> int:
        """Where the type begins in the value, in bytes."""
        return self.btf.member(self._value_id, "data").offset

    @functools.cached_property
    def functions(self) -> tuple[str, ...]:
        """The names of the function members, in order."""
        return tuple(name for name in self.members if self._is_function(name))

    @functools.cached_property
    def holes(self) -> tuple[range, ...]:
        """The parts of the value, as byte offsets, in which no member lies."""
        covered = [self._span(member) for member in self.btf.members(self._value_id)[:-1]]
        inside = [self._span(member, self.data_offset) for member in self.members.values()]
        end = self.map.shape.value_size
        edges = sorted([*covered, *inside, range(end, end)], key=lambda span: span.start)
        before = [0, *(span.stop for span in edges)]
        return tuple(
            range(at, span.start) for at, span in zip(before, edges, strict=False) if at < span.start
        )

    def value(
        self,
        filling: Mapping[str, Filling],
        *,
        head: Mapping[str, int] | None = None,
        places: Mapping[str, int] | None = None,
    ) -> bytes:
        """The map's value for these members, everything else zero. Raises KeyError, ValueError.

        For values that the kernel must refuse, `head` sets state and refcnt, and `places` puts a member at another
        byte offset in the type than its own.
        """
        raw = bytearray(self.map.shape.value_size)
        for name, content in filling.items():
            member = self.members[name]
            size = self.btf.size(member.type)
            if isinstance(content, Prog):
                part = content.fd.to_bytes(size, "little")
            elif isinstance(content, int):
                part = (content & ((1 << size * 8) - 1)).to_bytes(size, "little")
            else:
                part = content.encode() if isinstance(content, str) else content
            if len(part) > size:
                raise ValueError(f"{self.type_name}.{name} has {size} bytes, not {len(part)}")
            at = self.data_offset + (places or {}).get(name, member.offset)
            raw[at : at + len(part)] = part
        for name, number in (head or {}).items():
            at = self.head_offset(name)
            raw[at : at + 4] = number.to_bytes(4, "little")
        return bytes(raw)

    def update(self, filling: Mapping[str, Filling] | bytes, *, flags: int = 0, key: int = 0) -> None:
        """Write the value: registers a plain map, makes a link map READY. Raises BpfError."""
        raw = filling if isinstance(filling, bytes) else self.value(filling)
        self.map.update(key, raw, flags=flags)

    def delete(self, *, key: int = 0) -> None:
        """Unregister a plain map. Raises BpfError."""
        self.map.delete(key)

    def link(self, *, flags: int = 0) -> Link:
        """Register a READY link map. Raises BpfError."""
        return Link.struct_ops(self.map, flags=flags)

    def lookup(self) -> bytes:
        """The value as the kernel shows it: function members hold program ids. Raises BpfError."""
        raw = self.map.lookup(0)
        assert raw is not None, "key 0 of a struct_ops map always exists"
        return raw

    def number(self, name: str, raw: bytes | None = None) -> int:
        """A member of the type as an unsigned integer, from `raw` or a fresh look-up.

        Raises BpfError, KeyError.
        """
        member = self.members[name]
        at = self.data_offset + member.offset
        return int.from_bytes((raw or self.lookup())[at : at + self.btf.size(member.type)], "little")

    def contents(self, raw: bytes | None = None) -> Contents:
        """All of a value, from `raw` or a fresh look-up. Raises BpfError."""
        raw = raw or self.lookup()
        members: dict[str, int | bytes] = {}
        for name, member in self.members.items():
            span = self._span(member, self.data_offset)
            part = raw[span.start : span.stop]
            members[name] = int.from_bytes(part, "little") if len(part) <= 8 else part
        return Contents(self._head("state", raw), self._head("refcnt", raw), members)

    def prog_ids(self) -> dict[str, int]:
        """Ids of the programs of all filled function members. Raises BpfError."""
        raw = self.lookup()
        return {name: id for name in self.functions if (id := self.number(name, raw))}

    def state(self) -> int:
        """BPF_STRUCT_OPS_STATE_*. Raises BpfError."""
        return self._head("state")

    def refcnt(self) -> int:
        """References of users, as the kernel estimates them (STATE_INUSE: 1 plus sockets).

        Raises BpfError.
        """
        return self._head("refcnt")

    def head_offset(self, name: str) -> int:
        """Where "state" or "refcnt" stands in the value, in bytes."""
        # since 6.9 the two stand in a structure of their own, struct bpf_struct_ops_common_value
        inner = self.btf.members(self._value_id)[0].name
        return self.btf.member(self._value_id, f"common.{name}" if inner == "common" else name).offset

    def _head(self, name: str, raw: bytes | None = None) -> int:
        at = self.head_offset(name)
        return int.from_bytes((raw or self.lookup())[at : at + 4], "little")

    def _span(self, member: Member, base: int = 0) -> range:
        start = base + member.offset
        return range(start, start + self.btf.size(member.type))

    def _is_function(self, name: str) -> bool:
        pointer = self.btf.strip(self.members[name].type)
        if pointer.kind != uapi.BTF_KIND_PTR or not pointer.type:
            return False
        return self.btf.strip(pointer.type).kind == uapi.BTF_KIND_FUNC_PROTO
