# SPDX-License-Identifier: MIT
"""BTF of the kernel, of its modules and of loaded objects: type and function ids, sizes, member offsets.

`vmlinux()` parses the kernel's BTF once per process, so that a warm template holds it for all its clones.
Layout of the types: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import U32, Attr, layout
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.info import BtfInfo, btf_info
from harness.guest.bpf.libbpf import checked, libbpf

KERNEL_BTF = Path("/sys/kernel/btf")

_MODIFIERS = frozenset(
    (
        uapi.BTF_KIND_TYPEDEF,
        uapi.BTF_KIND_VOLATILE,
        uapi.BTF_KIND_CONST,
        uapi.BTF_KIND_RESTRICT,
        uapi.BTF_KIND_TYPE_TAG,
    )
)


@layout
class _RawType(Attr):
    """struct btf_type."""

    name_off: U32
    info: U32
    size_or_type: U32


class BtfObject(Descriptor):
    """A BTF object in the kernel: vmlinux, a module's, or one loaded by user space."""

    _GET_FD = uapi.BPF_BTF_GET_FD_BY_ID
    _GET_NEXT = uapi.BPF_BTF_GET_NEXT_ID

    def info(self) -> BtfInfo:
        """The kernel's description. Raises BpfError."""
        return btf_info(self.fd)

    @functools.cached_property
    def id(self) -> int:
        """The kernel's id of this BTF object."""
        return self.info().id


@dataclass(frozen=True)
class Type:
    """A BTF type; `size` is that of sized kinds, or the type referred to (one field in the format)."""

    id: int
    kind: int
    name: str
    vlen: int
    kind_flag: bool
    size: int
    address: int

    @property
    def type(self) -> int:
        """The id referred to."""
        return self.size


