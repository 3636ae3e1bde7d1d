# SPDX-License-Identifier: MIT
"""Verbs for the tree of leaves that a store has."""

from __future__ import annotations

from harness.guest.bpf.asm import Item, Reg, add, ja, jeq, jne, label, mov, r0, r2, r7
from scenarios.kptr.workshop import Workshop

NODE = 8
"""Where the tree's node stands in a leaf, behind its key."""


def added(w: Workshop, object: Reg = r7, less: str = "less") -> Item:
    """Add a leaf to the value's tree under its lock."""
    return [w.lock(), w.add(object, "leaves", NODE, less=less), w.unlock()]


def first(w: Workshop, then: Item, root: str = "leaves") -> Item:
    """r7 = the first leaf's node, under the lock, and what happens to it there; the tree may be empty."""
    return [
        w.lock(),
        w.on_tree("first", root),
        jne(r0, 0, "there_is_one"),
        w.unlock(),
        ja("out"),
        label("there_is_one"),
        mov(r7, r0),
        then,
    ]


def taken(w: Workshop) -> Item:
    """r7 = the first leaf, out of the tree, or leave."""
    return [
        first(w, w.on_tree("remove", "leaves", mov(r2, r7))),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -NODE),
    ]
