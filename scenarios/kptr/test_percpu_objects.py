# SPDX-License-Identifier: MIT
"""Objects that have one copy per CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    call,
    ja,
    jeq,
    label,
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
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.waiting import wait_until
from scenarios.kptr.local_types import Local, LocalBtf
from scenarios.kptr.workshop import NOT_OWNED, Program, Refusal, Workshop, assert_accepted, assert_refused

pytestmark = [pytest.mark.requires("percpu_kptr")]


def new_percpu(w: Workshop, type: Local | None = None) -> Item:
    """r7 = a new per-CPU object."""
    return [mov(r1, (type or w.t.plain).id), w.kfunc("bpf_percpu_obj_new"), jeq(r0, 0, "out"), mov(r7, r0)]


def drop_percpu(w: Workshop, object: Reg = r7) -> Item:
    return [mov(r1, object), w.kfunc("bpf_percpu_obj_drop")]


def put_percpu(w: Workshop) -> Item:
    """Put r7 into the value's pointer, and drop what was there."""
    return [
        w.exchange(mov(r2, r7), "percpu"),
        jeq(r0, 0, "none_before"),
        drop_percpu(w, r0),
        label("none_before"),
    ]


def stashed(w: Workshop) -> Item:
    """r7 = the per-CPU object of the value, which stays there, or leave."""
    return [ldxdw(r7, r6, w.t.store.at["percpu"]), jeq(r7, 0, "out")]


def on_cpu(cpu: int | None = None) -> Item:
    """r0 = the copy of r7 of a CPU (None: this one; there may be no such CPU)."""
    if cpu is None:
        return [mov(r1, r7), call(uapi.BPF_FUNC_this_cpu_ptr)]
    return [mov(r1, r7), mov(r2, cpu), call(uapi.BPF_FUNC_per_cpu_ptr)]


ACCEPTED: dict[str, Program] = {
    "drop": lambda w, m: [new_percpu(w), drop_percpu(w)],
    "stash": lambda w, m: [w.value(m), new_percpu(w), put_percpu(w)],
    "write_this_copy": lambda w, m: [w.value(m), stashed(w), on_cpu(), stdw(r0, 8, 1)],
    "write_a_copy": lambda w, m: [w.value(m), stashed(w), on_cpu(0), jeq(r0, 0, "out"), stdw(r0, 8, 1)],
}

# KPTR-PCPU-001 to -006
REFUSED = {
    "new_of_struct_with_pointers": Refusal(
        EINVAL, "must be of a struct of scalars", lambda w, m: new_percpu(w, w.t.leaf)
    ),
    "new_of_struct_with_lock": Refusal(
        EINVAL, "must not contain special fields", lambda w, m: new_percpu(w, w.t.locked)
    ),
    "new_of_struct_of_520_bytes": Refusal(
        EINVAL, r"type size \(520\) is greater than 512", lambda w, m: new_percpu(w, w.t.large)
    ),
    "leak": Refusal(EINVAL, "Unreleased reference", lambda w, m: new_percpu(w)),
    "read_without_cpu": Refusal(
        EACCES, "access percpu memory", lambda w, m: [new_percpu(w), ldxdw(r0, r7), drop_percpu(w)]
    ),
    "read_stashed_without_cpu": Refusal(
        EACCES, "access percpu memory", lambda w, m: [w.value(m), stashed(w), ldxdw(r0, r7)]
    ),
    "number_for_this_cpu_ptr": Refusal(
        EACCES,
        "R1 type=scalar expected=percpu_ptr_",
        lambda w, m: [w.value(m), ldxdw(r7, r6, w.t.store.at["data"]), on_cpu()],
    ),
    "plain_object_for_this_cpu_ptr": Refusal(
        EACCES, "R1 type=ptr_ expected=percpu_ptr_", lambda w, m: [w.new(w.t.plain), on_cpu(), w.drop(r7)]
    ),
    "copy_of_an_owned_object": Refusal(
        EACCES,
        "R1 type=percpu_ptr_ expected=percpu_ptr_, percpu_rcu_ptr_",
        lambda w, m: [new_percpu(w), on_cpu(0), drop_percpu(w)],
    ),
    "drop_as_plain_object": Refusal(
        EINVAL, "expected for bpf_percpu_obj_drop", lambda w, m: [new_percpu(w), w.drop(r7)]
    ),
    "drop_plain_object": Refusal(
        EINVAL, "expected for bpf_obj_drop", lambda w, m: [w.new(w.t.plain), drop_percpu(w)]
    ),
    "drop_stashed": Refusal(None, NOT_OWNED, lambda w, m: [w.value(m), stashed(w), drop_percpu(w)]),
    "store_to_field": Refusal(
        EACCES,
        "store to referenced kptr disallowed",
        lambda w, m: [w.value(m), stdw(r6, w.t.store.at["percpu"], 0)],
    ),
    "put_into_plain_field": Refusal(
        EACCES,
        "invalid kptr access, R2 type=percpu_ptr_",
        lambda w, m: [w.value(m), new_percpu(w), w.exchange(mov(r2, r7), "plain")],
    ),
    "put_other_type": Refusal(
        EACCES,
        "invalid kptr access, R2 type=percpu_ptr_kr_twin expected=ptr_kr_plain",
        lambda w, m: [w.value(m), new_percpu(w, w.t.twin), w.exchange(mov(r2, r7), "percpu")],
    ),
    "put_plain_object": Refusal(
        EACCES,
        "invalid kptr access, R2 type=ptr_",
        lambda w, m: [w.value(m), w.new(w.t.plain), w.exchange(mov(r2, r7), "percpu")],
    ),
}


