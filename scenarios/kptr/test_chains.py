# SPDX-License-Identifier: MIT
"""Objects that own objects, and what comes in between while they are dropped."""

from __future__ import annotations

from dataclasses import replace
from errno import EACCES, EINVAL, ELOOP

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    atomic_add,
    call,
    exit_,
    ja,
    jeq,
    label,
    ld_map_fd,
    ld_map_value,
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
    r9,
    r10,
    stdw,
    stw,
)
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.local_types import Local, LocalBtf, LocalTypes
from scenarios.kptr.workshop import Home, Refusal, Workshop, assert_refused

pytestmark = [pytest.mark.requires("local_kptr")]


def chain_types(types: LocalTypes, length: int) -> tuple[LocalTypes, list[Local]]:
    """Types of objects of which each has a pointer to one of the type before, and a map value for the last."""
    b = LocalBtf()
    b.struct("kr_obj")
    chain = [b.struct("kr_chain0", ("held", "kptr kr_obj"))]
    for i in range(1, length):
        chain.append(b.struct(f"kr_chain{i}", ("held", "kptr kr_obj"), ("next", f"kptr kr_chain{i - 1}")))
    store = b.struct("kr_store", ("data", "u64"), ("next", f"kptr kr_chain{length - 1}"))
    return replace(types, btf=b.builder.load(), key=b.u32, functions=b.functions, store=store), chain


def test_longest_chain_is_dropped_whole(workshop: Workshop, kr_kptr: KrKptr) -> None:
    """KPTR-HAZ-011, KPTR-MAP-018, -031: 8 types may own each other in a row, the map's value among them; 9 may not."""
    types, chain = chain_types(workshop.t, 7)
    with types.btf, types.map() as store:
        w = Workshop(types)
        build: list[Item] = [w.counted(chain[0], 1)]
        for link in chain[1:]:
            build += [w.counted(link, 1, r8, owned=[r7]), w.stash(r7, "next", Home(r8, link)), mov(r7, r8)]
        for key in (0, 1):
            w.run(w.value(store, key), build, w.stash(r7, "next"))
        assert kr_kptr.count("live") == 14

        w.run(w.value(store), w.unstash("next"), w.drop(r7))
        assert kr_kptr.counters()["dtor_calls"] == 7
    wait_until(lambda: kr_kptr.count("freed") == 14, timeout=5, what="the chain in the map to be freed")
    assert kr_kptr.count("dtor_calls") == 14

    with refused(ELOOP):
        chain_types(workshop.t, 8)[0].btf.close()


def test_object_cannot_own_one_of_its_own_type(workshop: Workshop) -> None:
    """KPTR-HAZ-011, KPTR-MAP-031: such a chain could be dropped only by recursion without end."""
    b = BtfBuilder()
    number = b.integer("u64", 8)
    itself = number + 3
    next = b.ptr(b.type_tag("kptr", itself))
    assert b.struct("kr_self", 16, [("number", number, 0), ("next", next, 8)]) == itself

    with refused(ELOOP):
        b.load().close()


def test_values_own_release_may_write_over_it_again(
    workshop: Workshop, kr_kptr: KrKptr, updates_release: bool
) -> None:
    """KPTR-HAZ-010: a tracer of the objects' destructor updates the map that is letting go of them."""
    if not updates_release:
        pytest.skip("this kernel lacks releases at updates")
    w = workshop
    with w.t.map() as store:
        write_over: Item = [
            stw(r10, -4, 0),
            [stdw(r10, at - w.t.store.size - 8, 0) for at in range(0, w.t.store.size, 8)],
            ld_map_fd(r1, store),
            mov(r2, r10),
            add(r2, -4),
            mov(r3, r10),
            add(r3, -w.t.store.size - 8),
            mov(r4, 0),
            call(uapi.BPF_FUNC_map_update_elem),
            ld_map_value(r1, runs := w.t.map(max_entries=1, value=w.t.plain)),
            mov(r2, 1),
            atomic_add(r1, 0, r2),
            mov(r0, 0),
            exit_(),
        ]
        fill: list[Item] = []
        for key in range(3):
            fill += [w.counted(w.t.elem, key), w.lock(), w.push(r7, "elems", w.t.elem.at["node"]), w.unlock()]
            fill += [w.counted(w.t.leaf, key), w.lock(), w.add(r7, "leaves", w.t.leaf.at["tree"]), w.unlock()]
        w.run(w.value(store), fill, w.counted(w.t.elem, 4), w.stash(r7, "elem"))
        calls = kr_kptr.count("dtor_calls")
        with (
            runs,
            load_tracing(
                "kr_obj_dtor", asm(write_over), attach_type=uapi.BPF_TRACE_FENTRY, module="kr_kptr"
            ) as tracer,
            attach_tracing(tracer, uapi.BPF_TRACE_FENTRY),
        ):
            store.update(0, bytes(w.t.store.size))

            assert kr_kptr.count("dtor_calls") - calls == 7
            assert runs.lookup(0) != bytes(16)
        assert kr_kptr.count("live") == 0


@pytest.mark.known_issue(
    "KPTR-XCHG-DROPPED", reason="what is put into an object that was dropped is lost", spared=("6.12.117",)
)
def test_nothing_is_put_into_an_object_that_was_dropped(
    workshop: Workshop, store: Map, kr_kptr: KrKptr
) -> None:
    """KPTR-XCHG-001, KPTR-LAW-001: a program that has it by a load from the map is refused, or what it put is freed."""
    w = workshop
    w.run(w.value(store), w.new(w.t.basket), w.stash(r7, "basket"))
    put_late: Item = [
        w.value(store),
        ldxdw(r9, r6, w.t.store.at["basket"]),
        jeq(r9, 0, "out"),
        w.unstash("basket"),
        w.drop(r7),
        mov(r1, 1),
        w.ours("kr_obj_new"),
        jeq(r0, 0, "out"),
        w.exchange(mov(r2, r0), "held", Home(r9, w.t.basket)),
        jeq(r0, 0, "was_empty"),
        mov(r1, r0),
        w.ours("kr_obj_release"),
        label("was_empty"),
        mov(r0, 1),
        ja("exit"),
    ]
    try:
        prog = w.load(put_late)
    except BpfError as error:
        assert error.errno == EACCES
        return
    with prog:
        assert prog.test_run(bytes(64)).retval == 1

    wait_until(lambda: kr_kptr.count("live") == 0, timeout=0.5, what="the object that was put in to be freed")


@pytest.mark.known_issue("KPTR-REFCOUNT-PLAIN", reason="the verifier takes a program's mistake for its own")
def test_reference_to_an_object_without_special_fields_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-OBJ-013: as for any other type without a reference count."""
    refusal = Refusal(
        EINVAL, "doesn't point to a type with bpf_refcount", lambda w, m: [w.new(w.t.plain), w.acquire(r7)]
    )
    assert_refused(workshop, store, {"plain": refusal})
