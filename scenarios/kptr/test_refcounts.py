# SPDX-License-Identifier: MIT
"""Objects with a reference count: in a list, a tree and a pointer at once, freed when the last of them goes."""

from __future__ import annotations

from errno import EINVAL

import pytest

from harness.guest.bpf.asm import Item, add, ja, jeq, ldxdw, mov, r0, r1, r2, r6, r7, r8, r9, r10, stxdw
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.shared_objects import add_to_tree, another, drop_and_tell, pop, push, remove
from scenarios.kptr.workshop import Home, Workshop

pytestmark = [pytest.mark.requires("refcounted_kptr")]


@pytest.mark.parametrize("from_tree", [True, False], ids=["from_tree", "stays_in_tree"])
@pytest.mark.parametrize("from_list", [True, False], ids=["from_list", "stays_in_list"])
@pytest.mark.parametrize("tree_first", [True, False], ids=["tree_first", "list_first"])
def test_object_in_list_and_tree_is_freed_with_the_last(
    workshop: Workshop, kr_kptr: KrKptr, tree_first: bool, from_list: bool, from_tree: bool
) -> None:
    """KPTR-GRAPH-017: taken out of one, of both, of neither before the map goes; a second attempt finds nothing."""
    w = workshop
    with w.t.map() as store:
        into: list[Item] = (
            [add_to_tree(w, r8), push(w, r7)] if tree_first else [push(w, r8), add_to_tree(w, r7)]
        )
        w.run(w.value(store), w.counted(w.t.shared, 7), another(w), into)
        assert kr_kptr.count("live") == 1
        for take, wanted in ((pop, from_list), (remove, from_tree)):
            if wanted:
                with w.load(w.value(store), take(w), drop_and_tell(w)) as out:
                    assert [out.test_run(bytes(64)).retval for _ in range(2)] == [7, 0]
        assert kr_kptr.count("live") == (0 if from_list and from_tree else 1)

    wait_until(lambda: kr_kptr.count("freed") == 1, timeout=5, what="the object to be freed")
    assert kr_kptr.count("dtor_calls") == 1


@pytest.mark.parametrize("from_tree", [True, False], ids=["from_tree", "stays_in_tree"])
def test_object_in_tree_and_pointer_is_freed_with_the_last(
    workshop: Workshop, kr_kptr: KrKptr, from_tree: bool
) -> None:
    """KPTR-GRAPH-017, KPTR-OBJ-012: and a third reference is taken from the pointer without emptying it."""
    w = workshop
    with w.t.map() as store:
        w.run(w.value(store), w.counted(w.t.shared, 7), another(w), add_to_tree(w, r8), w.stash(r7, "shared"))
        third: Item = [
            w.value(store),
            ldxdw(r7, r6, w.t.store.at["shared"]),
            jeq(r7, 0, "out"),
            another(w),
            jeq(r8, 0, "out"),
        ]
        assert w.run(third, mov(r7, r8), drop_and_tell(w)) == 7
        if from_tree:
            assert w.run(w.value(store), remove(w), drop_and_tell(w)) == 7
        assert w.run(w.value(store), w.unstash("shared"), drop_and_tell(w)) == 7
        assert kr_kptr.count("live") == (0 if from_tree else 1)

    wait_until(lambda: kr_kptr.count("freed") == 1, timeout=5, what="the object to be freed")
    assert kr_kptr.count("dtor_calls") == 1


INTO = {"list": (push, pop), "tree": (add_to_tree, remove)}


@pytest.mark.parametrize("into", INTO)
@pytest.mark.parametrize("other", [False, True], ids=["same", "another"])
def test_node_that_is_in_use_is_not_taken_in(
    workshop: Workshop, store: Map, kr_kptr: KrKptr, into: str, other: bool
) -> None:
    """KPTR-GRAPH-006: the second of two calls with one node fails, and uses its reference up all the same."""
    w = workshop
    put, take = INTO[into]

    result = w.run(
        w.value(store, 1, r8),
        stxdw(r10, -16, r8),
        w.value(store),
        w.counted(w.t.shared, 7),
        another(w),
        put(w, r8),
        ldxdw(r8, r10, -16),
        put(w, r7, Home(r8, w.t.store) if other else None),
        mov(r0, r9),
        ja("exit"),
    )

    assert result == -EINVAL
    assert kr_kptr.count("live") == 1
    assert w.run(w.value(store), take(w), drop_and_tell(w)) == 7
    assert kr_kptr.count("live") == 0
    assert w.run(w.value(store, 1), take(w), drop_and_tell(w)) == 0


