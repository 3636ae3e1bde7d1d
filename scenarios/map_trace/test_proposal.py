# SPDX-License-Identifier: MIT
"""The map tracing that was proposed in 2021: through its attach type where a kernel has it, by fexit everywhere."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from harness.guest.bpf import btf, map_trace_rfc, tracing, uapi
from harness.guest.bpf.asm import (
    add,
    asm,
    call,
    exit_,
    ld_map_fd,
    ldxdw,
    mov,
    mul,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r10,
    stdw,
    stw,
    stxdw,
)
from harness.guest.bpf.attrs import LinkCreateIter
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Operation, Source, Tracer, attach_type
from harness.guest.bpf.map_trace_rfc import ATTACH_TYPE_HOOKS, attach_to_map, works_as_attach_type
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.map_trace.actors import ACTORS, Program
from scenarios.map_trace.conftest import Change, Trace, changes

NewMap = Callable[..., Map]
NOTHING = asm(mov(r0, 0), exit_())
UPDATE, DELETE = ATTACH_TYPE_HOOKS


@pytest.fixture(params=["fexit", "attach type"])
def kind(request: pytest.FixtureRequest) -> int:
    """Each way of tracing that this kernel has."""
    number = uapi.BPF_TRACE_FEXIT if request.param == "fexit" else attach_type()
    if number is None:
        pytest.skip("this kernel lacks the attach type BPF_TRACE_MAP")
    return number


@pytest.fixture
def proposed() -> int:
    """The number of the proposal's attach type."""
    number = attach_type()
    if number is None:
        pytest.skip("this kernel lacks the attach type BPF_TRACE_MAP")
    return number


def test_a_tracer_runs_behind_a_programs_update(new_map: NewMap, trace: Trace, kind: int) -> None:
    """MTRACE-TEST-001, MTRACE-RFC-001, -003, -004: with map, key, value and flags."""
    map = new_map()
    tracer = trace(map, [Operation.UPDATE], kind=kind)
    assert Program().update(map, 5, 0xBEEF) == 0
    assert Program().update(map, 5, 0xBEEF, uapi.BPF_NOEXIST) == errno.EEXIST
    events = tracer.events()
    assert [(event.number, event.value, event.flags) for event in events] == [
        (5, (0xBEEF).to_bytes(8, "little"), flags) for flags in (uapi.BPF_ANY, uapi.BPF_NOEXIST)
    ]
    assert {event.source for event in events} == {Source.PROGRAM}


def test_a_tracer_runs_behind_a_programs_delete(new_map: NewMap, trace: Trace, kind: int) -> None:
    """MTRACE-TEST-002, MTRACE-RFC-003, -004: in the deleter's own context, so that it can tell who that is."""
    map = new_map()
    map[5] = 1
    tracer = trace(map, [Operation.DELETE], kind=kind)
    assert Program().delete(map, 5) == 0
    assert Program().delete(map, 5) == errno.ENOENT
    events = tracer.events()
    assert [event.number for event in events] == [5, 5]
    assert {event.thread for event in events} == {threading.get_native_id()}
    assert {event.value for event in events} == {None}


def test_who_is_traced_differs(new_map: NewMap, trace: Trace, kind: int) -> None:
    """MTRACE-RFC-005, MTRACE-HOOK-020: system calls by fexit only, stores through a pointer by neither."""
    map = new_map()
    tracer = trace(map, kind=kind)
    assert ACTORS["system call"].update(map, 1, 1) == 0
    by_fexit = kind == uapi.BPF_TRACE_FEXIT
    assert tracer.seen == (1 if by_fexit else 0)
    assert Program().store(map, 1, 2) == 0
    assert map[1] == 2
    assert tracer.seen == (1 if by_fexit else 0)


def test_a_function_of_the_change_is_computed_into_another_map(new_map: NewMap) -> None:
    """MTRACE-TEST-001, MTRACE-HOOK-022, -023: the RFC's own example of a tracer, behind a program's update."""
    traced, results = new_map(), new_map(uapi.BPF_MAP_TYPE_ARRAY, 1)
    function = "htab_map_update_elem"
    code = asm(
        mov(r6, r1),
        stdw(r10, -8, 0),
        ldxdw(r3, r6, tracing.argument_offset(function, "value")),
        mov(r1, r10),
        add(r1, -8),
        mov(r2, 8),
        call(uapi.BPF_FUNC_probe_read_kernel),
        ldxdw(r1, r10, -8),
        mul(r1, 3),
        add(r1, 1),
        stxdw(r10, -8, r1),
        stw(r10, -16, 0),
        ld_map_fd(r1, results),
        mov(r2, r10),
        add(r2, -16),
        mov(r3, r10),
        add(r3, -8),
        mov(r4, 0),
        call(uapi.BPF_FUNC_map_update_elem),
        mov(r0, 0),
        exit_(),
    )
    with tracing.load_tracing(function, code) as prog, tracing.attach_tracing(prog):
        assert Program().update(traced, 5, 7) == 0
    assert results[0] == 22


def test_an_untraced_map_hangs_no_tracer(new_map: NewMap, trace: Trace, kind: int) -> None:
    """MTRACE-RFC-011: tracers belong to a map; closing the last one leaves it as it was."""
    traced, other = new_map(), new_map()
    with Tracer.attach(traced, kind=kind) as tracer:
        assert Program().update(other, 1, 1) == 0
        assert Program().update(traced, 1, 1) == 0
        assert [change.key for change in changes(tracer)] == [1]
        assert tracer.seen == 1
    assert Program().update(traced, 1, 2) == 0
    assert traced[1] == 2


