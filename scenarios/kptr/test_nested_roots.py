# SPDX-License-Identifier: MIT
"""Lists and trees that do not stand at the top of a value: in a structure inside it, in arrays, in listed objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from harness.guest.bpf.asm import Item, add, ja, jeq, ldxdw, lsh, mov, or_, r0, r1, r7, r8, r9
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.leaves import NODE, taken
from scenarios.kptr.local_types import LocalBtf
from scenarios.kptr.workshop import Home, Workshop

pytestmark = [pytest.mark.requires("local_kptr")]

KEYS = [2, 3, 1]


def in_list_and_tree(
    w: Workshop, keys: Iterable[int], elems: str, leaves: str, home: Home | None = None
) -> Item:
    """Push an elem and add a leaf for each key."""
    owned = [] if home is None else [home.base]
    return [
        [
            w.counted(w.t.elem, key, owned=owned),
            w.lock(home),
            w.push(r7, elems, w.t.elem.at["node"], back=True, home=home),
            w.unlock(home),
            w.counted(w.t.leaf, key, owned=owned),
            w.lock(home),
            w.add(r7, leaves, NODE, home=home),
            w.unlock(home),
        ]
        for key in keys
    ]


def popped(w: Workshop, store: Map, elems: str) -> list[int]:
    """The keys of a list, whose elements are dropped."""
    with w.load(
        w.value(store),
        w.lock(),
        w.pop(elems),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -w.t.elem.at["node"]),
        ldxdw(r8, r7),
        w.drop(r7),
        mov(r0, r8),
        ja("exit"),
    ) as pop:
        return list(iter(lambda: pop.test_run(bytes(64)).retval, 0))


@contextmanager
def storing(workshop: Workshop, *members: tuple[str, str]) -> Iterator[Workshop]:
    """A workshop whose stores have these members, in a structure inside them if the first one is "inner"."""
    b = LocalBtf()
    b.struct("kr_obj")
    elem = b.struct("kr_elem", ("key", "u64"), ("node", "list_node"), ("held", "kptr kr_obj"))
    leaf = b.struct("kr_leaf", ("key", "u64"), ("tree", "tree_node"), ("held", "kptr kr_obj"))
    if members[0][0] == "inner":
        inner = b.struct("kr_inner", *members[1:])
        outer = b.struct("kr_store", ("data", "u64"), ("inner", "struct kr_inner"))
        store = replace(outer, at={name: outer.at["inner"] + at for name, at in inner.at.items()})
    else:
        store = b.struct("kr_store", *members)
        store = replace(store, at={**store.at, **{f"{name}1": at + 16 for name, at in store.at.items()}})
    types = replace(
        workshop.t, btf=b.builder.load(), key=b.u32, functions=b.functions, elem=elem, leaf=leaf, store=store
    )
    with types.btf:
        yield Workshop(types)


def test_roots_in_a_structure_inside_the_value(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-MAP-023, KPTR-GRAPH-016, -018: with the lock that stands beside them there."""
    members = (
        ("inner", ""),
        ("lock", "lock"),
        ("elems", "head kr_elem.node"),
        ("leaves", "root kr_leaf.tree"),
    )
    with storing(workshop, *members) as w:
        with w.t.map() as store:
            w.run(w.value(store), in_list_and_tree(w, KEYS, "elems", "leaves"))
            assert popped(w, store, "elems") == KEYS
            assert kr_kptr.count("live") == 3
            w.run(w.value(store), taken(w), w.drop(r7))
            assert kr_kptr.count("live") == 2
        wait_until(lambda: kr_kptr.count("freed") == 6, timeout=5, what="the leaves to be freed")


def test_roots_in_arrays_are_apart(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-MAP-023, KPTR-GRAPH-016, -018: two lists and two trees under one lock."""
    members = (("lock", "lock"), ("elems", "heads kr_elem.node"), ("leaves", "roots kr_leaf.tree"))
    with storing(workshop, *members) as w:
        with w.t.map() as store:
            w.run(w.value(store), in_list_and_tree(w, KEYS, "elems", "leaves"))
            w.run(w.value(store), in_list_and_tree(w, [9, 8], "elems1", "leaves1"))
            assert (popped(w, store, "elems1"), popped(w, store, "elems")) == ([9, 8], KEYS)
            assert kr_kptr.count("live") == 5
        wait_until(lambda: kr_kptr.count("freed") == 10, timeout=5, what="the leaves to be freed")


def test_list_of_objects_that_have_lists(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-016, -018, KPTR-OBJ-007: a basket comes off with its elements in order; the map frees the others."""
    w, inside = workshop, Home(r8, workshop.t.basket)
    node = w.t.basket.at["node"]
    with w.t.map() as store:
        for key in (1, 2, 3):
            w.run(
                w.value(store),
                w.counted(w.t.basket, key, r8),
                in_list_and_tree(w, KEYS, "elems", "leaves", inside),
                w.lock(),
                w.push(r8, "baskets", node, back=True),
                w.unlock(),
            )
        assert kr_kptr.count("live") == 21
        out: Item = [w.lock(), w.pop("baskets"), mov(r8, r0), w.unlock(), jeq(r8, 0, "out"), add(r8, -node)]
        first_of_basket: Item = [
            w.lock(inside),
            w.pop("elems", home=inside),
            mov(r7, r0),
            w.unlock(inside),
            w.if_null(w.drop(r8), r7),
            add(r7, -w.t.elem.at["node"]),
            ldxdw(r9, r7),
            ldxdw(r1, r8),
            lsh(r1, 8),
            or_(r9, r1),
            w.drop(r7),
            w.drop(r8),
            mov(r0, r9),
            ja("exit"),
        ]
        assert w.run(w.value(store), out, first_of_basket) == 1 << 8 | KEYS[0]
        assert kr_kptr.counters()["live"] == 14
    wait_until(lambda: kr_kptr.count("freed") == 21, timeout=5, what="the baskets to be freed")
    assert kr_kptr.count("dtor_calls") == 21
