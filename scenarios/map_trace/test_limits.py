# SPDX-License-Identifier: MIT
"""How many tracers a function bears, which kinds it refuses, and what a link of one can do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0, r10, stdw
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from scenarios.map_trace.conftest import Trace, changes

NewMap = Callable[..., Map]
NOTHING = asm(mov(r0, 0), exit_())


def load(kind: int) -> Prog:
    """An idle program for a function that only this file's maps call."""
    return load_tracing("htab_lru_map_delete_elem", NOTHING, attach_type=kind)


def most() -> int:
    """This kernel's BPF_MAX_TRAMP_LINKS of include/linux/bpf.h: 38, on x86 36 from 7.2 on.

    A structure has an array of as many pointers, and then their number.
    """
    kernel = btf.vmlinux()
    try:
        return kernel.offset("bpf_tramp_nodes", "nr_nodes") // 8
    except LookupError:
        return kernel.offset("bpf_tramp_links", "nr_links") // 8


def test_a_function_bears_so_many_programs_of_all_kinds_together(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-027, upstream prog_tests/trampoline_count.c and fexit_stress.c: the next one is refused, and when one
    goes there is room again.
    """
    map = new_map(uapi.BPF_MAP_TYPE_LRU_HASH)
    tracer = trace(map)
    kinds = (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT)
    with ExitStack() as stack:
        links = []
        for number in range(most() - 1):
            prog = stack.enter_context(load(kinds[number % 2]))
            links.append(stack.enter_context(attach_tracing(prog, kinds[number % 2])))
        for kind in kinds:
            prog = stack.enter_context(load(kind))
            with refused(errno.E2BIG):
                attach_tracing(prog, kind)
        map[0] = 1
        del map[0]
        assert [change.operation for change in changes(tracer)] == ["update", "delete"]
        links[0].close()
        attach_tracing(prog, uapi.BPF_TRACE_FEXIT).close()


def test_a_program_attaches_once(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-027, upstream prog_tests/fentry_test.c and fexit_test.c: EBUSY, then again once it is off."""
    map = new_map()
    tracer = trace(map)
    function = "htab_map_update_elem"
    with refused(errno.EBUSY):
        attach_tracing(tracer.progs[function])
    map[1] = 1
    assert tracer.seen == 1
    tracer.links[function].close()
    map[1] = 2
    assert tracer.seen == 1
    with attach_tracing(tracer.progs[function]):
        map[1] = 3
    assert tracer.seen == 2


@pytest.mark.parametrize(
    ("depth", "error"), [pytest.param(512, 0, id="512"), pytest.param(520, errno.EACCES, id="520")]
)
def test_a_program_that_is_traced_has_all_of_its_stack(
    new_map: NewMap, trace: Trace, depth: int, error: int
) -> None:
    """MTRACE-TEST-005, -006, MTRACE-RFC-007, MTRACE-RFC-006: a tracer takes nothing of it."""
    map = new_map()
    trace(map)
    code = asm(stdw(r10, -depth, 0), mov(r0, 0), exit_())
    if error:
        with refused(error, log=f"invalid write to stack R10 off=-{depth} size=8"):
            Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)
    else:
        Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS).close()


def test_a_tracers_link_knows_no_update(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-RFC-001: unlike a tcx link; a program is replaced by a second tracer (see test_detach.py)."""
    map = new_map()
    tracer = trace(map)
    function = "htab_map_update_elem"
    link = tracer.links[function]
    info = link.info()
    assert (info.type, info.attach_type) == (uapi.BPF_LINK_TYPE_TRACING, uapi.BPF_TRACE_FEXIT)
    with load_tracing(function, tracer.instructions(function)) as other, refused(errno.EINVAL):
        link.update(other)
    with refused(errno.EOPNOTSUPP):
        link.detach()
    map[1] = 1
    assert tracer.seen == 1