def test_no_number_of_this_kernel_passes_for_the_proposals() -> None:
    """MTRACE-RFC-001: the probe asks for the name and tries it; other attach types refuse the same program."""
    known = btf.vmlinux().enum("bpf_attach_type")
    if "BPF_TRACE_MAP" in known:
        assert (attach_type() is None) is not works_as_attach_type(known["BPF_TRACE_MAP"])
        known = {name: number for name, number in known.items() if name != "BPF_TRACE_MAP"}
    else:
        assert attach_type() is None
    assert [name for name, number in known.items() if works_as_attach_type(number)] == []


def test_the_probe_is_not_satisfied_with_a_function_of_the_right_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MTRACE-RFC-001: where a program would load, it must attach to a map as well."""
    hook = SimpleNamespace(function="bpf_fentry_test1", operation=Operation.UPDATE)
    monkeypatch.setattr(map_trace_rfc, "ATTACH_TYPE_HOOKS", (hook,))
    for number in (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT):
        with Map.create(uapi.BPF_MAP_TYPE_HASH, 4, 8, 1) as map:
            prog = tracing.load_tracing("bpf_fentry_test1", NOTHING, attach_type=number)
            with prog, refused(errno.EINVAL):
                attach_to_map(prog, map, Operation.UPDATE, number)
        assert not works_as_attach_type(number)


def test_a_tracer_without_the_attach_type_is_refused_by_its_name(new_map: NewMap) -> None:
    """MTRACE-RFC-002: there is no function to make such a program for."""
    if attach_type() is not None:
        pytest.skip("this kernel has the attach type BPF_TRACE_MAP")
    for number in btf.vmlinux().enum("bpf_attach_type").values():
        if number in (uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT):
            continue
        with pytest.raises((LookupError, BpfError)):
            Tracer.attach(new_map(), kind=number)


# What follows needs a kernel that has the proposal; it is written from its text.


def load_proposed(number: int, hook: object = UPDATE) -> Prog:
    """A program of the proposal's attach type that does nothing."""
    assert hook in ATTACH_TYPE_HOOKS
    function = (UPDATE if hook is UPDATE else DELETE).function
    return tracing.load_tracing(function, NOTHING, attach_type=number)


@pytest.mark.parametrize(
    "map_type",
    [
        uapi.BPF_MAP_TYPE_HASH,
        uapi.BPF_MAP_TYPE_PERCPU_HASH,
        uapi.BPF_MAP_TYPE_LRU_HASH,
        uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH,
        uapi.BPF_MAP_TYPE_ARRAY,
        uapi.BPF_MAP_TYPE_PERCPU_ARRAY,
    ],
)
def test_the_proposals_types_of_maps(proposed: int, new_map: NewMap, trace: Trace, map_type: int) -> None:
    """MTRACE-RFC-008."""
    map = new_map(map_type)
    tracer = trace(map, kind=proposed)
    assert Program().update(map, 1, 2) == 0
    assert changes(tracer) == [Change("update", 1, 2)]


def test_the_proposals_refusals(proposed: int, new_map: NewMap) -> None:
    """MTRACE-RFC-008, -009: types of maps, flags, descriptors, trace types."""
    map = new_map()
    with load_proposed(proposed) as prog, load_proposed(proposed, DELETE) as other:
        trie = new_map(uapi.BPF_MAP_TYPE_LPM_TRIE, key_size=8, flags=uapi.BPF_F_NO_PREALLOC)
        with refused(errno.EINVAL):
            attach_to_map(prog, trie, Operation.UPDATE, proposed)
        with refused(errno.EINVAL):
            attach_to_map(other, map, Operation.UPDATE, proposed)
        for error, fields, info in (
            (errno.EINVAL, {"flags": 1}, (map.fd, 0)),
            (errno.EINVAL, {"target_fd": map.fd}, (map.fd, 0)),
            (errno.EBADF, {}, (0xFFFF, 0)),
            (errno.ENOENT, {}, (map.fd, 2)),
        ):
            attr = LinkCreateIter(prog_fd=prog.fd, attach_type=proposed, **fields)
            attr.point("iter_info", map_trace_rfc.MapTraceInfo(map_fd=info[0], trace_type=info[1]))
            attr.iter_info_len = 8
            with refused(error):
                Link.create(attr)


def test_the_proposal_refuses_a_tracer_that_uses_its_map(proposed: int, new_map: NewMap) -> None:
    """MTRACE-RFC-010, MTRACE-TEST-003: where fexit skips the inner run."""
    map = new_map()
    code = asm(
        stw(r10, -4, 1),
        ld_map_fd(r1, map),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_delete_elem),
        mov(r0, 0),
        exit_(),
    )
    with (
        tracing.load_tracing(UPDATE.function, code, attach_type=proposed) as prog,
        refused(errno.EINVAL),
    ):
        attach_to_map(prog, map, Operation.UPDATE, proposed)


def test_the_third_versions_functions_run_before_the_change(new_map: NewMap, trace: Trace) -> None:
    """MTRACE-RFC-012: two empty functions, for fentry; they see a change that then fails."""
    names = ("bpf_map_trace_update_elem", "bpf_map_trace_delete_elem")
    if not all(btf.vmlinux().has_func(name) for name in names):
        pytest.skip(f"this kernel lacks {names[0]}")
    from harness.guest.bpf.map_trace_hooks import Hook

    map = new_map(max_entries=1)
    hooks = [Hook(Operation.UPDATE, names[0], value="value"), Hook(Operation.DELETE, names[1])]
    tracer = trace(map, hooks=hooks, kind=uapi.BPF_TRACE_FENTRY)
    assert Program().update(map, 1, 2) == 0
    assert Program().update(map, 1, 3, uapi.BPF_NOEXIST) == errno.EEXIST
    assert [event.number for event in tracer.events()] == [1, 1]
