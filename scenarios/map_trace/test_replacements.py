# SPDX-License-Identifier: MIT
"""A replacement of a program's function may do what programs of its target's type may."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.map_trace.actors import SMALLEST_PACKET
from scenarios.map_trace.programs import Programs, Publisher

Replace = Callable[..., Programs]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def publisher(stack: ExitStack) -> Publisher:
    """The program whose functions are replaced."""
    return Publisher(stack)


@pytest.fixture
def replace(stack: ExitStack) -> Replace:
    """Loads programs of replacer.bpf.c: `replace(replace_main=(prog, "publisher"))`."""
    return lambda **targets: Programs(stack, "replacer.bpf.o", targets)


def target(stack: ExitStack, program: str) -> Prog:
    """Another program of publisher.bpf.c."""
    return Programs(stack, "publisher.bpf.o", {program: None}).progs[program]


def test_a_classifiers_replacement_may_take_locks(publisher: Publisher, replace: Replace) -> None:
    """MTRACE-HOOK-026: in an element of a map."""
    replacer = replace(replace_locking=(publisher.main, "changed"))
    with Link.tracing(replacer.progs["replace_locking"], 0):
        assert publisher.change(7) == 41
    with replacer.object.map("guarded") as guarded:
        assert struct.unpack("=II", guarded.lookup(3) or b"") == (0, 7)


@pytest.mark.known_issue(
    "REPLACEMENT-LOCKS-IN-TRACER",
    reason="the map is judged before the target is known",
    spared=("6.1.192", "7.3-rc7"),
)
def test_a_kprobes_replacement_may_not_take_locks(stack: ExitStack, replace: Replace) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_map_prog_compatibility."""
    probe = target(stack, "probe")
    with refused(errno.EINVAL, log="tracing progs cannot use bpf_spin_lock yet"):
        replace(replace_locking=(probe, "changed"))


def test_a_replacement_changes_a_map_of_sockets_where_its_target_may(
    stack: ExitStack, publisher: Publisher, replace: Replace
) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_sockmap_update: programs that look sockets up may on
    all kernels, classifiers up to 7.2 (kernel/bpf/verifier.c:may_update_sockmap).
    """
    replace(replace_in_sockets=(target(stack, "choose"), "changed"))
    replacement = {"replace_in_sockets": (publisher.main, "changed")}
    gist = "cannot update sockmap in this context"
    try:
        replace(classify=None)
    except BpfError as error:
        assert (error.errno, gist in error.log) == (errno.EINVAL, True), error
        with refused(errno.EINVAL, log=gist):
            replace(**replacement)
        return
    replacer = replace(**replacement)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        replacer.object.map("sockets") as sockets,
        Link.tracing(replacer.progs["replace_in_sockets"], 0),
    ):
        udp.bind(("", 0))
        assert publisher.change(1) == 1
        sockets.update(3, udp.fileno())
        assert publisher.change(1) == 0
        sockets.delete(0)  # where the program has put it


def test_a_replacement_hands_its_context_on(publisher: Publisher, replace: Replace) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_replace_global_func."""
    replacer = replace(replace_main=(publisher.main, "publisher"))
    with Link.tracing(replacer.progs["replace_main"], 0):
        for size in (14, 60):
            assert publisher.main.test_run(bytes(size)).retval == size
    publisher.change(1)


def test_a_replacement_does_not_claim_a_map_for_its_own_type(stack: ExitStack, replace: Replace) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c func_replace_progmap: the map of CPUs that the
    replacement of an XDP program uses still takes XDP programs, and only those for it.
    """
    replacer = replace(redirect=(target(stack, "pass"), "pass"), drop=None)
    with replacer.object.map("cpus") as cpus:
        cpus.update(0, struct.pack("=II", 1, replacer.progs["drop"].fd))
        size, program = struct.unpack("=II", cpus.lookup(0) or b"")
        assert (size, program) == (1, replacer.progs["drop"].info().id)
        # kernel/bpf/cpumap.c:__cpu_map_entry_alloc forgets the errno
        with refused(errno.EINVAL, errno.ENOMEM):
            cpus.update(0, struct.pack("=II", 1, target(stack, "pass").fd))


def test_what_returns_nothing_replaces_what_returns_nothing(
    stack: ExitStack, publisher: Publisher, replace: Replace
) -> None:
    """MTRACE-HOOK-026, upstream prog_tests/fexit_bpf2bpf.c freplace_void, freplace_int_with_void."""
    other = "Return type .* doesn't match"
    with refused(errno.EINVAL, log=other):
        replace(replace_silently=(publisher.main, "changed"))
    try:
        tellers = Programs(stack, "publisher.bpf.o", {"teller": None})
    except BpfError as error:
        assert (error.errno, "doesn't return scalar" in error.log) == (errno.EINVAL, True), error
        pytest.skip("this kernel has no global functions without a result")
    teller = tellers.progs["teller"]
    tellers.object.set_number("key", 3)
    with refused(errno.EINVAL, log=other):
        replace(replace_with_answer=(teller, "told"))
    replacer = replace(replace_silently=(teller, "told"))
    assert teller.test_run(SMALLEST_PACKET).retval == 5
    assert replacer["last_key"] == 0
    with Link.tracing(replacer.progs["replace_silently"], 0):
        assert teller.test_run(SMALLEST_PACKET).retval == 5
    assert replacer["last_key"] == 3
