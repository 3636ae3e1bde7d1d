# SPDX-License-Identifier: MIT
"""Who may reach local storage: by the owner's type, in RCU sections of sleepable programs, by nesting."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    asm,
    atomic_add,
    call_kfunc,
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
from harness.guest.bpf.attrs import IterCgroupInfo
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.storage import CGROUP1, EACH_TYPE, KINDS, VALUE, Storage, some_owner

pytestmark = pytest.mark.requires("storage_kptr")
OBJECT = 1


def put(storage: Storage) -> Item:
    return [storage.value(create=True), storage.find(OBJECT), storage.exchange(mov(r2, r7))]


@pytest.mark.parametrize("kind", EACH_TYPE)
def test_owner_of_another_type_is_refused(kr_kptr: KrKptr, kind: str) -> None:
    """KPTR-FREE-016's maps take their own kind of owner only, and neither a number nor the program's context."""
    other = KINDS["cgroup" if kind == "task" else "task"].owner()
    with Storage(KINDS[kind]) as storage:
        for owner in (other, mov(r8, 1), mov(r8, r6)):
            with refused(log="R2 (is of )?type"):
                storage.load(storage.value(), owner=owner).close()
            with refused(log="R2 (is of )?type"):
                storage.load(storage.delete(), owner=owner).close()


def test_sleepable_program_needs_an_rcu_section_for_the_cgroup(kr_kptr: KrKptr, tmp_path: Path) -> None:
    """KPTR-FREE-016, KPTR-ACC-003, -022: the task's cgroup is sure to exist within the section only."""
    kernel = btf.vmlinux()
    enter, leave = (call_kfunc(kernel.func(f"bpf_rcu_read_{name}")) for name in ("lock", "unlock"))
    kind = KINDS["cgroup"]
    with Storage(kind) as storage, some_owner("cgroup", tmp_path) as owner:
        with refused():
            storage.load(storage.get(create=True), flags=uapi.BPF_F_SLEEPABLE).close()

        section: Item = [enter, kind.owner(), storage.get(create=True), leave]
        with (
            storage.load(section, owner=[], flags=uapi.BPF_F_SLEEPABLE) as prog,
            Link.raw_tracepoint(prog),
        ):
            kind.look(owner)

        assert storage.map.lookup(owner) == VALUE


@pytest.mark.requires("kfunc:bpf_task_get_cgroup1")
def test_sleepable_program_needs_no_section_for_a_cgroup_that_it_holds(
    kr_kptr: KrKptr, tmp_path: Path
) -> None:
    """KPTR-FREE-016, KPTR-ACC-022: a reference is what one has of a cgroup of version 1; a section does no harm."""
    kernel = btf.vmlinux()
    enter, leave = (call_kfunc(kernel.func(f"bpf_rcu_read_{name}")) for name in ("lock", "unlock"))
    kind = KINDS["cgroup1"]
    with Storage(kind) as storage, some_owner("cgroup1", tmp_path) as owner:
        get = storage.get(create=True)
        for body in (get, [enter, get, leave]):
            with storage.load(body, flags=uapi.BPF_F_SLEEPABLE) as prog, Link.raw_tracepoint(prog):
                kind.look(owner)

            assert storage.map.lookup(owner) == VALUE
            storage.map.delete(owner)


