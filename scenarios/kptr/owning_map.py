# SPDX-License-Identifier: MIT
"""A map whose value has one pointer that owns its object and one that does not, in the kernel's own words for both."""

from __future__ import annotations

from dataclasses import dataclass

from harness.guest.bpf import uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has

# The one that owns stands last: up to 6.1 a pointer behind it puts the pointee's module once more than it was got
# (kernel/bpf/btf.c:btf_parse_kptrs).
SEEN, OWNED, VALUE_SIZE = 8, 24, 32
"""Offsets of the two pointers: struct value { u64 before; T *seen; u64 between; T *owned; }."""


@dataclass(frozen=True)
class OwningTypes:
    """The types of such a map: the loaded BTF, and in it the key's and the value's."""

    btf: BtfObject
    key: int
    value: int


def owning_types(pointee: str, *, locked: bool = False) -> OwningTypes:
    """The types for pointers to the kernel's or a module's structure; `locked` puts a spin lock where `before` is.

    Raises BpfError.
    """
    # 6.4 turned the tags round (kernel/bpf/btf.c:btf_find_kptr)
    owned_tag, seen_tag = ("kptr", "kptr_untrusted") if has("kptr_untrusted_tag") else ("kptr_ref", "kptr")
    b = BtfBuilder()
    u32, u64, target = b.integer("u32", 4), b.integer("u64", 8), b.struct(pointee, 0)
    owned = b.ptr(b.type_tag(owned_tag, target))
    seen = b.ptr(b.type_tag(seen_tag, target))
    before = ("lock", b.struct("bpf_spin_lock", 4, [("val", u32, 0)]), 0) if locked else ("before", u64, 0)
    members = [before, ("seen", seen, SEEN), ("between", u64, 16), ("owned", owned, OWNED)]
    value = b.struct("value", VALUE_SIZE, members)
    return OwningTypes(b.load(), u32, value)


def owning_map(
    pointee: str,
    map_type: int = uapi.BPF_MAP_TYPE_ARRAY,
    *,
    flags: int = 0,
    max_entries: int = 4,
    locked: bool = False,
) -> Map:
    """Values keyed 0 to 3 (or more), of pointers to the kernel's or a module's structure. Raises BpfError."""
    types = owning_types(pointee, locked=locked)
    with types.btf:
        return Map.create(
            map_type,
            4,
            VALUE_SIZE,
            max_entries,
            name="owning",
            flags=flags,
            btf=types.btf,
            btf_key_type_id=types.key,
            btf_value_type_id=types.value,
        )