def test_removal_from_the_wrong_tree_gives_nothing(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-006, -008: a node that another tree has, by a name that an attempt to add it gave."""
    w = workshop
    at, other = w.t.shared.at["tree"], Home(r8, w.t.store)

    result = w.run(
        w.value(store, 1, r8),
        w.value(store),
        w.counted(w.t.shared, 7),
        another(w, r7, r9),
        stxdw(r10, -16, r9),
        add_to_tree(w, r7),
        ldxdw(r7, r10, -16),
        w.lock(other),
        w.add(r7, "tree", at, home=other),
        mov(r9, r0),
        w.on_tree("remove", "tree", [mov(r2, r7), add(r2, at)], home=other),
        mov(r7, r0),
        w.unlock(other),
        mov(r0, r9),
        jeq(r7, 0, "exit"),
        add(r7, -at),
        w.drop(r7),
    )

    assert result == -EINVAL
    assert w.run(w.value(store), remove(w), drop_and_tell(w)) == 7
    assert kr_kptr.count("live") == 0


@pytest.mark.parametrize(
    "into",
    [
        pytest.param("tree"),
        pytest.param(
            "list",
            marks=pytest.mark.known_issue(
                "KPTR-LIST-OUTLIVED",
                reason="the node still names the list that is gone",
                spared=("7.2.12", "7.3-rc7"),
            ),
        ),
    ],
)
def test_node_that_outlives_its_root_can_be_used_again(
    workshop: Workshop, kr_kptr: KrKptr, into: str
) -> None:
    """KPTR-GRAPH-019, -020, KPTR-HAZ-007: the map of the root is gone, the object stands in another map's pointer."""
    w = workshop
    put, take = INTO[into]
    with w.t.map() as store:
        with w.t.map() as gone:
            w.run(
                w.value(store, into=r8),
                stxdw(r10, -16, r8),
                w.value(gone),
                w.counted(w.t.shared, 7),
                another(w),
                put(w, r8),
                ldxdw(r6, r10, -16),
                w.stash(r7, "shared"),
            )
            second = w.run(w.value(gone), w.counted(w.t.shared, 8), put(w, r7), mov(r0, r9), ja("exit"))
            assert second == 0
        # the other object has only the root
        wait_until(lambda: kr_kptr.count("live") == 1, timeout=5, what="the root to be gone")

        result = w.run(w.value(store), w.unstash("shared"), put(w, r7), mov(r0, r9), ja("exit"))

        assert result == 0
        assert w.run(w.value(store), take(w), drop_and_tell(w)) == 7
        assert kr_kptr.count("live") == 0


def test_object_that_is_going_away_gives_no_reference(
    workshop: Workshop, store: Map, kr_kptr: KrKptr
) -> None:
    """KPTR-OBJ-012: NULL for one that the program still sees, but whose last reference is dropped."""
    w = workshop
    w.run(w.value(store), w.counted(w.t.shared, 7), w.stash(r7, "shared"))
    acquire: Item = [mov(r1, r9), w.kfunc("bpf_refcount_acquire"), mov(r7, r0)]
    look: Item = [w.value(store), ldxdw(r9, r6, w.t.store.at["shared"]), jeq(r9, 0, "out")]
    tell: Item = [mov(r0, 1), jeq(r7, 0, "exit"), w.drop(r7), mov(r0, 2), ja("exit")]

    assert w.run(look, acquire, tell) == 2
    assert w.run(look, w.unstash("shared"), w.drop(r7), acquire, tell) == 1
    assert kr_kptr.counters()["live"] == 0
