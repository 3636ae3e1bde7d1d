# SPDX-License-Identifier: MIT
"""References to tasks and cgroups: what the verifier takes for one, and which programs may have any.

The kfuncs of both have the same rules, so that each table stands for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    add,
    asm,
    call,
    exit_,
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
    r10,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, Case, accepted, bench_with, check, kfunc, refuses
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, SEEN, owning_map

pytestmark = pytest.mark.requires("kfunc:bpf_task_acquire", "kfunc:bpf_cgroup_acquire")

MAY_BE_NULL = "[Pp]ossibly NULL pointer passed to trusted"
UNRELIABLE = "R1 must be a rcu pointer|R1 must be referenced or trusted"
NOT_OWNED = (
    "expects refcounted PTR_TO_BTF_ID|R1 must be referenced or trusted|expects referenced PTR_TO_BTF_ID"
)
LEAK = "Unreleased reference"
NO_OBJECT = "pointer type STRUCT (task_struct|cgroup) must point|is fp expected STRUCT (task_struct|cgroup)"


@dataclass(frozen=True)
class Kind:
    """A structure with the kfuncs that acquire and release it.

    `trusted` sets r7 to one that the program may rely on without owning it, `unreliable` to one that was read out of
    that; `found` sets r0 to a reference or NULL.
    """

    pointee: str
    acquire: str
    release: str
    trusted: Callable[[], Item]
    unreliable: Callable[[], Item]
    found: Callable[[], Item]


def task() -> Item:
    return [call(uapi.BPF_FUNC_get_current_task_btf), mov(r7, r0)]


def cgroup() -> Item:
    """Which the task's set of cgroups has, in RCU programs."""
    at = btf.vmlinux().offset
    return [
        task(),
        ldxdw(r7, r7, at("task_struct", "cgroups")),
        ldxdw(r7, r7, at("css_set", "dfl_cgrp")),
    ]


