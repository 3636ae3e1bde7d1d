# SPDX-License-Identifier: MIT
"""Objects that programs allocate themselves: what may be done with them, and what goes when one is dropped."""

from __future__ import annotations

from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    asm,
    call_kfunc,
    exit_,
    ja,
    jeq,
    jne,
    ld_imm64,
    ldxb,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.local_types import Local
from scenarios.kptr.workshop import (
    NOT_OWNED,
    Home,
    Program,
    Refusal,
    Workshop,
    assert_accepted,
    assert_refused,
    just,
)

pytestmark = [pytest.mark.requires("local_kptr")]

ACCEPTED: dict[str, Program] = {
    "drop": lambda b, m: [b.new(b.t.plain), b.drop(r7)],
    "drop_object_with_fields": lambda b, m: [b.new(b.t.basket), b.drop(r7)],
    "write_and_read": lambda b, m: [
        b.new(b.t.elem),
        stdw(r7, b.t.elem.at["data"], 5),
        ldxdw(r8, r7, b.t.elem.at["data"]),
        b.drop(r7),
    ],
    "stash": lambda b, m: [b.value(m), b.new(b.t.plain), b.stash(r7, "plain")],
    "stash_inside_another": lambda b, m: [
        b.new(b.t.plain),
        b.new(b.t.basket, r8, owned=[r7]),
        b.stash(r7, "plain", Home(r8, b.t.basket)),
        b.drop(r8),
    ],
    "take_out_and_drop": lambda b, m: [b.value(m), b.unstash("plain"), b.drop(r7)],
    "read_behind_stashed": lambda b, m: [
        b.value(m),
        ldxdw(r1, r6, b.t.store.at["plain"]),
        jeq(r1, 0, "out"),
        ldxdw(r0, r1),
    ],
}

# Section 5 of the kptr catalogue: KPTR-OBJ-003, -006, -008, -010, -015, and what follows from ownership.
REFUSED = {
    "new_of_variable_id": Refusal(
        EINVAL, "must be a known constant", lambda b, m: [ldxw(r1, r1), b.kfunc("bpf_obj_new")]
    ),
    "new_of_id_out_of_range": Refusal(
        EINVAL, "must be of a struct", lambda b, m: [mov(r1, 1 << 20), b.kfunc("bpf_obj_new")]
    ),
    "new_of_wide_id": Refusal(
        EINVAL, r"range \[0, U32_MAX\]", lambda b, m: [ld_imm64(r1, 1 << 32), b.kfunc("bpf_obj_new")]
    ),
    "new_of_integer": Refusal(
        EINVAL, "must be of a struct", lambda b, m: [mov(r1, b.t.key), b.kfunc("bpf_obj_new")]
    ),
    "new_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda b, m: [b.value(m), b.lock(), b.new(b.t.plain)],
    ),
    "drop_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda b, m: [b.value(m), b.new(b.t.plain), b.lock(), b.drop(r7)],
    ),
    "drop_of_map_value": Refusal(
        EINVAL,
        NOT_OWNED,
        lambda b, m: [b.value(m), b.drop(r6)],
    ),
    "drop_of_kernel_object": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda b, m: [mov(r1, 1), b.ours("kr_obj_new"), jeq(r0, 0, "out"), b.drop(r0)],
    ),
    "drop_without_null_check": Refusal(
        None,
        "expected pointer to allocated object|Possibly NULL",
        lambda b, m: [mov(r1, b.t.plain.id), b.kfunc("bpf_obj_new"), b.drop(r0)],
    ),
    "drop_of_member": Refusal(EINVAL, "zero offset", lambda b, m: [b.new(b.t.elem), add(r7, 8), b.drop(r7)]),
    "drop_twice": Refusal(EINVAL, NOT_OWNED, lambda b, m: [b.new(b.t.plain), b.drop(r7), b.drop(r7)]),
    "drop_by_release_of_other_kind": Refusal(
        EINVAL,
        "expected pointer to STRUCT kr_obj",
        lambda b, m: [b.new(b.t.plain), mov(r1, r7), b.ours("kr_obj_release")],
    ),
    "use_after_drop": Refusal(
        EACCES, "invalid mem access 'scalar'", lambda b, m: [b.new(b.t.plain), b.drop(r7), ldxdw(r0, r7)]
    ),
    "use_without_null_check": Refusal(
        EACCES,
        "invalid mem access 'ptr_or_null_'",
        lambda b, m: [mov(r1, b.t.plain.id), b.kfunc("bpf_obj_new"), ldxdw(r0, r0)],
    ),
    "use_past_end": Refusal(
        EACCES, "access beyond struct kr_plain", lambda b, m: [b.new(b.t.plain), ldxdw(r0, r7, 16)]
    ),
    "walk_through_data": Refusal(
        EACCES, "invalid mem access 'scalar'", lambda b, m: [b.new(b.t.plain), ldxdw(r0, r7), ldxdw(r0, r0)]
    ),
    "leak": Refusal(EINVAL, "Unreleased reference", lambda b, m: b.new(b.t.plain)),
    "leak_what_came_out": Refusal(
        EINVAL, "Unreleased reference", lambda b, m: [b.value(m), b.unstash("plain")]
    ),
    "leak_on_one_path": Refusal(
        EINVAL,
        "Unreleased reference",
        lambda b, m: [
            b.value(m),
            ldxdw(r6, r6, b.t.store.at["data"]),
            b.new(b.t.plain),
            jne(r6, 0, "out"),
            b.drop(r7),
        ],
    ),
    "stash_object_of_other_name": Refusal(
        EACCES, "invalid kptr access, R2", lambda b, m: [b.value(m), b.new(b.t.twin), b.stash(r7, "plain")]
    ),
    "stash_kernel_object": Refusal(
        EACCES,
        "invalid kptr access, R2",
        lambda b, m: [b.value(m), mov(r1, 1), b.ours("kr_obj_new"), jeq(r0, 0, "out"), b.stash(r0, "plain")],
    ),
    "stash_member": Refusal(
        None,
        "zero offset|invalid kptr access",
        lambda b, m: [b.value(m), b.new(b.t.plain), add(r7, 8), b.stash(r7, "plain")],
    ),
    "use_after_stash": Refusal(
        EACCES,
        "invalid mem access 'scalar'",
        lambda b, m: [b.value(m), b.new(b.t.plain), b.stash(r7, "plain"), ldxdw(r0, r7)],
    ),
    "store_to_stashed_pointer": Refusal(
        EACCES,
        "store to referenced kptr disallowed",
        lambda b, m: [b.value(m), stdw(r6, b.t.store.at["plain"], 0)],
    ),
}


