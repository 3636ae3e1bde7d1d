# SPDX-License-Identifier: MIT
"""Trees of objects that programs own: what the comparison may do, in which order they stand, what removal gives."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    call,
    exit_,
    ja,
    jeq,
    jgt,
    jne,
    label,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r9,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.workshop import (
    NOT_OWNED,
    Program,
    Refusal,
    Workshop,
    assert_accepted,
    assert_refused,
    just,
)

pytestmark = [pytest.mark.requires("local_kptr")]

NODE = 8
"""Where the tree's node stands in a leaf, behind its key."""


def added(w: Workshop, object: Reg = r7, less: str = "less") -> Item:
    """Add a leaf to the value's tree under its lock."""
    return [w.lock(), w.add(object, "leaves", NODE, less=less), w.unlock()]


def first(w: Workshop, then: Item) -> Item:
    """r7 = the first leaf, under the lock, and what happens to it there; the tree may be empty."""
    return [
        w.lock(),
        w.on_tree("first", "leaves"),
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


ACCEPTED: dict[str, Program] = {
    "add": lambda w, m: [w.value(m), w.new(w.t.leaf), added(w)],
    "read_first": lambda w, m: [w.value(m), first(w, [ldxdw(r8, r7, -NODE), w.unlock()])],
    "remove_and_drop": lambda w, m: [w.value(m), taken(w), w.drop(r7)],
    "remove_and_add": lambda w, m: [w.value(m), taken(w), added(w)],
    "add_and_remove": lambda w, m: [
        w.value(m),
        w.new(w.t.leaf),
        w.lock(),
        w.add(r7, "leaves", NODE),
        w.on_tree("remove", "leaves", [mov(r2, r7), add(r2, NODE)]),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -NODE),
        w.drop(r7),
    ],
}


def under_lock(w: Workshop, m: Map) -> Item:
    """Add r7, a leaf, and stay under the lock."""
    return [w.value(m), w.new(w.t.leaf), w.lock(), w.add(r7, "leaves", NODE)]


NOT_UNDER_LOCK = (
    "rbtree_remove node input must be non-owning ref|can only take non-owning or refcounted bpf_rb_node"
)

# KPTR-GRAPH-003 to -005, -008, -010; the locks are in test_locks.py
REFUSED = {
    "add_object_of_other_type": Refusal(
        EINVAL,
        "expects arg#1 bpf_rb_node at offset=8 in struct kr_leaf, but arg is at offset=40 in struct kr_shared",
        lambda w, m: [w.value(m), w.new(w.t.shared), w.lock(), w.add(r7, "leaves", w.t.shared.at["tree"])],
    ),
    "add_list_node": Refusal(
        EINVAL,
        "bpf_rb_node not found at offset=8",
        lambda w, m: [w.value(m), w.new(w.t.elem), w.lock(), w.add(r7, "leaves", 8)],
    ),
    "add_on_list": Refusal(
        EINVAL,
        "bpf_rb_root not found at offset=16",
        lambda w, m: [w.value(m), w.new(w.t.leaf), w.lock(), w.add(r7, "elems", NODE)],
    ),
    "add_twice": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda w, m: [under_lock(w, m), w.add(r7, "leaves", NODE)],
    ),
    "use_after_unlock": Refusal(
        EACCES, "invalid mem access 'scalar'", lambda w, m: [under_lock(w, m), w.unlock(), ldxdw(r0, r7)]
    ),
    "remove_added_after_unlock": Refusal(
        EINVAL,
        NOT_UNDER_LOCK,
        lambda w, m: [
            under_lock(w, m),
            w.unlock(),
            w.lock(),
            w.on_tree("remove", "leaves", mov(r2, r7)),
            w.unlock(),
        ],
    ),
    "remove_first_after_unlock": Refusal(
        EINVAL,
        NOT_UNDER_LOCK,
        lambda w, m: [
            w.value(m),
            first(w, w.unlock()),
            w.lock(),
            w.on_tree("remove", "leaves", mov(r2, r7)),
            w.unlock(),
        ],
    ),
    "read_first_after_unlock": Refusal(
        EACCES,
        "invalid mem access 'scalar'",
        lambda w, m: [w.value(m), first(w, w.unlock()), ldxdw(r0, r7, -NODE)],
    ),
    "read_first_without_null_check": Refusal(
        EACCES,
        "invalid mem access '.*or_null_",
        lambda w, m: [w.value(m), w.lock(), w.on_tree("first", "leaves"), ldxdw(r0, r0), w.unlock()],
    ),
    "drop_first": Refusal(EINVAL, NOT_OWNED, lambda w, m: [w.value(m), first(w, [w.unlock(), w.drop(r7)])]),
    "leak_removed": Refusal(EINVAL, "Unreleased reference", lambda w, m: [w.value(m), taken(w)]),
    "drop_removed_without_null_check": Refusal(
        EACCES,
        "pointer arithmetic on ptr_or_null_ prohibited",
        lambda w, m: [
            w.value(m),
            first(w, w.on_tree("remove", "leaves", mov(r2, r7))),
            mov(r7, r0),
            w.unlock(),
            add(r7, -NODE),
            w.drop(r7),
        ],
    ),
    "use_removed_without_null_check": Refusal(
        EACCES,
        "invalid mem access 'ptr_or_null_'",
        lambda w, m: [
            w.value(m),
            first(w, w.on_tree("remove", "leaves", mov(r2, r7))),
            mov(r7, r0),
            w.unlock(),
            ldxdw(r0, r7),
        ],
    ),
}


