# SPDX-License-Identifier: MIT
"""Raw BTF made by hand, valid or not: for map values with kptrs, and for assembler programs with functions.

    b = BtfBuilder()
    task = b.struct("task_struct", 0)
    value = b.struct("value", 8, [("task", b.ptr(b.type_tag("kptr", task)), 0)])
    with b.load() as btf:
        Map.create(..., btf=btf, btf_key_type_id=b.integer("int", 4), btf_value_type_id=value)

Every method appends one type and returns its id. Format: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import BtfLoad
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.syscall import BpfError, bpf

BTF_INT_SIGNED, BTF_INT_CHAR, BTF_INT_BOOL = 1, 2, 4
BTF_FUNC_STATIC, BTF_FUNC_GLOBAL, BTF_FUNC_EXTERN = 0, 1, 2

MemberSpec = tuple[str, int, int]
"""Name, type id, offset in bytes."""


class BtfBuilder:
    """Collects types and strings."""

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._count = 0

    def string(self, text: str) -> int:
        """The offset of `text` in the string section."""
        if not text:
            return 0
        raw = text.encode() + b"\0"
        at = self._strings.find(b"\0" + raw)
        if at >= 0:
            return at + 1
        self._strings += raw
        return len(self._strings) - len(raw)

    def raw(
        self, name: str, kind: int, vlen: int, size_or_type: int, extra: bytes = b"", *, flag: bool = False
    ) -> int:
        """Any type: `extra` follows struct btf_type, `flag` is kind_flag."""
        info = vlen | kind << 24 | flag << 31
        self._types += struct.pack("=III", self.string(name), info, size_or_type) + extra
        self._count += 1
        return self._count

    def integer(self, name: str, size: int, *, encoding: int = 0) -> int:
        """An integer of `size` bytes."""
        return self.raw(name, uapi.BTF_KIND_INT, 0, size, struct.pack("=I", encoding << 24 | size * 8))

    def ptr(self, type: int) -> int:
        """A pointer (0: to void)."""
        return self.raw("", uapi.BTF_KIND_PTR, 0, type)

    def array(self, type: int, count: int, index_type: int) -> int:
        """An array."""
        return self.raw("", uapi.BTF_KIND_ARRAY, 0, 0, struct.pack("=III", type, index_type, count))

    def struct(self, name: str, size: int, members: Sequence[MemberSpec] = ()) -> int:
        """A structure of `size` bytes."""
        return self._composite(uapi.BTF_KIND_STRUCT, name, size, members)

    def union(self, name: str, size: int, members: Sequence[MemberSpec] = ()) -> int:
        """A union of `size` bytes."""
        return self._composite(uapi.BTF_KIND_UNION, name, size, members)

    def _composite(self, kind: int, name: str, size: int, members: Sequence[MemberSpec]) -> int:
        extra = b"".join(struct.pack("=III", self.string(each), type, at * 8) for each, type, at in members)
        return self.raw(name, kind, len(members), size, extra)

    def enum(self, name: str, values: Sequence[tuple[str, int]], *, size: int = 4) -> int:
        """An enumeration."""
        extra = b"".join(struct.pack("=Ii", self.string(each), value) for each, value in values)
        return self.raw(name, uapi.BTF_KIND_ENUM, len(values), size, extra)

    def fwd(self, name: str, *, union: bool = False) -> int:
        """A declaration without definition."""
        return self.raw(name, uapi.BTF_KIND_FWD, 0, 0, flag=union)

    def typedef(self, name: str, type: int) -> int:
        """A typedef."""
        return self.raw(name, uapi.BTF_KIND_TYPEDEF, 0, type)

    def const(self, type: int) -> int:
        """A const-qualified type."""
        return self.raw("", uapi.BTF_KIND_CONST, 0, type)

    def volatile(self, type: int) -> int:
        """A volatile-qualified type."""
        return self.raw("", uapi.BTF_KIND_VOLATILE, 0, type)

    def type_tag(self, tag: str, type: int) -> int:
        """`type` with a type tag, such as "kptr" (which stands between the pointer and its target)."""
        return self.raw(tag, uapi.BTF_KIND_TYPE_TAG, 0, type)

    def decl_tag(self, tag: str, target: int, component: int = -1) -> int:
        """A declaration tag on a type (component -1) or one of its members or parameters."""
        return self.raw(tag, uapi.BTF_KIND_DECL_TAG, 0, target, struct.pack("=i", component))

    def func_proto(self, result: int = 0, parameters: Sequence[tuple[str, int]] = ()) -> int:
        """A function's type."""
        extra = b"".join(struct.pack("=II", self.string(name), type) for name, type in parameters)
        return self.raw("", uapi.BTF_KIND_FUNC_PROTO, len(parameters), result, extra)

    def func(self, name: str, proto: int, *, linkage: int = BTF_FUNC_GLOBAL) -> int:
        """A function; what func_info of a program names."""
        return self.raw(name, uapi.BTF_KIND_FUNC, linkage, proto)

    def blob(self) -> bytes:
        """The whole: header, types, strings."""
        types, strings = bytes(self._types), bytes(self._strings)
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
        return header + types + strings

    def load(self) -> BtfObject:
        """Load it into the kernel. Raises BpfError with the kernel's log."""
        return load_btf(self.blob())


def load_btf(blob: bytes) -> BtfObject:
    """BPF_BTF_LOAD of any bytes; a refused load is repeated for its log. Raises BpfError."""
    attr = BtfLoad(btf_size=len(blob))
    attr.point("btf", ctypes.create_string_buffer(blob, len(blob)))
    try:
        return BtfObject(bpf(uapi.BPF_BTF_LOAD, attr))
    except BpfError as first:
        log = ctypes.create_string_buffer(1 << 18)
        attr.point("btf_log_buf", log)
        attr.btf_log_size, attr.btf_log_level = len(log), 1
        try:
            BtfObject(bpf(uapi.BPF_BTF_LOAD, attr)).close()
        except BpfError:
            first.log = log.value.decode(errors="replace")
        raise first from None