@dataclass(frozen=True)
class Member:
    """A member of a structure or union: number, type id, offset in bits, width of a bit field (else 0)."""

    index: int
    name: str
    type: int
    bit_offset: int
    bitfield_size: int

    @property
    def offset(self) -> int:
        """The offset in bytes."""
        return self.bit_offset // 8


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function."""

    name: str
    type: int


class Btf:
    """Types of one BTF object, together with those of vmlinux if it is a module's."""

    def __init__(self, handle: int, name: str, base: Btf | None = None, *, owned: bool = False) -> None:
        self.handle = handle
        self._owned = owned
        self.name = name
        self.base = base  # keeps libbpf's base alive, too
        self._ids: dict[tuple[str, int], int] = {}

    @classmethod
    def parse(cls, blob: bytes, name: str = "blob") -> Btf:
        """Types of a raw BTF blob. Raises BpfError if libbpf finds it malformed."""
        handle = checked(libbpf().btf__new(blob, len(blob)), "btf__new", about=name)
        return cls(handle, name, owned=True)

    def __del__(self) -> None:
        if getattr(self, "_owned", False) and self.handle:
            libbpf().btf__free(self.handle)

    def __repr__(self) -> str:
        return f"<Btf {self.name}>"

    @functools.cached_property
    def object(self) -> BtfObject:
        """The kernel's object, with its descriptor (for attach_btf_obj_fd, fd_array) and id.

        Raises BpfError.
        """
        for id in BtfObject.ids():
            found = BtfObject.from_id(id)
            info = found.info()
            if info.kernel_btf and info.name == self.name:
                return found
            found.close()
        raise LookupError(f"the kernel has no BTF object named {self.name}")

    @property
    def attach_fd(self) -> int:
        """What attach_btf_obj_fd wants: 0 for vmlinux, else the module's BTF descriptor."""
        return 0 if self.base is None else self.object.fd

    def find(self, name: str, kind: int) -> int | None:
        """The id of the first type of this name and kind, or None."""
        if (name, kind) not in self._ids:
            found = libbpf().btf__find_by_name_kind(self.handle, name.encode(), kind)
            if found < 0:
                return None
            self._ids[name, kind] = found
        return self._ids[name, kind]

    def id(self, name: str, kind: int) -> int:
        """As `find`. Raises LookupError instead of returning None."""
        found = self.find(name, kind)
        if found is None:
            raise LookupError(f"BTF of {self.name} has no {name} of kind {kind}")
        return found

    def struct(self, name: str) -> int:
        """The id of a structure. Raises LookupError."""
        return self.id(name, uapi.BTF_KIND_STRUCT)

    def func(self, name: str) -> int:
        """The id of a function (FUNC). Raises LookupError."""
        return self.id(name, uapi.BTF_KIND_FUNC)

    def has_func(self, name: str) -> bool:
        """Whether there is a function of this name."""
        return self.find(name, uapi.BTF_KIND_FUNC) is not None

    def type(self, id: int) -> Type:
        """The type with this id. Raises LookupError."""
        address = libbpf().btf__type_by_id(self.handle, id)
        if not address:
            raise LookupError(f"BTF of {self.name} has no type {id}")
        raw = _RawType.from_address(address)
        # 24 bits of vlen since 7.2; older kernels have 16 and leave the others zero
        return Type(
            id=id,
            kind=raw.info >> 24 & 0x1F,
            name=self._string(raw.name_off),
            vlen=raw.info & 0xFFFFFF,
            kind_flag=bool(raw.info >> 31),
            size=raw.size_or_type,
            address=address,
        )

    def strip(self, id: int) -> Type:
        """The type behind typedefs, qualifiers and tags."""
        type = self.type(id)
        while type.kind in _MODIFIERS:
            type = self.type(type.type)
        return type

    def size(self, id: int) -> int:
        """Size in bytes. Raises BpfError for types without one."""
        return checked(libbpf().btf__resolve_size(self.handle, id), "btf__resolve_size")

    def members(self, id: int) -> list[Member]:
        """Members of a structure or union, unnamed ones with an empty name."""
        type = self.strip(id)
        if type.kind not in (uapi.BTF_KIND_STRUCT, uapi.BTF_KIND_UNION):
            raise LookupError(f"{type.name or id} is no structure")
        found = []
        for index, (name_off, member_type, offset) in enumerate(records(type, 3)):
            bits, width = (offset & 0xFFFFFF, offset >> 24) if type.kind_flag else (offset, 0)
            found.append(Member(index, self._string(name_off), member_type, bits, width))
        return found

    def member(self, id: int, path: str) -> Member:
        """A member by its dotted path, through anonymous structures; its offset counts from the outermost.

        `index` is the member's number in the structure it stands in. Raises LookupError.
        """
        first, _, rest = path.partition(".")
        found = self._search(id, first)
        if found is None:
            raise LookupError(f"{self.strip(id).name or id} has no member {first}")
        if not rest:
            return found
        inner = self.member(found.type, rest)
        return Member(
            inner.index, inner.name, inner.type, found.bit_offset + inner.bit_offset, inner.bitfield_size
        )

    def _search(self, id: int, name: str) -> Member | None:
        for member in self.members(id):
            if member.name == name:
                return member
            if not member.name:
                inner = self._search(member.type, name)
                if inner is not None:
                    bits = member.bit_offset + inner.bit_offset
                    return Member(inner.index, name, inner.type, bits, inner.bitfield_size)
        return None

    def offset(self, struct: str, path: str) -> int:
        """Byte offset of a member of a named structure. Raises LookupError."""
        return self.member(self.struct(struct), path).offset

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of an enumeration. Raises LookupError."""
        type = self.type(self.id(name, uapi.BTF_KIND_ENUM))
        return {
            self._string(name_off): value - (1 << 32) if type.kind_flag and value >> 31 else value
            for name_off, value in records(type, 2)
        }

    def parameters(self, name: str) -> list[Parameter]:
        """Parameters of a function. Raises LookupError."""
        proto = self.type(self.type(self.func(name)).type)
        return [Parameter(self._string(name_off), type) for name_off, type in records(proto, 2)]

    def _string(self, offset: int) -> str:
        text: bytes | None = libbpf().btf__name_by_offset(self.handle, offset)
        return (text or b"").decode()


def records(type: Type, words: int) -> list[tuple[int, ...]]:
    """What follows a type in the format: `vlen` records of so many 32-bit words."""
    numbers = (ctypes.c_uint32 * (words * type.vlen)).from_address(type.address + ctypes.sizeof(_RawType))
    return [tuple(numbers[at : at + words]) for at in range(0, len(numbers), words)]


@functools.cache
def vmlinux() -> Btf:
    """The kernel's BTF. Raises BpfError if it has none."""
    return Btf(checked(libbpf().btf__load_vmlinux_btf(), "btf__load_vmlinux_btf"), "vmlinux")


def module(name: str) -> Btf:
    """The BTF of a loaded module, parsed anew (a reloaded module may differ).

    Raises LookupError, BpfError.
    """
    found = Btf(0, name, vmlinux(), owned=True)
    handle = libbpf().btf__load_from_kernel_by_id_split(found.object.id, vmlinux().handle)
    found.handle = checked(handle, "btf__load_from_kernel_by_id_split", about=f"module {name}")
    return found


def home(name: str) -> Btf:
    """The BTF with the types of a module: its own, or vmlinux's where the module is built in. Raises BpfError."""
    return module(name) if (KERNEL_BTF / name).exists() else vmlinux()


def of(module_name: str | None) -> Btf:
    """`vmlinux()` for None, else the module's BTF."""
    return vmlinux() if module_name is None else module(module_name)


def objects() -> list[BtfInfo]:
    """All BTF objects in the kernel, those of vmlinux and modules included. Raises BpfError."""
    infos = []
    for id in BtfObject.ids():
        with BtfObject.from_id(id) as each:
            infos.append(each.info())
    return infos