KINDS = {
    "task": Kind(
        "task_struct",
        "bpf_task_acquire",
        "bpf_task_release",
        task,
        lambda: [task(), ldxdw(r7, r7, btf.vmlinux().offset("task_struct", "last_wakee"))],
        lambda: [mov(r1, 1), kfunc("bpf_task_from_pid")],
    ),
    "cgroup": Kind(
        "cgroup",
        "bpf_cgroup_acquire",
        "bpf_cgroup_release",
        cgroup,
        lambda: [cgroup(), ldxdw(r7, r7, btf.vmlinux().offset("cgroup", "old_dom_cgrp"))],
        lambda: [mov(r1, 1), kfunc("bpf_cgroup_from_id")],
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def owner(kind: Kind) -> Iterator[Map]:
    with owning_map(kind.pointee) as map:
        yield map


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


def acquire(kind: Kind, source: Item) -> Item:
    """r0 = a reference or NULL."""
    return [source, mov(r1, r7), kfunc(kind.acquire)]


def release(kind: Kind) -> Item:
    """Release r0, if it is anything."""
    return [jeq(r0, 0, "out"), mov(r1, r0), kfunc(kind.release)]


def stored(owner: Map, offset: int = OWNED, *, tested: bool = True) -> Item:
    """r7 = a pointer of the map's."""
    return [value_of(owner), ldxdw(r7, r6, offset), jeq(r7, 0, "out") if tested else []]


def stack() -> Item:
    """r7 = an address in the stack."""
    return [stdw(r10, -8, 0), mov(r7, r10), add(r7, -8)]


def lock() -> Insn:
    return kfunc("bpf_rcu_read_lock")


def unlock() -> Insn:
    return kfunc("bpf_rcu_read_unlock")


def test_reference_is_taken_from_what_can_be_relied_on(bench: Bench, kind: Kind, owner: Map) -> None:
    """KPTR-TASK-001, -002, KPTR-CGRP-001: each is whole, and with one step less or other one of those refused."""
    k = kind
    check(
        bench,
        {
            "a trusted one": accepted(lambda b: [acquire(k, k.trusted()), release(k)]),
            "the map's, whose section is the program": accepted(
                lambda b: [acquire(k, stored(owner)), release(k)]
            ),
            "the map's in a section": accepted(
                lambda b: [
                    value_of(owner),
                    lock(),
                    ldxdw(r7, r6, OWNED),
                    jne(r7, 0, 3),
                    unlock(),
                    mov(r0, 0),
                    exit_(),
                    mov(r1, r7),
                    kfunc(k.acquire),
                    mov(r7, r0),
                    unlock(),
                    mov(r0, r7),
                    release(k),
                ],
                sleepable=True,
            ),
            "found by its number": accepted(lambda b: [k.found(), release(k)]),
            "put into the map for what was there": accepted(
                lambda b: [
                    value_of(owner),
                    k.found(),
                    jeq(r0, 0, "out"),
                    exchange(mov(r2, r0)),
                    release(k),
                ]
            ),
        },
    )


def test_reference_is_refused_for_anything_else(bench: Bench, kind: Kind, owner: Map) -> None:
    """KPTR-TASK-001, -002, KPTR-CGRP-001: for what may be NULL or gone, is no object, or is not owned."""
    k = kind

    def acquires(
        says: str, source: Callable[[], Item], *, sleepable: bool = False, errno: int = EINVAL
    ) -> Case:
        return refuses(errno, says, lambda b: [acquire(k, source()), release(k)], sleepable=sleepable)

    def releases(says: str, source: Callable[[], Item], *, errno: int = EINVAL) -> Case:
        return refuses(errno, says, lambda b: [source(), mov(r1, r7), kfunc(k.release)])

    check(
        bench,
        {
            "acquired: the map's, not tested": acquires(
                MAY_BE_NULL, lambda: stored(owner, tested=False), errno=EACCES
            ),
            "acquired: the map's, no section": acquires(UNRELIABLE, lambda: stored(owner), sleepable=True),
            "acquired: not the map's own": acquires(UNRELIABLE, lambda: stored(owner, SEEN)),
            "acquired: read out of another": acquires(
                UNRELIABLE, lambda: [k.unreliable(), jeq(r7, 0, "out")]
            ),
            "acquired: the stack": acquires(NO_OBJECT, stack),
            "acquired: NULL": acquires(MAY_BE_NULL, lambda: mov(r7, 0), errno=EACCES),
            "acquired and kept": refuses(EINVAL, LEAK, lambda b: acquire(k, k.trusted())),
            "acquired, released untested": refuses(
                EACCES, MAY_BE_NULL, lambda b: [acquire(k, k.trusted()), mov(r1, r0), kfunc(k.release)]
            ),
            "found, released untested": refuses(
                EACCES, MAY_BE_NULL, lambda b: [k.found(), mov(r1, r0), kfunc(k.release)]
            ),
            "found and kept": refuses(EINVAL, LEAK, lambda b: k.found()),
            "taken from the map and kept": refuses(
                EINVAL, LEAK, lambda b: [value_of(owner), exchange(mov(r2, 0))]
            ),
            "put into the map, what was there kept": refuses(
                EINVAL,
                LEAK,
                lambda b: [value_of(owner), k.found(), jeq(r0, 0, "out"), exchange(mov(r2, r0))],
            ),
            "released: the map's, not tested": releases(
                MAY_BE_NULL, lambda: stored(owner, tested=False), errno=EACCES
            ),
            "released: the map's": releases(NOT_OWNED, lambda: stored(owner)),
            "released: the stack": releases(f"{NO_OBJECT}|{NOT_OWNED}", stack),
            "released: NULL": releases(MAY_BE_NULL, lambda: mov(r7, 0), errno=EACCES),
            "released: never acquired": releases(NOT_OWNED, lambda: k.trusted()),
            "released twice": refuses(
                EINVAL,
                f"{NO_OBJECT}|{NOT_OWNED}|R1 is scalar expected STRUCT",
                lambda b: [
                    acquire(k, k.trusted()),
                    jeq(r0, 0, "out"),
                    mov(r7, r0),
                    mov(r1, r7),
                    kfunc(k.release),
                    mov(r1, r7),
                    kfunc(k.release),
                ],
            ),
        },
    )


def test_task_read_out_of_a_task_is_as_good_where_the_kernel_says_so(bench: Bench) -> None:
    """KPTR-TASK-001, KPTR-ACC-003: the leader and the parent stay for a grace period; they are never NULL, either."""
    leader = btf.vmlinux().offset("task_struct", "group_leader")
    walk = [task(), ldxdw(r7, r7, leader), jeq(r7, 0, "out")]
    check(
        bench,
        {
            "in a section": accepted(lambda b: [acquire(KINDS["task"], walk), release(KINDS["task"])]),
            "outside": refuses(
                EINVAL,
                UNRELIABLE,
                lambda b: [acquire(KINDS["task"], walk), release(KINDS["task"])],
                sleepable=True,
            ),
        },
    )


def test_task_by_its_number_within_the_namespace_may_be_null(bench: Bench) -> None:
    """KPTR-TASK-003: and is the program's to release."""
    require("kfunc:bpf_task_from_vpid")
    found = [mov(r1, 1), kfunc("bpf_task_from_vpid")]
    check(
        bench,
        {
            "tested": accepted(lambda b: [found, release(KINDS["task"])]),
            "untested": refuses(
                EACCES, MAY_BE_NULL, lambda b: [found, mov(r1, r0), kfunc("bpf_task_release")]
            ),
        },
    )


PLAIN = {
    "kprobe": uapi.BPF_PROG_TYPE_KPROBE,
    "socket filter": uapi.BPF_PROG_TYPE_SOCKET_FILTER,
}


def test_programs_that_may_run_anywhere_have_no_references(kind: Kind) -> None:
    """KPTR-TASK-005, KPTR-CGRP-001: a kprobe may be where the object is being freed."""
    code = asm(kind.found(), release(kind), label("out"), mov(r0, 0), exit_())
    wrong = {}
    for name, type in PLAIN.items():
        try:
            Prog.load(code, type).close()
        except BpfError as error:
            if error.errno == EACCES and "is not allowed" in error.log:
                continue
            wrong[name] = f"{error.errno_name}: {error.log}"
        else:
            wrong[name] = "loaded"
    assert not wrong


@pytest.mark.requires("fentry:bpf_lsm_task_free")
def test_task_that_is_being_freed_is_not_acquired() -> None:
    """KPTR-TASK-001, -005: that hook's argument is no trusted pointer; the same at another hook is."""
    k = KINDS["task"]
    code = asm(acquire(k, ldxdw(r7, r1, 0)), release(k), label("out"), mov(r0, 0), exit_())

    def load(hook: str) -> Prog:
        return Prog.load(
            code,
            uapi.BPF_PROG_TYPE_LSM,
            expected_attach_type=uapi.BPF_LSM_MAC,
            attach_btf_id=btf.vmlinux().func(f"bpf_lsm_{hook}"),
        )

    load("task_getpgid").close()
    with refused(EINVAL, log=UNRELIABLE):
        load("task_free").close()
