# SPDX-License-Identifier: MIT
"""Programs that take references to objects: what the verifier takes and refuses."""

from __future__ import annotations

from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf.asm import Item, jeq, ldxdw, mov, r0, r1, r6, r7, r8
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from scenarios.kptr.shared_objects import add_to_tree, another, push
from scenarios.kptr.workshop import Program, Refusal, Workshop, assert_accepted, assert_refused

pytestmark = [pytest.mark.requires("refcounted_kptr")]

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
