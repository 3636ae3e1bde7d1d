# SPDX-License-Identifier: MIT
"""The exchange itself: who may call it, what it is compiled to, and the getters that once stood beside it."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES, EINVAL
from pathlib import Path

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Insn,
    Item,
    add,
    and_,
    asm,
    call,
    call_kfunc,
    exit_,
    jeq,
    label,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r10,
)
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from harness.guest.privilege import CAP_BPF, unprivileged_bpf, with_only
from scenarios.kptr.bench import Bench, Case, accepted, bench_with, check, refuses
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.owning_map import OWNED, SEEN, owning_map

JIT = Path("/proc/sys/net/core/bpf_jit_enable")
# whose context and result need no more than this
PROGRAM_TYPES = (
    uapi.BPF_PROG_TYPE_SOCKET_FILTER,
    uapi.BPF_PROG_TYPE_KPROBE,
    uapi.BPF_PROG_TYPE_SCHED_CLS,
    uapi.BPF_PROG_TYPE_TRACEPOINT,
    uapi.BPF_PROG_TYPE_XDP,
    uapi.BPF_PROG_TYPE_PERF_EVENT,
    uapi.BPF_PROG_TYPE_CGROUP_SKB,
    uapi.BPF_PROG_TYPE_LWT_XMIT,
    uapi.BPF_PROG_TYPE_SK_SKB,
    uapi.BPF_PROG_TYPE_RAW_TRACEPOINT,
    uapi.BPF_PROG_TYPE_CGROUP_SYSCTL,
)


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


def taking(bench: Bench) -> Code:
    """A program that takes an object out and keeps it."""
    return asm(bench.value, bench.take, label("out"), mov(r0, 0), exit_())


def test_programs_of_all_kinds_may_exchange(bench: Bench) -> None:
    """KPTR-XCHG-018: they are told of the reference that they lose, not of the function."""
    code = taking(bench)
    for kind in PROGRAM_TYPES:
        with refused(EINVAL, log="Unreleased reference"):
            Prog.load(code, kind)


def test_programs_of_the_unprivileged_may_not() -> None:
    """KPTR-XCHG-018: where programs of theirs load at all, the function is none for them."""
    code = asm(mov(r2, 0), call(uapi.BPF_FUNC_kptr_xchg), mov(r0, 0), exit_())
    with unprivileged_bpf(allowed=True):
        with refused(EINVAL, log="unknown func bpf_kptr_xchg|cannot use helper bpf_kptr_xchg"):
            with_only((), Prog.load, code, uapi.BPF_PROG_TYPE_SOCKET_FILTER)
        with refused(EACCES, log="R1 type=ctx expected=map_value"):
            with_only((CAP_BPF,), Prog.load, code, uapi.BPF_PROG_TYPE_SOCKET_FILTER)


@pytest.mark.requires("kfunc:bpf_jit_supports_ptr_xchg")
def test_exchange_is_one_instruction_where_the_jit_can(bench: Bench, kr_kptr: KrKptr) -> None:
    """KPTR-XCHG-018: the call becomes an atomic exchange, and works as before."""
    items = [bench.value, bench.k.new(), exchange(mov(r2, r7)), jeq(r0, 0, "out"), bench.release(r0)]
    assert JIT.read_text().strip() != "0"
    with bench.load(items) as program:
        assert exchanges(program) == 1
        for _ in range(3):
            program.test_run(bytes(64))
    assert (kr_kptr.count("created"), kr_kptr.count("live")) == (3, 1)


def exchanges(program: Prog) -> int:
    """How many atomic exchanges of a register with eight bytes at [r1] or so are in the program."""
    raw = program.xlated()
    insns = [Insn.decode(raw[at : at + 8]) for at in range(0, len(raw), 8)]
    # include/uapi/linux/bpf.h: BPF_STX | BPF_ATOMIC | BPF_DW, BPF_XCHG
    return sum((insn.code, insn.imm) == (0xDB, 0xE1) for insn in insns)


POINTEE = "prog_test_ref_kfunc"
GET = "bpf_kfunc_call_test_kptr_get"


def get(at: Item) -> Item:
    """Get a reference of the object in the pointer at `at`, which sets r1, and release it."""
    kernel = btf.vmlinux()
    return [
        at,
        mov(r2, 0),
        mov(r3, 0),
        call_kfunc(kernel.func(GET)),
        jeq(r0, 0, "out"),
        mov(r1, r0),
        call_kfunc(kernel.func("bpf_kfunc_call_test_release")),
    ]


GETS: dict[str, Case] = {
    "owning pointer": accepted(lambda b: [b.value, get([mov(r1, r6), add(r1, OWNED)])]),
    "stack": refuses(
        EINVAL, "arg#0 expected pointer to map value", lambda b: get([mov(r1, r10), add(r1, -8)])
    ),
    "pointer's content": refuses(
        EINVAL, "arg#0 expected pointer to map value", lambda b: [b.value, get(ldxdw(r1, r6, OWNED))]
    ),
    "data": refuses(
        EINVAL, "arg#0 no referenced kptr at map value offset=0", lambda b: [b.value, get(mov(r1, r6))]
    ),
    "pointer that does not own": refuses(
        EINVAL,
        "arg#0 no referenced kptr at map value offset=8",
        lambda b: [b.value, get([mov(r1, r6), add(r1, SEEN)])],
    ),
    "unknown offset": refuses(
        EINVAL,
        "arg#0 must have constant offset",
        lambda b: [b.value, ldxdw(r1, r6, 0), and_(r1, 8), add(r1, r6), get([])],
    ),
    "reference that is not released": refuses(
        EINVAL,
        "Unreleased reference",
        lambda b: [
            b.value,
            mov(r1, r6),
            add(r1, OWNED),
            mov(r2, 0),
            mov(r3, 0),
            call_kfunc(btf.vmlinux().func(GET)),
        ],
    ),
}


@pytest.mark.requires(f"kfunc:{GET}")
def test_getters_took_a_pointer_in_a_value(bench: Bench) -> None:
    """KPTR-XCHG-020: up to 6.3, one that owns, at a known offset, of the right type."""
    with owning_map(POINTEE) as map:
        check(Bench(map, bench.k, {}), GETS)
    says = "arg#0 (BTF type|expected pointer|must point)|kernel function .* args#0 expected pointer to"
    check(
        bench, {"other type": refuses(EINVAL, says, lambda b: [b.value, get([mov(r1, r6), add(r1, OWNED)])])}
    )
