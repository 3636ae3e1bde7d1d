# SPDX-License-Identifier: MIT
"""A program that was verified for one hook of a cgroup reaches no other hook by way of a link update."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import cgroup, uapi
from harness.guest.bpf.asm import Insn, asm, exit_, ldxw, mov, r0, r1
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.netns import NetNamespace

MSG_SRC_IP4 = 40  # struct bpf_sock_addr, include/uapi/linux/bpf.h

LoadFor = Callable[..., Prog]


@pytest.fixture
def load() -> Iterator[LoadFor]:
    """A factory of programs of a type for a hook: the instructions, if any, then `allow`."""
    with ExitStack() as stack:

        def make(kind: int, hook: int, *insns: Insn) -> Prog:
            code = asm(*insns, mov(r0, 1), exit_())
            return stack.enter_context(Prog.load(code, kind, expected_attach_type=hook))

        yield make


@pytest.mark.known_issue("CGROUP-LINK-ATTACH-TYPE", reason="a link update compares the program types only")
@pytest.mark.parametrize(
    ("kind", "hook", "other"),
    [
        pytest.param(
            uapi.BPF_PROG_TYPE_CGROUP_SOCK,
            uapi.BPF_CGROUP_INET_SOCK_CREATE,
            uapi.BPF_CGROUP_INET4_POST_BIND,
            id="sockets",
        ),
        pytest.param(
            uapi.BPF_PROG_TYPE_CGROUP_SOCKOPT,
            uapi.BPF_CGROUP_GETSOCKOPT,
            uapi.BPF_CGROUP_SETSOCKOPT,
            id="socket options",
        ),
    ],
)
def test_a_link_takes_no_program_of_another_hook(
    kind: int, hook: int, other: int, group: Cgroup, load: LoadFor
) -> None:
    """MPROG-CGROUP-039, -002: as it takes none when it is made."""
    fitting, stranger = load(kind, hook), load(kind, other)
    with refused(errno.EINVAL):
        cgroup.link(group, stranger, attach_type=hook)
    with cgroup.link(group, fitting, attach_type=hook) as link:
        with refused(errno.EINVAL):
            link.update(stranger)
        assert link.info().prog_id == fitting.id


@pytest.mark.known_issue(
    "CGROUP-LINK-ATTACH-TYPE",
    reason="the program reads what this hook does not have",
    splat="run_filter_sock_addr",
)
@pytest.mark.usefixtures("panic_on_oops")
def test_connect_does_not_run_a_program_for_sendmsg(group: Cgroup, load: LoadFor) -> None:
    """MPROG-CGROUP-039: the source address of a message is nowhere when there is no message."""
    kind = uapi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR
    fitting = load(kind, uapi.BPF_CGROUP_INET4_CONNECT)
    stranger = load(kind, uapi.BPF_CGROUP_UDP4_SENDMSG, ldxw(r1, r1, MSG_SRC_IP4))
    with (
        cgroup.link(group, fitting, attach_type=uapi.BPF_CGROUP_INET4_CONNECT) as link,
        NetNamespace.create(loopback=True) as namespace,
        namespace.entered(),
        group.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        with contextlib.suppress(BpfError):
            link.update(stranger)
        sock.connect(("127.0.0.1", 9))
        assert sock.getpeername() == ("127.0.0.1", 9)