def test_program_that_keeps_account_loads(workshop: Workshop, store: Map) -> None:
    """KPTR-PCPU-001, -002, KPTR-SEED-003: each is whole, and with one step less or more one of REFUSED."""
    assert_accepted(workshop, store, ACCEPTED)


def test_program_that_mixes_kinds_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-PCPU-001 to -006: what the verifier says stands beside each program of REFUSED."""
    assert_refused(workshop, store, REFUSED)


def test_sleepable_program_needs_an_rcu_section(workshop: Workshop, store: Map) -> None:
    """KPTR-PCPU-002, KPTR-ACC-002, -003: to get at the copies of a stashed object."""
    w = workshop
    begin, end = w.kfunc("bpf_rcu_read_lock"), w.kfunc("bpf_rcu_read_unlock")
    body: Item = [
        ldxdw(r7, r6, w.t.store.at["percpu"]),
        jeq(r7, 0, "none"),
        on_cpu(),
        ldxdw(r0, r0, 8),
        label("none"),
    ]

    w.load(w.value(store), begin, body, end, sleepable=True).close()
    with refused(EACCES, log="R1 type=untrusted_.*expected=percpu_ptr_|R1 type=.*untrusted"):
        w.load(w.value(store), body, sleepable=True).close()


@dataclass(frozen=True)
class Owner:
    """A value that owns a per-CPU object, and its types; `value` sets r6 to it."""

    w: Workshop
    value: Item


@contextmanager
def in_array(w: Workshop) -> Iterator[Owner]:
    with w.t.map() as map:
        yield Owner(w, w.value(map))


@contextmanager
def in_cgroup_storage(w: Workshop) -> Iterator[Owner]:
    """In the storage of this process's cgroup, which the first program makes."""
    b = LocalBtf()
    plain = b.struct("kr_plain", ("key", "u64"), ("data", "u64"))
    store = b.struct("kr_store", ("data", "u64"), ("percpu", "percpu_kptr kr_plain"))
    at = btf.vmlinux().offset
    with b.builder.load() as loaded:
        types = replace(w.t, btf=loaded, key=b.u32, functions=b.functions, plain=plain, store=store)
        with types.map(uapi.BPF_MAP_TYPE_CGRP_STORAGE, 0, flags=uapi.BPF_F_NO_PREALLOC) as map:
            value: Item = [
                call(uapi.BPF_FUNC_get_current_task_btf),
                ldxdw(r2, r0, at("task_struct", "cgroups")),
                ldxdw(r2, r2, at("css_set", "dfl_cgrp")),
                ld_map_fd(r1, map),
                mov(r3, 0),
                mov(r4, uapi.BPF_LOCAL_STORAGE_GET_F_CREATE),
                call(uapi.BPF_FUNC_cgrp_storage_get),
                jeq(r0, 0, "out"),
                mov(r6, r0),
            ]
            yield Owner(Workshop(types), value)


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            in_array,
            marks=pytest.mark.known_issue(
                "MAP-FREE-PREEMPTIBLE",
                reason="the end of a map frees per-CPU objects on a CPU that may change meanwhile",
                splat="caller is bpf_mem_free_rcu",
                spared=("7.3.4",),
                shown_by="CONFIG_DEBUG_PREEMPT",
            ),
        ),
        in_cgroup_storage,
    ],
)
def test_each_cpu_has_its_copy(
    workshop: Workshop, place: Callable[[Workshop], AbstractContextManager[Owner]]
) -> None:
    """KPTR-PCPU-001, -002, -007: zeroed at first; there is none of a CPU that does not exist."""
    cpus = sorted(os.sched_getaffinity(0))
    with place(workshop) as owner:
        w, data = owner.w, owner.w.t.plain.at["data"]

        def copies() -> list[int]:
            return [
                w.run(
                    owner.value,
                    stashed(w),
                    on_cpu(cpu),
                    jeq(r0, 0, "out"),
                    ldxdw(r0, r0, data),
                    add(r0, 1000),
                    ja("exit"),
                )
                for cpu in (*cpus, 4095)
            ]

        assert w.run(owner.value, new_percpu(w), put_percpu(w)) == 0
        assert copies() == [1000, 1000, 0]

        with w.load(
            owner.value, stashed(w), on_cpu(), ldxdw(r1, r0, data), add(r1, 1), stxdw(r0, data, r1)
        ) as count:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                count.test_run(bytes(64), repeat=cpu + 3)

        assert copies() == [1003, 1004, 0]


