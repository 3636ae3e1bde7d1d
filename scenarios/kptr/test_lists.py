# SPDX-License-Identifier: MIT
"""Lists of objects that programs own: what goes in and out, in which order, and what the end of a list frees."""

from __future__ import annotations

from collections.abc import Iterable
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, Reg, add, and_, asm, exit_, ja, jeq, ldxdw, mov, r0, r6, r7, r8
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.tracing import load_tracing
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.local_types import Local
from scenarios.kptr.workshop import (
    NOT_OWNED,
    Home,
    Program,
    Refusal,
    Workshop,
    assert_accepted,
    assert_refused,
)

pytestmark = [pytest.mark.requires("local_kptr")]

WAYS = {
    "fifo": (True, False, [1, 2, 3, 4, 5]),
    "lifo": (False, False, [5, 4, 3, 2, 1]),
    "lifo_at_the_back": (True, True, [5, 4, 3, 2, 1]),
    "fifo_from_the_front": (False, True, [1, 2, 3, 4, 5]),
}


def pushed(b: Workshop, object: Reg = r7, *, back: bool = False) -> Item:
    """Push an elem on the value's list under its lock."""
    return [b.lock(), b.push(object, "elems", b.t.elem.at["node"], back=back), b.unlock()]


def popped(b: Workshop, *, back: bool = False) -> Item:
    """r7 = an elem from the value's list, or leave."""
    return [
        b.lock(),
        b.pop("elems", back=back),
        mov(r7, r0),
        b.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -b.t.elem.at["node"]),
    ]


def under_lock(b: Workshop, m: Map) -> Item:
    """Push r7, an elem, and stay under the lock."""
    return [b.value(m), b.new(b.t.elem), b.lock(), b.push(r7, "elems", b.t.elem.at["node"])]


ACCEPTED: dict[str, Program] = {
    "push": lambda b, m: [b.value(m), b.new(b.t.elem), pushed(b)],
    "push_and_read_before_unlock": lambda b, m: [under_lock(b, m), ldxdw(r8, r7), b.unlock()],
    "pop": lambda b, m: [b.value(m), popped(b), ldxdw(r8, r7), b.drop(r7)],
    "pop_and_push": lambda b, m: [b.value(m), popped(b), pushed(b)],
    "pop_and_stash": lambda b, m: [b.value(m), popped(b), b.stash(r7, "elem")],
}

