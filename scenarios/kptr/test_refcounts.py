# SPDX-License-Identifier: MIT
"""Objects with a reference count: in a list, a tree and a pointer at once, freed when the last of them goes."""

from __future__ import annotations

from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    ja,
    jeq,
    jne,
    label,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r9,
    r10,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.workshop import Home, Program, Refusal, Workshop, assert_accepted, assert_refused

pytestmark = [pytest.mark.requires("refcounted_kptr")]


def shared_at(w: Workshop, member: str) -> int:
    return w.t.shared.at[member]


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


ACCEPTED: dict[str, Program] = {
    "of_owned_object_needs_no_null_check": lambda w, m: [
        w.new(w.t.shared),
        another(w),
        ldxdw(r0, r8, w.t.shared.at["key"]),
        w.drop(r7),
        w.drop(r8),
    ],
    "under_lock_and_used_after_it": lambda w, m: [
        w.value(m),
        w.new(w.t.shared),
        w.lock(),
        w.add(r7, "tree", w.t.shared.at["tree"]),
        another(w),
        w.unlock(),
        jeq(r8, 0, "out"),
        ldxdw(r0, r8, w.t.shared.at["key"]),
        w.drop(r8),
    ],
    "of_owned_object_before_it_goes_into_a_tree": lambda w, m: [
        w.value(m),
        w.new(w.t.shared),
        another(w),
        add_to_tree(w, r7),
        ldxdw(r0, r8, w.t.shared.at["key"]),
        w.drop(r8),
    ],
    "of_stashed_object": lambda w, m: [
        w.value(m),
        ldxdw(r7, r6, w.t.store.at["shared"]),
        jeq(r7, 0, "out"),
        another(w),
        jeq(r8, 0, "out"),
        w.drop(r8),
    ],
}

# KPTR-OBJ-008, -012, -013
REFUSED = {
    "leak": Refusal(EINVAL, "Unreleased reference", lambda w, m: [w.new(w.t.shared), another(w), w.drop(r7)]),
    "leak_of_one_from_tree": Refusal(
        EINVAL,
        "Unreleased reference",
        lambda w, m: [
            w.value(m),
            w.new(w.t.shared),
            w.lock(),
            w.add(r7, "tree", w.t.shared.at["tree"]),
            another(w),
            w.unlock(),
        ],
    ),
    "of_maybe_null": Refusal(
        None,
        "Possibly NULL|neither owning",
        lambda w, m: [mov(r1, w.t.shared.id), w.kfunc("bpf_obj_new"), w.acquire(r0)],
    ),
    "result_of_stashed_without_null_check": Refusal(
        EACCES,
        "invalid mem access 'ptr_or_null_'",
        lambda w, m: [
            w.value(m),
            ldxdw(r7, r6, w.t.store.at["shared"]),
            jeq(r7, 0, "out"),
            another(w),
            ldxdw(r0, r8),
        ],
    ),
    "of_type_without_count": Refusal(
        EINVAL,
        "doesn't point to a type with bpf_refcount field",
        lambda w, m: [w.new(w.t.elem), w.acquire(r7)],
    ),
    "of_map_value": Refusal(
        EINVAL, "neither owning or non-owning ref", lambda w, m: [w.value(m), w.acquire(r6)]
    ),
    "of_kernel_object": Refusal(
        EINVAL,
        "neither owning or non-owning ref",
        lambda w, m: [mov(r1, 1), w.ours("kr_obj_new"), w.if_null([]), w.acquire(r0)],
    ),
    "of_listed_object_after_unlock": Refusal(
        EINVAL,
        "neither owning or non-owning ref",
        lambda w, m: [w.value(m), w.new(w.t.shared), push(w, r7), w.acquire(r7)],
    ),
}


def test_program_that_keeps_account_loads(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-012, KPTR-FIX-005, -006: references to owned, listed and stashed objects."""
    assert_accepted(workshop, store, ACCEPTED)


def test_program_that_loses_or_forges_a_reference_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-008, -012, -013: what the verifier says stands beside each program of REFUSED."""
    assert_refused(workshop, store, REFUSED)


@pytest.mark.parametrize("explicit", [False, True], ids=["lock_only", "rcu_section"])
def test_sleepable_program_takes_references_under_the_lock(
    workshop: Workshop, store: Map, explicit: bool
) -> None:
    """KPTR-FIX-006, KPTR-OBJ-012: the lock implies a section of RCU, and such a section may not end under the lock."""
    w = workshop
    begin: Item = w.kfunc("bpf_rcu_read_lock") if explicit else []
    end: Item = w.kfunc("bpf_rcu_read_unlock") if explicit else []

    def program(before_unlock: Item, after_unlock: Item) -> Item:
        return [
            w.value(store),
            w.new(w.t.shared),
            begin,
            w.lock(),
            w.add(r7, "tree", w.t.shared.at["tree"]),
            another(w),
            before_unlock,
            w.unlock(),
            after_unlock,
            jeq(r8, 0, "out"),
            w.drop(r8),
        ]

    w.load(program([], end), sleepable=True).close()
    if explicit:
        with refused(EINVAL, log="function calls are not allowed while holding a lock"):
            w.load(program(end, []), sleepable=True).close()


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