def test_new_object_holds_zeros_or_what_a_dropped_one_left(workshop: Workshop, store: Map) -> None:
    """KPTR-PCPU-007, KPTR-LAW-006: 500 objects, each filled and then dropped for the next. Only memory that
    comes from the slabs is zeroed (kernel/bpf/memalloc.c:__alloc); what was dropped comes back as it is after a
    grace period.
    """
    w, data, counter = workshop, workshop.t.plain.at["data"], workshop.t.store.at["data"]
    strange = 1 << 20  # what an object with other content adds to the count
    with w.load(
        w.value(store),
        new_percpu(w),
        put_percpu(w),
        stashed(w),
        on_cpu(),
        ldxdw(r8, r0, data),
        stdw(r0, data, 77),
        mov(r2, 1),
        jeq(r8, 0, "known"),
        jeq(r8, 77, "known"),
        mov(r2, strange),
        label("known"),
        ldxdw(r1, r6, counter),
        add(r1, r2),
        stxdw(r6, counter, r1),
    ) as turn:

        def turned() -> int:
            turn.test_run(bytes(64), repeat=100)
            value = store.lookup(0)
            assert value is not None
            return int.from_bytes(value[counter:][:8], "little")

        # A run gets no object while the allocator fetches memory: an interrupt does that.
        count = wait_until(lambda: max(turned(), 500) - 500, timeout=5, what="500 objects") + 500
    assert count < strange


@pytest.mark.known_issue(
    "KPTR-PERCPU-NULL", reason="NULL is taken for a valid copy", splat="NULL pointer dereference"
)
def test_copy_of_a_cpu_may_be_null(workshop: Workshop, store: Map, panic_on_oops: None) -> None:
    """KPTR-PCPU-007, *expendable*: a program that does not test for NULL is refused; one that loads is run here."""
    w = workshop
    w.run(w.value(store), new_percpu(w), put_percpu(w))
    with (
        refused(EACCES, log="or_null"),
        w.load(w.value(store), stashed(w), on_cpu(4095), ldxdw(r0, r0, 8)) as prog,
    ):
        prog.test_run(bytes(64))
