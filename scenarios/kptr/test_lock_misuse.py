# SPDX-License-Identifier: MIT
"""What a program may do while it holds a lock, and which lock it may give back."""

from __future__ import annotations

from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    call,
    call_label,
    exit_,
    ja,
    jeq,
    ld_func,
    ld_map_fd,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r10,
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.leaves import NODE, added, first
from scenarios.kptr.local_types import Local
from scenarios.kptr.workshop import Home, Refusal, Workshop, assert_refused

pytestmark = [pytest.mark.requires("local_kptr")]

# KPTR-GRAPH-014, -015
MISUSED = {
    "two_locks": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.value(m, 1, r7), w.lock(), w.lock(Home(r7, w.t.store))],
    ),
    "unlock_without_lock": Refusal(
        EINVAL, "bpf_spin_unlock without taking a lock", lambda w, m: [w.value(m), w.unlock()]
    ),
    "unlock_twice": Refusal(
        EINVAL,
        "bpf_spin_unlock without taking a lock",
        lambda w, m: [w.value(m), w.lock(), w.unlock(), w.unlock()],
    ),
    "leave_with_lock": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [w.value(m), w.lock()],
    ),
    "leave_with_lock_on_one_path": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [
            w.value(m),
            ldxdw(r7, r6, w.t.store.at["data"]),
            w.lock(),
            jeq(r7, 0, "out"),
            w.unlock(),
        ],
    ),
    "lock_beside_lock": Refusal(
        EINVAL,
        "off 8 doesn't point to 'struct bpf_spin_lock' that is at 0",
        lambda w, m: [w.value(m), add(r6, 8), w.lock()],
    ),
    "lock_at_variable_offset": Refusal(
        EINVAL,
        "bpf_spin_lock has to be at the constant offset",
        lambda w, m: [w.value(m), ldxdw(r7, r6, w.t.store.at["data"]), and_(r7, 8), add(r6, r7), w.lock()],
    ),
    "lock_in_object_without_one": Refusal(
        EINVAL,
        "has no valid bpf_spin_lock",
        lambda w, m: [w.new(w.t.elem), w.lock(Home(r7, Local("", 0, 0, {"lock": 0})))],
    ),
    "helper_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call(uapi.BPF_FUNC_ktime_get_ns), w.unlock()],
    ),
    "kfunc_under_lock": Refusal(
        EINVAL,
        "function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), mov(r1, 1), w.ours("kr_obj_new"), w.unlock()],
    ),
    "global_function_under_lock": Refusal(
        EINVAL,
        "global function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call_label("global"), w.unlock()],
        {"global": [mov(r0, 0), exit_()]},
    ),
    "global_function_under_lock_by_static_one": Refusal(
        EINVAL,
        "global function calls are not allowed while holding a lock",
        lambda w, m: [w.value(m), w.lock(), call_label("part"), w.unlock()],
        {"part": [call_label("global"), mov(r0, 0), exit_()], "global": [mov(r0, 0), exit_()]},
    ),
    "lock_in_static_function": Refusal(
        EINVAL,
        "bpf_spin_unlock is missing|inside bpf_spin_lock-ed region",
        lambda w, m: [w.value(m), mov(r1, r6), call_label("part")],
        {"part": [call(uapi.BPF_FUNC_spin_lock), mov(r0, 0), exit_()]},
    ),
}


def test_misused_lock_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-014, -015: what the verifier says stands beside each program of MISUSED."""
    assert_refused(workshop, store, MISUSED)


def test_static_function_may_be_called_under_lock(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-014: and may lock and unlock for its caller."""
    w = workshop
    nothing: Item = [mov(r0, 0), exit_()]
    unlocking: Item = [call(uapi.BPF_FUNC_spin_unlock), mov(r0, 0), exit_()]
    w.load(w.value(store), w.lock(), call_label("part"), w.unlock(), parts={"part": nothing}).close()
    w.load(w.value(store), w.lock(), mov(r1, r6), call_label("part"), parts={"part": unlocking}).close()


@pytest.mark.known_issue(
    "KPTR-CALLBACK-VALUES", reason="two values of one map pass for the same", spared=("7.3-rc7",)
)
def test_values_in_callbacks_are_told_apart(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-002: a callback that locks its value may not unlock that of the callback around it."""
    each: Item = [
        ld_map_fd(r1, store),
        mov(r3, r10),
        add(r3, -8),
        mov(r4, 0),
        call(uapi.BPF_FUNC_for_each_map_elem),
    ]
    parts: dict[str, Item] = {
        "outer": [stxdw(r10, -8, r3), ld_func(r2, "inner"), each, mov(r0, 0), exit_()],
        "inner": [
            mov(r6, r3),
            ldxdw(r7, r4),
            mov(r1, r6),
            call(uapi.BPF_FUNC_spin_lock),
            mov(r1, r7),
            call(uapi.BPF_FUNC_spin_unlock),
            mov(r0, 0),
            exit_(),
        ],
    }

    with refused(EINVAL, log="bpf_spin_unlock of different lock"):
        workshop.load(stdw(r10, -8, 0), ld_func(r2, "outer"), each, parts=parts).close()


def test_pointer_of_a_leaf_is_exchanged_under_the_lock(
    workshop: Workshop, store: Map, kr_kptr: KrKptr
) -> None:
    """KPTR-XCHG-001: of one that stays in its tree (7.1); without the lock the leaf is out of reach."""
    w = workshop
    exchange: Item = [add(r7, -NODE), w.exchange(mov(r2, 0), "held", Home(r7, w.t.leaf)), mov(r8, r0)]
    release: Item = [jeq(r8, 0, "out"), mov(r1, r8), w.ours("kr_obj_release"), mov(r0, 1), ja("exit")]
    w.run(w.value(store), w.counted(w.t.leaf, 1), added(w))
    with refused(EACCES, log="R1 type=scalar expected=map_value"):
        w.load(w.value(store), first(w, w.unlock()), exchange, release).close()
    try:
        take = w.load(w.value(store), first(w, [exchange, w.unlock()]), release)
    except BpfError as error:
        assert (error.errno, "not allowed while holding a lock" in error.log) == (EINVAL, True)
        pytest.skip("this kernel lacks bpf_kptr_xchg under a lock")

    with take:
        assert [take.test_run(bytes(64)).retval for _ in range(2)] == [1, 0]

    assert kr_kptr.counters()["live"] == 0
