# SPDX-License-Identifier: MIT
"""Caches that have some things to themselves, and all others in common with the user's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from harness.cache import Cache

TEMPLATE_KINDS = ("boot-template", "load-template")
STATE = "state"
SHARED_STATES = ("apt", "bytecode", "kernel-names", "slots")
"""What a cache with a state of its own nevertheless shares: what is known of Debian's archive, byte code, and whose
turn it is to have memory."""
_LOCKS = ".locks"


def private_cache(base: Cache, root: Path, own: Collection[str] = TEMPLATE_KINDS) -> Cache:
    """A new cache at `root` with entries of the kinds `own` to itself; all others, and the locks, are those of `base`.

    With STATE among them it shares no states but SHARED_STATES.
    """
    root.mkdir(parents=True)
    for name in (_LOCKS, STATE):
        (base.root / name).mkdir(parents=True, exist_ok=True)
    for folder in base.root.iterdir():
        hidden = folder.name.startswith(".") and folder.name != _LOCKS
        if folder.is_dir() and not hidden and folder.name not in own:
            (root / folder.name).symlink_to(folder, target_is_directory=True)
    if STATE in own:
        (root / STATE).mkdir()
        for name in SHARED_STATES:
            shared = base.root / STATE / name
            shared.mkdir(exist_ok=True)
            (root / STATE / name).symlink_to(shared, target_is_directory=True)
    return Cache(root)


def empty(cache: Cache, kind: str) -> None:
    """Remove all entries of that kind, which a private cache has to itself."""
    private = (cache.root / _LOCKS).is_symlink() and not (cache.root / kind).is_symlink()
    assert private, f"the cache shares its {kind} with the user's"
    for entry in cache.entries(kind):
        cache.remove(kind, entry.key)


def templates(cache: Cache) -> set[tuple[str, str]]:
    """Kind and key of all templates in the cache."""
    return {(entry.kind, entry.key) for kind in TEMPLATE_KINDS for entry in cache.entries(kind)}
