# SPDX-License-Identifier: MIT
"""Structures that exist in the programs' BTF only, which programs allocate, and a map value that owns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.guest.bpf import uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.btf_builder import BTF_FUNC_GLOBAL, BTF_FUNC_STATIC, BTF_INT_SIGNED, BtfBuilder
from harness.guest.bpf.map import Map

# names and sizes of the kernel's structures: include/uapi/linux/bpf.h
_SPECIAL = {
    "lock": ("bpf_spin_lock", 4),
    "head": ("bpf_list_head", 16),
    "list_node": ("bpf_list_node", 24),
    "root": ("bpf_rb_root", 16),
    "tree_node": ("bpf_rb_node", 32),
    "refcount": ("bpf_refcount", 4),
}

FUNCTIONS = {
    "main": "entry",
    "less": "compare",
    "part": "compare",
    "outer": "each",
    "inner": "each",
    "global": "global",
    "global_too": "global",
}
"""Functions that programs may have, by their label, and what each is; all are static but "main" and the global ones."""


@dataclass(frozen=True)
class Local:
    """A structure: its id in the BTF, its size, where its members are."""

    name: str
    id: int
    size: int
    at: Mapping[str, int]


class LocalBtf:
    """Collects structures. A member is its name and what it is:

    "u64"; "lock", "head TYPE.MEMBER", "list_node", "root TYPE.MEMBER", "tree_node", "refcount"; "heads" and "roots" for
    arrays of two; "struct TYPE"; "kptr TYPE" and "percpu_kptr TYPE", where TYPE may be a structure of the kernel or of
    a module. Structures come before those that name them.
    """

    def __init__(self) -> None:
        self.builder = b = BtfBuilder()
        self.u32, self.u64 = b.integer("u32", 4), b.integer("u64", 8)
        self._special = {word: (b.struct(name, size), size) for word, (name, size) in _SPECIAL.items()}
        self._structs: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        number, pointer = b.integer("int", 4, encoding=BTF_INT_SIGNED), b.ptr(0)
        protos = {
            "entry": b.func_proto(number, [("ctx", b.ptr(b.struct("__sk_buff", 0)))]),
            "compare": b.func_proto(number, [(name, pointer) for name in "ab"]),
            "each": b.func_proto(number, [(name, pointer) for name in ("map", "key", "value", "ctx")]),
            "global": b.func_proto(number),
        }
        self.functions = {
            name: b.func(
                name,
                protos[kind],
                linkage=BTF_FUNC_GLOBAL if kind in ("entry", "global") else BTF_FUNC_STATIC,
            )
            for name, kind in FUNCTIONS.items()
        }

    def struct(self, name: str, *members: tuple[str, str]) -> Local:
        """Add a structure, with the C layout, or one of the kernel's if it has no members."""
        fields, at, end = [], {}, 0
        for member, what in members:
            id, size = self._kind(*what.partition(" ")[::2])
            at[member] = end = -(-end // min(size, 8)) * min(size, 8)
            fields.append((member, id, end))
            end += size
        size = -(-end // 8) * 8
        id = self.builder.struct(name, size, fields)
        for index, (_, what) in enumerate(members):
            word, _, target = what.partition(" ")
            if word.startswith(("head", "root")):
                self.builder.decl_tag(f"contains:{target.replace('.', ':')}", id, index)
        self._structs[name], self._sizes[name] = id, size
        return Local(name, id, size, at)

    def _kind(self, word: str, target: str) -> tuple[int, int]:
        if word == "u64":
            return self.u64, 8
        if word in ("heads", "roots"):
            id, size = self._special[word.removesuffix("s")]
            return self.builder.array(id, 2, self.u32), 2 * size
        if word == "struct":
            return self._structs[target], self._sizes[target]
        if word in self._special:
            return self._special[word]
        return self.builder.ptr(self.builder.type_tag(word, self._structs[target])), 8


@dataclass(frozen=True)
class LocalTypes:
    """The structures of the scenarios, loaded. Those that own an object of kr_kptr do so in a member `held`."""

    btf: BtfObject
    key: int
    functions: Mapping[str, int]
    plain: Local
    """No special fields."""
    twin: Local
    """As `plain`, by another name."""
    elem: Local
    """In one list, by the first of its nodes."""
    leaf: Local
    """In one tree."""
    shared: Local
    """In a list and a tree at once, refcounted."""
    basket: Local
    """In a list; has a list of `elem`, a tree of `leaf`, their lock, and a `plain` of its own."""
    large: Local
    """516 bytes of data."""
    locked: Local
    """A lock and data."""
    store: Local
    """The value of maps: lists and trees of each, and a pointer to each."""

    def map(
        self,
        map_type: int = uapi.BPF_MAP_TYPE_ARRAY,
        max_entries: int = 4,
        *,
        flags: int = 0,
        value: Local | None = None,
    ) -> Map:
        """A map of stores, or of other values. Raises BpfError."""
        value = value or self.store
        return Map.create(
            map_type,
            4,
            value.size,
            max_entries,
            name="stores",
            flags=flags,
            btf=self.btf,
            btf_key_type_id=self.key,
            btf_value_type_id=value.id,
        )


def local_types() -> LocalTypes:
    """Load the types. kr_kptr must be loaded (its type would be a local one otherwise). Raises BpfError."""
    b = LocalBtf()
    b.struct("kr_obj")
    plain = b.struct("kr_plain", ("key", "u64"), ("data", "u64"))
    twin = b.struct("kr_twin", ("key", "u64"), ("data", "u64"))
    elem = b.struct(
        "kr_elem",
        ("key", "u64"),
        ("node", "list_node"),
        ("spare", "list_node"),
        ("held", "kptr kr_obj"),
        ("data", "u64"),
    )
    leaf = b.struct(
        "kr_leaf", ("key", "u64"), ("tree", "tree_node"), ("held", "kptr kr_obj"), ("data", "u64")
    )
    shared = b.struct(
        "kr_shared",
        ("node", "list_node"),
        ("refs", "refcount"),
        ("key", "u64"),
        ("tree", "tree_node"),
        ("held", "kptr kr_obj"),
        ("data", "u64"),
    )
    basket = b.struct(
        "kr_basket",
        ("key", "u64"),
        ("node", "list_node"),
        ("lock", "lock"),
        ("elems", "head kr_elem.node"),
        ("leaves", "root kr_leaf.tree"),
        ("plain", "kptr kr_plain"),
        ("held", "kptr kr_obj"),
    )
    large = b.struct("kr_large", *((f"data{i}", "u64") for i in range(65)))
    locked = b.struct("kr_locked", ("key", "u64"), ("lock", "lock"))
    store = b.struct(
        "kr_store",
        ("lock", "lock"),
        ("data", "u64"),
        ("elems", "head kr_elem.node"),
        ("leaves", "root kr_leaf.tree"),
        ("list", "head kr_shared.node"),
        ("tree", "root kr_shared.tree"),
        ("baskets", "head kr_basket.node"),
        ("plain", "kptr kr_plain"),
        ("elem", "kptr kr_elem"),
        ("shared", "kptr kr_shared"),
        ("basket", "kptr kr_basket"),
        ("percpu", "percpu_kptr kr_plain"),
    )
    return LocalTypes(
        b.builder.load(), b.u32, b.functions, plain, twin, elem, leaf, shared, basket, large, locked, store
    )