def test_program_that_keeps_account_loads(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-001, -005, -009, -011: each is whole, and with one step less or more one of REFUSED."""
    assert_accepted(workshop, store, ACCEPTED)


def test_program_that_loses_or_forges_an_object_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-003, -006, -008, -010, -015: what the verifier says stands beside each program of REFUSED."""
    assert_refused(workshop, store, REFUSED)


def test_program_without_btf_cannot_allocate(workshop: Workshop) -> None:
    """KPTR-OBJ-002: the type id has no meaning there."""
    code = asm(mov(r1, workshop.t.plain.id), workshop.kfunc("bpf_obj_new"), mov(r0, 0), exit_())

    with refused(EINVAL, log="requires prog BTF"):
        Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS).close()


def test_special_fields_are_out_of_reach(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-014, KPTR-GRAPH-012: locks, roots, nodes, counts and owning pointers, in objects and in values."""
    t = workshop.t
    refusals = {}

    def accesses(what: str, base: Reg, type: Local, says: str, before: Item) -> None:
        for member, at in type.at.items():
            if member not in ("key", "data"):
                for how, access in (("write", stdw(base, at // 8 * 8, 0)), ("read", ldxb(r0, base, at))):
                    program: Item = [before, access]
                    refusals[f"{how} {member} of {what}"] = Refusal(EACCES, says, just(program))

    for type in (t.elem, t.leaf, t.shared, t.basket):
        accesses(type.name, r7, type, "direct access to .* is disallowed", workshop.new(type))
    says = "cannot be accessed directly|access size must be BPF_DW|store to referenced kptr disallowed"
    accesses("value", r6, t.store, says, workshop.value(store))

    assert_refused(workshop, store, refusals)


@pytest.mark.requires("kfunc:bpf_obj_new")
def test_calls_have_two_names(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-016: the names without suffix have no hidden arguments; the ones with it are still there."""
    types = btf.vmlinux()
    for name in (
        "bpf_obj_new",
        "bpf_obj_drop",
        "bpf_refcount_acquire",
        "bpf_list_push_front",
        "bpf_rbtree_add",
    ):
        assert len(types.parameters(name)) < len(types.parameters(f"{name}_impl")), name

    old_new, old_drop = (call_kfunc(types.func(name)) for name in ("bpf_obj_new_impl", "bpf_obj_drop_impl"))
    workshop.load(
        mov(r1, workshop.t.elem.id), old_new, jeq(r0, 0, "out"), mov(r1, r0), workshop.kfunc("bpf_obj_drop")
    ).close()
    workshop.load(workshop.new(workshop.t.elem), mov(r1, r7), old_drop).close()


def test_dropped_object_takes_everything_along(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-OBJ-004, -007, KPTR-FREE-017: its own pointers, its list and its tree, at once and once each.

    Its memory is used anew, and has an empty list every time.
    """
    b, t = workshop, workshop.t
    in_basket = Home(r8, t.basket)
    with b.load(
        b.counted(t.basket, 1, r8),
        [
            [
                b.counted(t.elem, 10 + i, r7, owned=[r8]),
                b.lock(in_basket),
                b.push(r7, "elems", t.elem.at["node"], home=in_basket),
                b.unlock(in_basket),
            ]
            for i in range(3)
        ],
        [
            [
                b.counted(t.leaf, 20 + i, r7, owned=[r8]),
                b.lock(in_basket),
                b.add(r7, "leaves", t.leaf.at["tree"], home=in_basket),
                b.unlock(in_basket),
            ]
            for i in range(3)
        ],
        b.drop(r8),
        mov(r0, 1),
        ja("exit"),
    ) as prog:
        for times in range(1, 21):
            assert prog.test_run(bytes(64)).retval == 1
            counts = kr_kptr.counters()
            assert (counts["created"], counts["dtor_calls"], counts["live"]) == (7 * times, 7 * times, 0)


def test_stashed_object_comes_out_as_it_went_in(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-OBJ-009, -011: and so does one that is in another."""
    b, t = workshop, workshop.t
    put = [
        b.value(store),
        b.new(t.plain, r7, key=7),
        b.counted(t.basket, 8, r8, owned=[r7]),
        b.stash(r7, "plain", Home(r8, t.basket)),
        b.stash(r8, "basket"),
        mov(r0, 1),
        ja("exit"),
    ]
    take = [
        b.value(store),
        b.unstash("basket", r8),
        b.exchange(mov(r2, 0), "plain", Home(r8, t.basket)),
        b.if_null(b.drop(r8)),
        mov(r7, r0),
        ldxdw(r6, r7),
        b.drop(r7),
        b.drop(r8),
        mov(r0, r6),
        ja("exit"),
    ]

    assert b.run(put) == 1
    assert kr_kptr.counters()["live"] == 1
    assert (b.run(take), b.run(take)) == (7, 0)
    assert kr_kptr.counters()["live"] == 0


def test_map_drops_what_it_owns_when_it_goes(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-FREE-014, KPTR-LAW-006: stashed, in lists and in trees, each element's and each once."""
    b, t = workshop, workshop.t
    fill: list[Item] = []
    for type, field in ((t.plain, "plain"), (t.elem, "elem"), (t.shared, "shared"), (t.basket, "basket")):
        fill += [b.counted(type, 1) if "held" in type.at else b.new(type), b.stash(r7, field)]
    for type, head in ((t.elem, "elems"), (t.shared, "list"), (t.basket, "baskets")):
        fill += [b.counted(type, 1), b.lock(), b.push(r7, head, type.at["node"]), b.unlock()]
    for type, root in ((t.leaf, "leaves"), (t.shared, "tree")):
        fill += [b.counted(type, 1), b.lock(), b.add(r7, root, type.at["tree"]), b.unlock()]
    with t.map() as store:
        for key in (0, 3):
            b.run(b.value(store, key), fill)
        counts = kr_kptr.counters()
        assert (counts["created"], counts["live"], counts["dtor_calls"]) == (16, 16, 0)

    wait_until(lambda: kr_kptr.count("freed") == 16, timeout=5, what="the map's objects to be freed")
    assert kr_kptr.count("dtor_calls") == 16
