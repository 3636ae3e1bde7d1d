# SPDX-License-Identifier: MIT
"""Types with special fields, put together by hand as no compiler would, and what the kernel says of them."""

from __future__ import annotations

from collections.abc import Callable

from harness.guest.bpf import btf
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.syscall import BpfError
from scenarios.kptr.pointers import kind, map_with

Field = tuple[str, str] | tuple[str, str, int]
"""A member: its name, what it is (see `Types.field`), and its offset if that is not behind the one before."""


class Types(BtfBuilder):
    """A builder that knows the special structures, whose sizes it takes from the running kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, int] = {}
        self.u32 = self.integer("unsigned int", 4)
        self.u64 = self.integer("unsigned long long", 8)
        self.sizes: dict[str, int] = {}

    @property
    def next_id(self) -> int:
        """The id that the next type will have, for what points ahead."""
        return self._count + 1

    def special(self, name: str) -> int:
        """One of the structures that the kernel knows by name: bpf_spin_lock, bpf_list_head, ..."""
        if name not in self._known:
            kernel = btf.vmlinux()
            self.sizes[name] = kernel.size(kernel.struct(name))
            self._known[name] = self.struct(name, self.sizes[name])
        return self._known[name]

    def declare(self, name: str) -> int:
        """A structure by its name; unless it is there already, one without members."""
        if name not in self._known:
            self._known[name] = self.struct(name, 0)
        return self._known[name]

    def pointer(self, *tags: str, to: int) -> int:
        """A pointer to `to` with these tags, the outermost first."""
        for tag in reversed(tags):
            to = self.type_tag(tag, to)
        return self.ptr(to)

    def object(self, name: str, *fields: Field) -> int:
        """A structure of these members, one behind the other but for those that say where.

        A member is "u64", a special structure's short name ("lock", "list_head", "list_node", "rb_root", "rb_node",
        "refcount", "timer"), one of a root "of TYPE:NODE" (or any other text, for the tag that tells what it contains),
        or "TAG *POINTEE" for a tagged pointer.
        """
        members, contains, end = [], [], 0
        for index, field in enumerate(fields):
            member, what = field[0], field[1]
            kind, _, target = what.partition(" of ")
            type, size, align = self._type_of(kind)
            at = field[2] if len(field) == 3 else -(-end // align) * align
            members.append((member, type, at))
            if target:
                contains.append((index, target))
            end = max(end, at + size)
        id = self.struct(name, -(-end // 8) * 8, members)
        for index, target in contains:
            self.decl_tag(f"contains:{target}", id, index)
        self.sizes[name] = -(-end // 8) * 8
        self._known[name] = id
        return id

    def _type_of(self, kind: str) -> tuple[int, int, int]:
        if kind == "u64":
            return self.u64, 8, 8
        tag, star, pointee = kind.partition(" *")
        if star:
            return self.pointer(tag, to=self.declare(pointee)), 8, 8
        name = {"lock": "bpf_spin_lock"}.get(kind, f"bpf_{kind}")
        id = self.special(name)
        return id, self.sizes[name], 4 if kind in ("lock", "refcount") else 8


def made_of(build: Callable[[Types], int], offset: int = 0) -> str:
    """What a value of this structure has at an offset (see `kind`); or "types" and the errno's name if its types do not
    load, "map" and the name if no map of them is made.
    """
    b = Types()
    value = build(b)
    try:
        with map_with(b, value, b.sizes["value"]) as map:
            return kind(map, offset)
    except BpfError as error:
        what = {"BPF_BTF_LOAD": "types", "BPF_MAP_CREATE": "map"}[error.command]
        return f"{what}: {error.errno_name}"