@pytest.mark.parametrize("kind", ["cgroup", CGROUP1])
def test_sleepable_iterator_relies_on_the_cgroup_that_it_is_shown(
    kr_kptr: KrKptr, kind: str, tmp_path: Path
) -> None:
    """KPTR-FREE-016: without a section, which it needs for one that it read out of the first."""
    at = btf.vmlinux().offset
    shown: Item = [ldxdw(r8, r6, 8), jeq(r8, 0, "out")]  # in struct bpf_iter__cgroup
    another: Item = [shown, ldxdw(r8, r8, at("cgroup", "old_dom_cgrp"))]
    with Storage(KINDS[kind]) as storage, some_owner(kind, tmp_path) as owner:

        def load(owner: Item) -> Prog:
            code = asm(mov(r6, r1), owner, put(storage), label("out"), mov(r0, 0), exit_())
            return Prog.load(
                code,
                uapi.BPF_PROG_TYPE_TRACING,
                expected_attach_type=uapi.BPF_TRACE_ITER,
                attach_btf_id=btf.vmlinux().func("bpf_iter_cgroup"),
                fd_array=[0, storage.kfuncs.btf.object],
                flags=uapi.BPF_F_SLEEPABLE,
            )

        with refused(log="R2 type=untrusted_ptr_ expected"):
            load(another).close()
        only_this = IterCgroupInfo(order=uapi.BPF_CGROUP_ITER_SELF_ONLY, cgroup_fd=owner)
        with load(shown) as prog, Link.iterator(prog, info=only_this) as link:
            assert (storage.map.lookup(owner), kr_kptr.static_refs(OBJECT)) == (None, 0)

            assert link.read_iterator() == b""

        assert (storage.map.lookup(owner), kr_kptr.static_refs(OBJECT)) == (VALUE, 1)


def test_sockets_of_a_cgroup_share_its_storage(kr_kptr: KrKptr) -> None:
    """KPTR-FREE-016, KPTR-LAW-003: what was put in by way of one socket comes out by way of the other."""
    kernel = btf.vmlinux()
    kind, sockets = KINDS["cgroup"], KINDS["socket"]
    group: Item = [
        sockets.owner(),
        ldxdw(r8, r8, kernel.offset("sock", "sk_cgrp_data.cgroup")),
        jeq(r8, 0, "out"),
    ]
    with Storage(kind) as storage, socket.socket() as one, socket.socket() as other:
        for some, program in (
            (one, put(storage)),
            (other, [storage.value(), storage.exchange(mov(r2, 0))]),
        ):
            with storage.load(program, at=sockets, owner=group) as prog, Link.raw_tracepoint(prog):
                sockets.look(some.fileno())
            assert kr_kptr.static_refs(OBJECT) == (1 if some is one else 0)


@pytest.mark.requires("fentry:bpf_local_storage_update")
@pytest.mark.parametrize("kind", ["task", "cgroup", CGROUP1])
def test_program_inside_an_update_may_use_the_same_storage(
    kr_kptr: KrKptr, kind: str, tmp_path: Path
) -> None:
    """KPTR-FREE-016, KPTR-HAZ-010: it gets the value or is turned away; nothing stands still, and nothing is lost."""
    with (
        Storage(KINDS[kind]) as storage,
        some_owner(kind, tmp_path) as owner,
    ):
        note: Item = [ld_map_value(r1, storage.notes), mov(r2, 1), atomic_add(r1, 0, r2)]
        nested = asm(
            mov(r6, r1),
            mov(r8, 0),
            note,
            KINDS[kind].owner(),
            put(storage),
            storage.delete(),
            label("out"),
            KINDS[kind].let_go(),
            mov(r0, 0),
            exit_(),
        )
        with (
            Prog.load(
                nested,
                uapi.BPF_PROG_TYPE_TRACING,
                expected_attach_type=uapi.BPF_TRACE_FENTRY,
                attach_btf_id=btf.vmlinux().func("bpf_local_storage_update"),
                fd_array=[0, storage.kfuncs.btf.object],
            ) as prog,
            Link.raw_tracepoint(prog),
        ):
            storage.put(owner, OBJECT)
            storage.map.delete(owner)
            storage.put(owner, OBJECT)

        assert storage.notes.number(0) >= 2
        storage.map.close()
        wait_until(lambda: kr_kptr.static_refs(OBJECT) == 0, timeout=2, what="all references to go")
        counts = kr_kptr.counters()
        assert counts["acquired"] == counts["released"] + counts["dtor_calls"]