# KPTR-GRAPH-003 to -005, -007, -015, KPTR-XCHG-014; the locks are in test_locks.py
REFUSED = {
    "push_object_without_node": Refusal(
        EINVAL,
        "bpf_list_node not found at offset=0",
        lambda b, m: [b.value(m), b.new(b.t.plain), b.lock(), b.push(r7, "elems", 0), b.unlock()],
    ),
    "push_object_of_other_type": Refusal(
        EINVAL,
        "expects arg#1 bpf_list_node at offset=8 in struct kr_elem, but arg is at offset=0 in struct kr_shared",
        lambda b, m: [b.value(m), b.new(b.t.shared), b.lock(), b.push(r7, "elems", 0), b.unlock()],
    ),
    "push_beside_node": Refusal(
        EINVAL,
        "bpf_list_node not found at offset=9",
        lambda b, m: [b.value(m), b.new(b.t.elem), b.lock(), b.push(r7, "elems", 9), b.unlock()],
    ),
    "push_other_node": Refusal(
        EINVAL,
        "arg#1 offset=32, but expected bpf_list_node at offset=8 in struct kr_elem",
        lambda b, m: [
            b.value(m),
            b.new(b.t.elem),
            b.lock(),
            b.push(r7, "elems", b.t.elem.at["spare"]),
            b.unlock(),
        ],
    ),
    "push_at_variable_node": Refusal(
        EACCES,
        "variable ptr_ access var_off=.* disallowed",
        lambda b, m: [
            b.value(m),
            b.new(b.t.elem),
            ldxdw(r8, r7),
            and_(r8, 8),
            add(r7, r8),
            b.lock(),
            b.push(r7, "elems", 0),
            b.unlock(),
        ],
    ),
    "push_map_value": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda b, m: [b.value(m), b.lock(), b.push(r6, "elems", 0), b.unlock()],
    ),
    "push_what_is_not_owned": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda b, m: [
            b.value(m),
            ldxdw(r7, r6, b.t.store.at["elem"]),
            jeq(r7, 0, "out"),
            b.lock(),
            b.push(r7, "elems", 8),
            b.unlock(),
        ],
    ),
    "push_on_no_head": Refusal(
        EINVAL,
        "bpf_list_head not found at offset=8",
        lambda b, m: [b.value(m), b.new(b.t.elem), b.lock(), b.push(r7, "data", 8), b.unlock()],
    ),
    "push_beside_head": Refusal(
        EINVAL,
        "bpf_list_head not found at offset=17",
        lambda b, m: [b.value(m), b.new(b.t.elem), b.lock(), add(r6, 1), b.push(r7, "elems", 8)],
    ),
    "push_on_tree": Refusal(
        EINVAL,
        "bpf_list_head not found at offset=32",
        lambda b, m: [b.value(m), b.new(b.t.elem), b.lock(), b.push(r7, "leaves", 8)],
    ),
    "push_on_variable_head": Refusal(
        EINVAL,
        "bpf_list_head has to be at the constant offset",
        lambda b, m: [
            b.value(m),
            b.new(b.t.elem),
            ldxdw(r8, r7),
            and_(r8, 8),
            b.lock(),
            add(r6, r8),
            b.push(r7, "elems", 8),
        ],
    ),
    "push_on_variable_head_of_object": Refusal(
        EACCES,
        "variable ptr_ access var_off=.* disallowed",
        lambda b, m: [
            b.new(b.t.basket, r6),
            b.new(b.t.elem, owned=[r6]),
            ldxdw(r8, r7),
            and_(r8, 8),
            b.lock(Home(r6, b.t.basket)),
            add(r6, r8),
            b.push(r7, "elems", 8, home=Home(r6, b.t.basket)),
        ],
    ),
    "push_on_object_without_head": Refusal(
        EINVAL,
        "has no valid bpf_spin_lock",
        lambda b, m: [b.new(b.t.elem), b.lock(Home(r7, Local("", 0, 0, {"lock": 0})))],
    ),
    "push_twice": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda b, m: [under_lock(b, m), b.push(r7, "elems", 8)],
    ),
    "push_at_both_ends": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda b, m: [under_lock(b, m), b.push(r7, "elems", 8, back=True)],
    ),
    "read_after_unlock": Refusal(
        EACCES, "invalid mem access 'scalar'", lambda b, m: [under_lock(b, m), b.unlock(), ldxdw(r0, r7)]
    ),
    "drop_after_push": Refusal(
        EINVAL,
        NOT_OWNED,
        lambda b, m: [under_lock(b, m), b.unlock(), b.drop(r7)],
    ),
    "stash_after_push": Refusal(
        EACCES,
        "R2 type=scalar expected=ptr_",
        lambda b, m: [under_lock(b, m), b.unlock(), b.stash(r7, "elem")],
    ),
    "leak_popped": Refusal(EINVAL, "Unreleased reference", lambda b, m: [b.value(m), popped(b)]),
    "use_popped_without_null_check": Refusal(
        EACCES,
        "invalid mem access 'ptr_or_null_'|or_null",
        lambda b, m: [b.value(m), b.lock(), b.pop("elems"), mov(r7, r0), b.unlock(), ldxdw(r0, r7)],
    ),
    "drop_popped_node": Refusal(
        EINVAL,
        "zero offset",
        lambda b, m: [
            b.value(m),
            b.lock(),
            b.pop("elems"),
            mov(r7, r0),
            b.unlock(),
            jeq(r7, 0, "out"),
            b.drop(r7),
        ],
    ),
    "lock_popped_node": Refusal(
        EINVAL,
        "off 8 doesn't point to 'struct bpf_spin_lock' that is at 32",
        lambda b, m: [
            b.value(m),
            b.lock(),
            b.pop("baskets"),
            mov(r7, r0),
            b.unlock(),
            jeq(r7, 0, "out"),
            b.lock(Home(r7, Local("", 0, 0, {"lock": 0}))),
        ],
    ),
    "leave_with_lock": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda b, m: [b.value(m), b.lock()],
    ),
}


