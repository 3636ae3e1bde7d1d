# SPDX-License-Identifier: MIT
"""Hooks on a program's own functions: the way to see changes that are made through a pointer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import cgroup, uapi
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.map_trace.conftest import Trace
from scenarios.map_trace.programs import Programs, Publisher

FENTRY, FEXIT = uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT
KINDS = {"leave": FEXIT, "replace": 0}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def publisher(stack: ExitStack) -> Publisher:
    """The traced program."""
    return Publisher(stack)


Watch = Callable[..., Programs]


@pytest.fixture
def watch(stack: ExitStack) -> Watch:
    """Loads programs of watcher.bpf.c: `watch(leave=(prog, "changed"))`."""
    return lambda **targets: Programs(stack, "watcher.bpf.o", targets)


def test_a_change_through_a_pointer_is_seen_where_the_program_tells_it(
    publisher: Publisher, watch: Watch, trace: Trace
) -> None:
    """MTRACE-SEED-002, MTRACE-SCN-006, MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c target_yes_callees."""
    tracer = trace(publisher.state)
    watcher = watch(enter=(publisher.main, "changed"), leave=(publisher.main, "changed"))
    with Link.tracing(watcher.progs["enter"], FENTRY), Link.tracing(watcher.progs["leave"], FEXIT):
        assert publisher.change(20) == 1
        assert publisher.change(21) == 1
    publisher.change(22)
    assert tracer.seen == 0
    publisher.state[3] = 23
    assert tracer.seen == 1
    assert [watcher[name] for name in ("entered", "left", "last_key", "last_value", "last_answer")] == [
        2,
        2,
        3,
        21,
        1,
    ]


def test_a_main_program_is_traced_as_a_function_is(publisher: Publisher, watch: Watch) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c target_no_callees: with its verdict."""
    watcher = watch(leave_main=(publisher.main, "publisher"))
    with Link.tracing(watcher.progs["leave_main"], FEXIT):
        publisher.change(1)
    assert (watcher["left"], watcher["last_answer"]) == (1, 5)


def test_a_cgroups_program_can_be_traced(publisher: Publisher, watch: Watch) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c fentry_to_cgroup_bpf: each connect in the cgroup is seen."""
    permit = publisher.progs["permit"]
    watcher = watch(leave_main=(permit, "permit"))
    with (
        Cgroup.create("traced") as group,
        cgroup.link(group, permit, attach_type=uapi.BPF_CGROUP_INET4_CONNECT),
        group.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        with Link.tracing(watcher.progs["leave_main"], FEXIT):
            udp.connect(("127.0.0.1", 9))
        udp.connect(("127.0.0.1", 9))
    assert (watcher["left"], watcher["last_answer"]) == (1, 1)


def test_a_programs_function_is_replaced_and_comes_back(publisher: Publisher, watch: Watch) -> None:
    """MTRACE-SEED-002, MTRACE-SCN-006, upstream prog_tests/fexit_bpf2bpf.c func_replace."""
    watcher = watch(replace=(publisher.main, "changed"))
    with Link.tracing(watcher.progs["replace"], 0):
        assert publisher.change(8) == 40
        assert watcher["last_key"] == 3
    assert publisher.change(9) == 1


def test_one_replacement_serves_several_programs(
    stack: ExitStack, publisher: Publisher, watch: Watch
) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_replace_multi."""
    second = Publisher(stack)
    replace = watch(replace=(publisher.main, "changed")).progs["replace"]
    function = replace.info().attach_btf_id
    with (
        Link.tracing(replace, 0),
        Link.tracing(replace, 0, target_fd=second.main.fd, target_btf_id=function),
    ):
        assert (publisher.change(1), second.change(1)) == (40, 40)
    assert (publisher.change(2), second.change(2)) == (1, 1)


def test_a_replacement_is_traced_but_its_result_is_not_modified(publisher: Publisher, watch: Watch) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c fmod_ret_freplace: while it stands in its target's place."""
    replacement = watch(replace=(publisher.main, "changed")).progs["replace"]
    target = (replacement, "replace")
    watcher = watch(enter=target, leave=target)
    with Link.tracing(replacement, 0):
        with refused(errno.EINVAL, log="can't modify return codes of BPF programs"):
            watch(modify=target)
        with Link.tracing(watcher.progs["enter"], FENTRY), Link.tracing(watcher.progs["leave"], FEXIT):
            assert publisher.change(8) == 40
        assert publisher.change(9) == 40
    names = ("entered", "left", "last_key", "last_value", "last_answer")
    assert [watcher[name] for name in names] == [1, 1, 3, 8, 40]


def test_a_function_is_either_replaced_or_traced(publisher: Publisher, watch: Watch) -> None:
    """MTRACE-HOOK-026: EBUSY for the one that comes second."""
    target = (publisher.main, "changed")
    for first, second in (("leave", "replace"), ("replace", "leave")):
        programs = watch(leave=target, replace=target).progs
        with Link.tracing(programs[first], KINDS[first]), refused(errno.EBUSY):
            Link.tracing(programs[second], KINDS[second])


REFUSALS = {
    "a static function is not replaced": (
        "replace_hidden",
        "hidden",
        "is not a global function|(?i:cannot replace static functions)",
    ),
    "another signature is not replaced": ("replace", "publisher", "."),
    "a program's result is not modified": ("modify", "changed", "can't modify return codes of BPF programs"),
    "a function that is not there": ("replace", "unheard_of", "."),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_hook_is_refused(publisher: Publisher, watch: Watch, case: str) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_replace_verify, func_replace_unreliable."""
    program, function, gist = REFUSALS[case]
    with refused(errno.EINVAL, errno.ENOENT, errno.ESRCH, log=gist):
        watch(**{program: (publisher.main, function)})


def test_a_replacement_keeps_to_the_results_that_its_target_may_give(
    publisher: Publisher, watch: Watch
) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_replace_return_code."""
    with refused(errno.EINVAL, log=r"R0 has"):
        watch(refuse_loudly=(publisher.progs["permit"], "permit"))


def test_a_tracer_is_traced_once_and_no_deeper(stack: ExitStack, watch: Watch) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/recursive_attach.c recursive_fentry: from 6.8 on, one level."""
    watched = watch(watched=None).progs["watched"]
    try:
        watching = watch(watch_watched=(watched, "watched"))
    except BpfError as error:
        assert "Cannot recursively attach" in error.log, error
        pytest.skip("this kernel does not trace tracing programs")
    with refused(errno.EINVAL, log="Cannot nest tracing program attach|Cannot recursively attach"):
        watch(watch_watched=(watching.progs["watch_watched"], "watch_watched"))
    with (
        Map.create(uapi.BPF_MAP_TYPE_HASH, 4, 8, 4) as map,
        Link.tracing(watched, FEXIT),
        Link.tracing(watching.progs["watch_watched"], FENTRY),
    ):
        map[1] = 1
        assert watching["entered"] == 1