def test_program_that_keeps_account_loads(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-003, -004, -008, -010: each is whole, and with one step less or more one of REFUSED."""
    assert_accepted(workshop, store, ACCEPTED)


def test_program_that_loses_or_forges_a_leaf_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-003 to -005, -008, -010: what the verifier says stands beside each program of REFUSED."""
    assert_refused(workshop, store, REFUSED)


# What a comparison does with the tree that it is asked for: r6 is the value, r7 and r8 are what it should compare.
COMPARISONS: dict[str, tuple[int, str, Callable[[Workshop], Item]]] = {
    "says_2": (
        EINVAL,
        r"should have been in \[0, 1\]",
        lambda w: [ldxdw(r1, r7, -NODE), jeq(r1, 0, "no"), mov(r0, 2), exit_()],
    ),
    "calls_helper": (
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w: call(uapi.BPF_FUNC_ktime_get_ns),
    ),
    "allocates": (
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w: [mov(r1, w.t.plain.id), w.kfunc("bpf_obj_new")],
    ),
    "reads_past_the_object": (EACCES, "access beyond struct kr_leaf", lambda w: ldxdw(r0, r7, 512)),
    "adds_its_argument": (EINVAL, "expected pointer to allocated object", lambda w: w.add(r7, "leaves", 0)),
    "removes_its_argument": (
        EINVAL,
        "rbtree_remove not allowed in rbtree cb",
        lambda w: w.on_tree("remove", "leaves", mov(r2, r7)),
    ),
    "removes_the_first": (
        EINVAL,
        "rbtree_remove not allowed in rbtree cb",
        lambda w: [
            w.on_tree("first", "leaves"),
            jeq(r0, 0, "no"),
            w.on_tree("remove", "leaves", mov(r2, r0)),
        ],
    ),
    "unlocks": (EACCES, "can't spin_{lock,unlock} in rbtree cb", lambda w: w.unlock()),
    "locks": (
        EINVAL,
        "can't spin_{lock,unlock} in rbtree cb|not allowed while holding a lock",
        lambda w: w.lock(),
    ),
}


def test_comparison_may_only_compare(workshop: Workshop) -> None:
    """KPTR-GRAPH-011: no lock, no tree, no reference of its own, no answer but 0 and 1."""
    w = workshop
    with w.t.map(max_entries=1) as only:

        def add_comparing(does: Item) -> tuple[Program, dict[str, Item]]:
            part: Item = [
                mov(r7, r1),
                mov(r8, r2),
                ld_map_value(r6, only),
                does,
                label("no"),
                mov(r0, 0),
                exit_(),
            ]
            return just([ld_map_value(r6, only), w.new(w.t.leaf), added(w, less="part")]), {"part": part}

        refusals = {
            name: Refusal(errno, says, *add_comparing(does(w)))
            for name, (errno, says, does) in COMPARISONS.items()
        }
        assert_refused(w, only, refusals)
        whole, parts = add_comparing([ldxdw(r0, r7, -NODE), ldxdw(r1, r8, -NODE)])
        w.load(whole(w, only), parts=parts).close()


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
