# SPDX-License-Identifier: MIT
"""Verbs for objects that may be in a list and a tree at once."""

from __future__ import annotations

from harness.guest.bpf.asm import Item, Reg, add, ja, jeq, jne, label, ldxdw, mov, r0, r2, r7, r8, r9
from scenarios.kptr.workshop import Home, Workshop


def push(w: Workshop, object: Reg, home: Home | None = None) -> Item:
    """Push a shared object on the list of a store under its lock; r9 = the result."""
    return [
        w.lock(home),
        w.push(object, "list", w.t.shared.at["node"], home=home),
        mov(r9, r0),
        w.unlock(home),
    ]


def add_to_tree(w: Workshop, object: Reg, home: Home | None = None) -> Item:
    """Add a shared object to the tree of a store under its lock; r9 = the result."""
    return [
        w.lock(home),
        w.add(object, "tree", w.t.shared.at["tree"], home=home),
        mov(r9, r0),
        w.unlock(home),
    ]


def pop(w: Workshop) -> Item:
    """r7 = a shared object from the list, or leave."""
    return [
        w.lock(),
        w.pop("list"),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -w.t.shared.at["node"]),
    ]


def remove(w: Workshop) -> Item:
    """r7 = the first object of the tree, out of it, or leave."""
    return [
        w.lock(),
        w.on_tree("first", "tree"),
        jne(r0, 0, "there_is_one"),
        w.unlock(),
        ja("out"),
        label("there_is_one"),
        w.on_tree("remove", "tree", mov(r2, r0)),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -w.t.shared.at["tree"]),
    ]


def another(w: Workshop, object: Reg = r7, into: Reg = r8) -> Item:
    """One more reference to an object that the program owns."""
    return [w.acquire(object), mov(into, r0)]


def drop_and_tell(w: Workshop) -> Item:
    """Drop r7, return its key."""
    return [ldxdw(r8, r7, w.t.shared.at["key"]), w.drop(r7), mov(r0, r8), ja("exit")]