def test_program_that_keeps_account_loads(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-003, -004, -007: each is whole, and with one step less or more one of REFUSED."""
    assert_accepted(workshop, store, ACCEPTED)


def test_program_that_loses_or_forges_an_element_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-003 to -005, -007, -015, KPTR-XCHG-014: what the verifier says stands beside each program."""
    assert_refused(workshop, store, REFUSED)


def push_all(b: Workshop, store: Map, keys: Iterable[int], *, back: bool = True) -> None:
    """Push counted elems with these keys, one after the other."""
    b.run(b.value(store), [[b.counted(b.t.elem, key), pushed(b, back=back)] for key in keys])


def pop_all(b: Workshop, store: Map, *, back: bool = False) -> list[int]:
    """Pop and drop elems until the list is empty; their keys."""
    with b.load(
        b.value(store), popped(b, back=back), ldxdw(r8, r7), b.drop(r7), mov(r0, r8), ja("exit")
    ) as pop:
        return list(iter(lambda: pop.test_run(bytes(64)).retval, 0))


@pytest.mark.parametrize(("push_back", "pop_back", "order"), WAYS.values(), ids=WAYS)
def test_list_has_two_ends(
    workshop: Workshop, store: Map, kr_kptr: KrKptr, push_back: bool, pop_back: bool, order: list[int]
) -> None:
    """KPTR-GRAPH-007, -016, KPTR-LAW-006: each comes out once, in this order, then nothing."""
    push_all(workshop, store, [1, 2, 3, 4, 5], back=push_back)

    assert pop_all(workshop, store, back=pop_back) == order

    counts = kr_kptr.counters()
    assert (counts["created"], counts["live"], counts["dtor_calls"]) == (5, 0, 5)


def test_written_over_value_drops_its_lists(
    workshop: Workshop, store: Map, kr_kptr: KrKptr, updates_release: bool
) -> None:
    """KPTR-GRAPH-018, KPTR-FREE-001: at once and once each; by the newer rule they stay where they are.

    What was popped before is not the list's any more.
    """
    calls = kr_kptr.count("dtor_calls")
    push_all(workshop, store, [1, 2, 3])
    workshop.run(
        workshop.value(store),
        popped(workshop),
        workshop.stash(r7, "elem"),
        workshop.lock(),
        workshop.unlock(),
    )
    workshop.run(workshop.value(store), workshop.unstash("elem"), pushed(workshop))

    store.update(0, bytes(workshop.t.store.size))

    assert kr_kptr.count("dtor_calls") - calls == (3 if updates_release else 0)
    assert pop_all(workshop, store) == ([] if updates_release else [1, 2, 3])


TRACING_TYPES = [
    uapi.BPF_PROG_TYPE_KPROBE,
    uapi.BPF_PROG_TYPE_TRACEPOINT,
    uapi.BPF_PROG_TYPE_PERF_EVENT,
    uapi.BPF_PROG_TYPE_RAW_TRACEPOINT,
    uapi.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
]


def test_tracing_programs_may_not_use_maps_with_roots(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-013: they may run while the lock is held; fentry programs are not meant by this."""
    code = asm(workshop.value(store), mov(r0, 0), exit_())

    for prog_type in TRACING_TYPES:
        with refused(EINVAL, log="tracing progs cannot use bpf_{list_head,rb_root} yet"):
            Prog.load(code, prog_type).close()
    load_tracing("kr_obj_new", code, module="kr_kptr").close()
