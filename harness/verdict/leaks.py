# SPDX-License-Identifier: MIT
"""What a scenario left behind in the guest, found by comparing two inventories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.verdict.inventory import Inventory, Item

_PLAIN = (("prog", "progs"), ("map", "maps"), ("link", "links"), ("netns", "netns"), ("pin", "pins"))


@dataclass(frozen=True)
class Leak:
    """One object that exists after the scenario and did not before. `kind` is "prog", "map", "link", "btf",
    "module", "module-reference", "netns" or "pin".
    """

    kind: str
    id: int | str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name and self.name != self.id else ""
        return f"{self.kind} {self.id}{name}" + (f" ({self.detail})" if self.detail else "")


def leaks(before: Inventory, after: Inventory) -> tuple[Leak, ...]:
    """The objects in `after` that `before` lacks, by kind and id. Take `after` once deferred frees have had
    their time.

    The kernel loads its own modules when it is asked for a device type or a congestion control, and keeps
    them: such a module and its BTF are no leak. A module from outside the kernel tree (taint letter O) or a
    test module (N) is one, and so are more references to it than before, and any module that is stuck while
    loading or unloading.
    """
    found: list[Leak] = []
    for kind, name in _PLAIN:
        known = {item.id for item in getattr(before, name)}
        found.extend(_leak(kind, item) for item in getattr(after, name) if item.id not in known)
    found.extend(_btf_leaks(before, after))
    found.extend(_module_leaks(before, after))
    return tuple(found)


def _btf_leaks(before: Inventory, after: Inventory) -> Iterator[Leak]:
    known = {item.id for item in before.btfs}
    loaded = {str(item.id) for item in after.modules}
    for item in after.btfs:
        module_btf = bool(item.get("kernel", 0)) and item.name in loaded
        if item.id not in known and not module_btf:
            yield _leak("btf", item)


def _module_leaks(before: Inventory, after: Inventory) -> Iterator[Leak]:
    known = {item.id: item for item in before.modules}
    for item in after.modules:
        earlier = known.get(item.id)
        ours = bool(set(str(item.get("taint"))) & set("ON"))
        stuck = item.get("state", "Live") != "Live" and (
            earlier is None or earlier.get("state", "Live") == "Live"
        )
        if stuck or (earlier is None and ours):
            yield _leak("module", item)
        elif earlier is not None and ours and _count(item) > _count(earlier):
            change = f"{_count(earlier)} references before, {_count(item)} after"
            yield Leak("module-reference", item.id, item.name, change)


def _count(module: Item) -> int:
    count = module.get("refcount", 0)
    return count if isinstance(count, int) else 0


def _leak(kind: str, item: Item) -> Leak:
    return Leak(
        kind, item.id, item.name, ", ".join(f"{key} {value}" for key, value in item.extra if value != "")
    )
