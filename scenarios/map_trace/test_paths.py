# SPDX-License-Identifier: MIT
"""The ways that a program's change takes to the map's function, and the contexts that it is made in."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    ja,
    jeq,
    jne,
    label,
    ld_map_fd,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r10,
    stdw,
    stw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source, Tracer
from harness.guest.bpf.map_trace_hooks import Hook, Operation
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.symbols import kernel_function
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.netns import NetNamespace
from harness.guest.waiting import wait_until
from scenarios.map_trace.actors import SMALLEST_PACKET, SystemCall
from scenarios.map_trace.conftest import Trace

NewMap = Callable[..., Map]
HELPER = Hook(Operation.UPDATE, "bpf_map_update_elem")


def load(*items: Item) -> Prog:
    """A classifier that returns 0."""
    return Prog.load(asm(*items, mov(r0, 0), exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS, name="path")


def update(map: Sequence[Item]) -> Item:
    """Element 5 of the map that `map` puts into r1 becomes 7."""
    return (
        stw(r10, -4, 5),
        stdw(r10, -16, 7),
        *map,
        mov(r2, r10),
        add(r2, -4),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, uapi.BPF_ANY),
        call(uapi.BPF_FUNC_map_update_elem),
    )


def helper_runs(trace: Trace, map: Map, prog: Prog) -> tuple[int, bool]:
    """How often the helper itself ran when the program changed the map once, and whether the map's function was called
    right from the program.
    """
    helper, tracer = trace(map, hooks=[HELPER]), trace(map)
    prog.test_run(SMALLEST_PACKET)
    (event,) = tracer.events()
    assert (event.number, event.value, event.error) == (5, (7).to_bytes(8, "little"), 0)
    assert event.source is Source.PROGRAM
    within = any(event.caller in function for function in prog.jited_functions())
    return helper.seen, within


def test_a_call_with_one_map_goes_right_to_its_function(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-020: the verifier writes the function's address into the call."""
    map = new_map()
    with load(update(ld_map_fd(r1, map))) as prog:
        assert helper_runs(trace, map, prog) == (0, True)


def test_a_call_with_one_of_several_maps_goes_through_the_helper(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-021, upstream prog_tests/for_each.c multi_maps: the map is not known when the program is loaded."""
    map, other = new_map(), new_map()
    choice = (
        ldxw(r6, r1, 0),
        jne(r6, len(SMALLEST_PACKET), "other"),
        ld_map_fd(r1, map),
        ja("go"),
        label("other"),
        ld_map_fd(r1, other),
        label("go"),
    )
    with load(update(choice)) as prog:
        runs, _ = helper_runs(trace, map, prog)
        assert runs == 1
        assert not list(other.keys())


def test_a_change_of_an_inner_map_goes_right_to_its_function(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-021: all inner maps are of one type, so that the call is patched as for a single map."""
    inner, other = new_map(), new_map()
    outer = new_map(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 1, value_size=4, inner_map=other)
    outer[0] = inner.fd
    found = (
        stw(r10, -24, 0),
        ld_map_fd(r1, outer),
        mov(r2, r10),
        add(r2, -24),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "out"),
        mov(r1, r0),
    )
    with load(update(found), label("out")) as prog:
        assert helper_runs(trace, inner, prog) == (0, True)


def test_a_programs_look_up_is_inlined(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-HOOK-020: only user space's is seen at the type's function."""
    map = new_map()
    map[5] = 1
    looked_up = trace(map, hooks=[Hook(Operation.UPDATE, "htab_map_lookup_elem")])
    code = (
        stw(r10, -4, 5),
        ld_map_fd(r1, map),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "out"),
        ldxw(r0, r0, 0),
        exit_(),
        label("out"),
    )
    with load(*code) as prog:
        assert prog.test_run(SMALLEST_PACKET).retval == 1
    assert looked_up.seen == 0
    assert map[5] == 1
    assert {event.source for event in looked_up.events()} == {Source.SYSTEM_CALL}


def in_softirq(map: Map) -> None:
    """A socket's filter runs when the loopback device delivers a datagram."""
    code = asm(update(ld_map_fd(r1, map)), mov(r0, 0xFFFF), exit_())
    with (
        NetNamespace.create(loopback=True) as namespace,
        Prog.load(code, uapi.BPF_PROG_TYPE_SOCKET_FILTER) as prog,
        namespace.entered(),
        ExitStack() as stack,
    ):
        server, client = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        )
        server.bind(("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, 50, struct.pack("=i", prog.fd))  # SO_ATTACH_BPF
        client.sendto(b"x", server.getsockname())
        assert server.recv(16) == b"x"


def in_a_tracer(map: Map) -> None:
    """A program before a function that a test run calls."""
    code = asm(update(ld_map_fd(r1, map)), mov(r0, 0), exit_())
    with (
        load_tracing("bpf_fentry_test1", code, attach_type=uapi.BPF_TRACE_FENTRY) as prog,
        attach_tracing(prog, uapi.BPF_TRACE_FENTRY),
    ):
        prog.test_run()


def in_a_system_call(map: Map) -> None:
    """A tracer of another map's changes runs within the system call that changes that one."""
    code = asm(update(ld_map_fd(r1, map)), mov(r0, 0), exit_())
    with (
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as other,
        load_tracing("array_map_update_elem", code) as prog,
        attach_tracing(prog),
    ):
        other[0] = 1


def in_a_test_run(map: Map) -> None:
    """A classifier that user space runs."""
    with load(update(ld_map_fd(r1, map))) as prog:
        prog.test_run(SMALLEST_PACKET)


CONTEXTS = (in_softirq, in_a_tracer, in_a_system_call, in_a_test_run)


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.__name__)
def test_a_programs_change_is_told_from_a_system_calls_in_any_context(
    new_map: NewMap, trace: Trace, context: Callable[[Map], None]
) -> None:
    """MTRACE-HOOK-024, MTRACE-RFC-005: also where the program runs on behalf of a bpf system call."""
    map = new_map()
    tracer = trace(map)
    context(map)
    (event,) = tracer.events()
    assert (event.source, event.number, event.error) == (Source.PROGRAM, 5, 0)
    assert kernel_function(event.caller) is None
    SystemCall().update(map, 5, 8)
    (event,) = tracer.events()
    assert event.source is Source.SYSTEM_CALL


@pytest.mark.vm(cpus=2)
def test_the_cpu_is_the_one_that_made_the_change(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-RFC-004: the tracer runs there, before the caller goes on."""
    map = new_map()
    tracer: Tracer = trace(map)
    with load(update(ld_map_fd(r1, map))) as prog:
        for cpu in (1, 0):
            run_on(prog, cpu)
            (event,) = tracer.events()
            assert event.cpu == cpu


def run_on(prog: Prog, cpu: int) -> None:
    """Run the program in this thread, bound to a CPU."""
    os.sched_setaffinity(0, {cpu})
    wait_until(lambda: cpu_of_this_thread() == cpu, timeout=1, what=f"this thread to be on CPU {cpu}")
    prog.test_run(SMALLEST_PACKET)


def cpu_of_this_thread() -> int:
    """The CPU that the calling thread is on (field 39 of /proc/thread-self/stat)."""
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])
