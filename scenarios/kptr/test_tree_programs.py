# SPDX-License-Identifier: MIT
"""Programs that use trees: what the verifier takes and refuses, and what a comparison may do."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    exit_,
    jeq,
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
)
from harness.guest.bpf.map import Map
from scenarios.kptr.leaves import NODE, added, first, taken
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
