# SPDX-License-Identifier: MIT
"""Trees of objects that programs own: in which order they stand, what removal gives, what the end of a tree frees."""

from __future__ import annotations

from errno import EINVAL

import pytest

from harness.guest.bpf.asm import Item, add, ja, jeq, jgt, label, ldxdw, mov, r0, r1, r2, r7, r8, r9, stdw
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.leaves import NODE, added, taken
from scenarios.kptr.workshop import Workshop

pytestmark = [pytest.mark.requires("local_kptr")]


def take_all(w: Workshop, store: Map, key: int = 0) -> list[int]:
    """Take the first leaf out and drop it until the tree is empty; their keys."""
    with w.load(w.value(store, key), taken(w), ldxdw(r8, r7), w.drop(r7), mov(r0, r8), ja("exit")) as take:
        return list(iter(lambda: take.test_run(bytes(64)).retval, 0))


def test_leaves_stand_in_order(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-008, -010, -016, KPTR-LAW-006: by the comparison, and each comes out once."""
    w, keys = workshop, [5, 3, 8, 1, 4, 7, 9, 2, 6]
    w.run(w.value(store), [[w.counted(w.t.leaf, key), added(w)] for key in keys])
    assert kr_kptr.count("live") == 9

    assert take_all(w, store) == sorted(keys)

    assert kr_kptr.counters()["live"] == 0


def test_equal_leaf_stands_behind_older_ones(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-016: told apart by their data."""
    w, data = workshop, workshop.t.leaf.at["data"]
    w.run(
        w.value(store),
        [
            [w.new(w.t.leaf, key=key), stdw(r7, data, number), added(w)]
            for number, key in enumerate([5, 4, 5, 5, 6, 4], 1)
        ],
    )

    with w.load(w.value(store), taken(w), ldxdw(r8, r7, data), w.drop(r7), mov(r0, r8), ja("exit")) as take:
        order = [take.test_run(bytes(64)).retval for _ in range(6)]

    assert order == [2, 6, 1, 3, 4, 5]


def test_second_removal_of_a_leaf_gives_nothing(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-008: two names of the first leaf; what was removed by one is in no tree for the other."""
    w = workshop
    w.run(w.value(store), w.counted(w.t.leaf, 1), added(w))
    result = w.run(
        w.value(store),
        w.lock(),
        w.on_tree("first", "leaves"),
        mov(r7, r0),
        w.on_tree("first", "leaves"),
        mov(r8, r0),
        jeq(r7, 0, "empty"),
        jeq(r8, 0, "empty"),
        w.on_tree("remove", "leaves", mov(r2, r7)),
        mov(r7, r0),
        w.on_tree("remove", "leaves", mov(r2, r8)),
        mov(r8, r0),
        w.unlock(),
        mov(r9, 0),
        jeq(r7, 0, "no_first"),
        add(r7, -NODE),
        w.drop(r7),
        add(r9, 1),
        label("no_first"),
        jeq(r8, 0, "no_second"),
        add(r8, -NODE),
        w.drop(r8),
        add(r9, 2),
        label("no_second"),
        mov(r0, r9),
        ja("exit"),
        label("empty"),
        w.unlock(),
    )

    assert result == 1
    assert kr_kptr.count("live") == 0


def test_object_that_was_never_added_cannot_be_removed(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-009: the verifier refuses; since trees can be walked, the tree is asked, which has it not."""
    w = workshop
    program: Item = [
        w.value(store),
        w.new(w.t.leaf),
        w.lock(),
        w.on_tree("remove", "leaves", [mov(r2, r7), add(r2, NODE)]),
        mov(r8, r0),
        w.unlock(),
        w.drop(r7),
        mov(r0, 1),
        jeq(r8, 0, "exit"),
        add(r8, -NODE),
        w.drop(r8),
    ]
    if has("graph_peek"):
        assert w.run(program) == 1
    else:
        with refused(EINVAL, log="rbtree_remove node input must be non-owning ref"):
            w.run(program)


@pytest.mark.requires("graph_peek")
def test_tree_is_walked_from_its_root(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-010: a search by root, left and right under the lock; then what it found is taken out."""
    w = workshop
    w.run(w.value(store), [[w.counted(w.t.leaf, key), added(w)] for key in (4, 2, 6, 1, 3, 5, 7)])

    def search(key: int) -> int:
        """Steps down the tree to a key, plus 100 if it was there, which takes it out."""
        step: list[Item] = []
        for depth in range(4):
            step += [
                jeq(r7, 0, "missing"),
                mov(r9, depth),
                ldxdw(r1, r7, -NODE),
                jeq(r1, key, "found"),
                jgt(r1, key, f"left{depth}"),
                w.on_tree("right", "leaves", mov(r2, r7)),
                ja(f"next{depth}"),
                label(f"left{depth}"),
                w.on_tree("left", "leaves", mov(r2, r7)),
                label(f"next{depth}"),
                mov(r7, r0),
            ]
        return w.run(
            w.value(store),
            w.lock(),
            w.on_tree("root", "leaves"),
            mov(r7, r0),
            mov(r9, 0),
            step,
            label("missing"),
            w.unlock(),
            mov(r0, r9),
            ja("exit"),
            label("found"),
            w.on_tree("remove", "leaves", mov(r2, r7)),
            mov(r7, r0),
            w.unlock(),
            jeq(r7, 0, "out"),
            add(r7, -NODE),
            w.drop(r7),
            add(r9, 100),
            mov(r0, r9),
            ja("exit"),
        )

    assert [search(key) for key in (1, 7, 9, 3)] == [102, 102, 1, 102]
    assert take_all(w, store) == [2, 4, 5, 6]


def test_end_of_a_value_drops_its_tree(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-018: each leaf once, and not those that were taken out before."""
    w = workshop
    with w.t.map() as store:
        w.run(w.value(store), [[w.counted(w.t.leaf, key), added(w)] for key in range(1, 8)])
        w.run(w.value(store), taken(w), w.drop(r7))
        assert kr_kptr.counters()["dtor_calls"] == 1

    wait_until(lambda: kr_kptr.count("freed") == 7, timeout=5, what="the leaves to be freed")
    assert kr_kptr.count("dtor_calls") == 7
