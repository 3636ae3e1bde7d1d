# SPDX-License-Identifier: MIT
"""What exists in a guest at one moment: BPF objects, modules, network namespaces, pins.

The guest fills an `Inventory` before and after a scenario and sends it as JSON; `harness.verdict.leaks`
compares the two. Needs nothing but the standard library, so that it can be imported on either side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

_FORM = "inventory: {what}: expected {expected}, got {got!r}"


@dataclass(frozen=True)
class Item:
    """One object of the guest.

    `id` is what the kernel calls it: the number that `BPF_*_GET_NEXT_ID` hands out for programs, maps, links
    and BTF, the module's name, the namespace's inode number, the pin's path. `name` is for people: the
    program's or map's name, a link's type and target, the name under /run/netns, what is pinned. `extra`
    holds further facts as strings or numbers, see the fields of `Inventory` for those that `leaks` reads.
    """

    id: int | str
    name: str = ""
    extra: tuple[tuple[str, int | str], ...] = ()

    def get(self, key: str, default: int | str = "") -> int | str:
        """The extra fact `key`, or `default`."""
        return next((value for name, value in self.extra if name == key), default)

    @classmethod
    def make(cls, id: int | str, name: str = "", **extra: int | str) -> Item:
        """An item whose extra facts are given as keywords: `Item.make(7, "xdp_drop", type="xdp")`."""
        return cls(id, name, tuple(sorted(extra.items())))

    def to_json(self) -> dict[str, object]:
        """Plain data that `json.dumps` takes."""
        return {"id": self.id, "name": self.name, "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, data: object) -> Item:
        """The item that `to_json` described; ValueError when the data has another form."""
        if not isinstance(data, Mapping):
            raise ValueError(_FORM.format(what="item", expected="an object", got=data))
        id, name, extra = data.get("id"), data.get("name", ""), data.get("extra", {})
        if isinstance(id, bool) or not isinstance(id, int | str):
            raise ValueError(_FORM.format(what="item id", expected="a number or a string", got=id))
        if not isinstance(name, str) or not isinstance(extra, Mapping):
            raise ValueError(_FORM.format(what=f"item {id}", expected="a name and extra facts", got=data))
        for key, value in extra.items():
            if not isinstance(key, str) or not isinstance(value, int | str):
                raise ValueError(_FORM.format(what=f"item {id}", expected="strings or numbers", got=extra))
        return cls.make(id, name, **extra)


@dataclass(frozen=True)
class Inventory:
    """Everything of the guest that a scenario could leave behind. Each field's items are sorted by id.

    progs: extra `type`, `tag`. maps: extra `type`. links: extra `type`, `prog_id`. btfs: extra `kernel` (1
    for vmlinux and modules, as `bpf_btf_info.kernel_btf` says). modules: id = name; extra `refcount`, `state`
    ("Live", "Loading", "Unloading") and `taint` (the letters in brackets at the end of its line in
    /proc/modules, "" for none). netns: id = inode number. pins: id = path under /sys/fs/bpf; extra `kind`.
    """

    progs: tuple[Item, ...] = ()
    maps: tuple[Item, ...] = ()
    links: tuple[Item, ...] = ()
    btfs: tuple[Item, ...] = ()
    modules: tuple[Item, ...] = ()
    netns: tuple[Item, ...] = ()
    pins: tuple[Item, ...] = ()

    @classmethod
    def make(cls, **kinds: Iterable[Item]) -> Inventory:
        """An inventory from any iterables of items, sorted."""
        return cls(**{kind: _sorted(items) for kind, items in kinds.items()})

    def to_json(self) -> dict[str, object]:
        """Plain data that `json.dumps` takes."""
        return {field.name: [item.to_json() for item in getattr(self, field.name)] for field in fields(self)}

    @classmethod
    def from_json(cls, data: object) -> Inventory:
        """The inventory that `to_json` described; a kind that is absent is empty. ValueError when the form is
        wrong.
        """
        if not isinstance(data, Mapping):
            raise ValueError(_FORM.format(what="inventory", expected="an object", got=data))
        kinds: dict[str, list[Item]] = {}
        known = {field.name for field in fields(cls)}
        for kind, items in data.items():
            if kind not in known or not isinstance(items, list):
                raise ValueError(
                    _FORM.format(what=repr(kind), expected=f"a list for one of {sorted(known)}", got=items)
                )
            kinds[kind] = [Item.from_json(item) for item in items]
        return cls.make(**kinds)


def _sorted(items: Iterable[Item]) -> tuple[Item, ...]:
    """By id: numbers by value, then strings."""
    return tuple(
        sorted(
            items,
            key=lambda item: (
                isinstance(item.id, str),
                item.id if isinstance(item.id, int) else 0,
                str(item.id),
            ),
        )
    )
