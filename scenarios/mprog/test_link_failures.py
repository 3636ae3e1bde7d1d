# SPDX-License-Identifier: MIT
"""Link creation that fails for want of a descriptor or a file, before it reaches the list."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf import cgroup, netkit, tcx
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import QueryResult
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_CGROUP_INET_SOCK_CREATE, BPF_PROG_TYPE_CGROUP_SOCK
from harness.guest.descriptors import no_descriptor_left, no_file_left
from harness.guest.privilege import as_nobody
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NetkitPair, ids


@dataclass(frozen=True)
class Hook:
    """One list, and a program that fits it."""

    prog: Prog
    link: Callable[[], Link]
    query: Callable[[], QueryResult]


@pytest.fixture
def sock_create() -> Iterator[Prog]:
    """A cgroup program that may be attached without privilege, unlike one that sees packets."""
    code = asm(mov(r0, 1), exit_())
    with Prog.load(code, BPF_PROG_TYPE_CGROUP_SOCK, expected_attach_type=BPF_CGROUP_INET_SOCK_CREATE) as prog:
        yield prog


@pytest.fixture(params=["tcx", "netkit", "cgroup"])
def hook(
    request: pytest.FixtureRequest,
    netkit_pair: NetkitPair,
    group: Cgroup,
    sched_cls: LoadSchedCls,
    sock_create: Prog,
) -> Hook:
    if request.param == "cgroup":
        return Hook(
            sock_create,
            lambda: cgroup.link(group, sock_create, attach_type=BPF_CGROUP_INET_SOCK_CREATE),
            lambda: cgroup.query(group, attach_type=BPF_CGROUP_INET_SOCK_CREATE),
        )
    family = tcx if request.param == "tcx" else netkit
    ifindex, fitting = netkit_pair().a.ifindex, sched_cls()
    return Hook(fitting, lambda: family.link(ifindex, fitting), lambda: family.query(ifindex))


def works(hook: Hook, before: QueryResult) -> bool:
    """Whether the list is as it was before, and a link can be made and closed."""
    assert hook.query() == before
    with hook.link() as link:
        assert link.info().prog_id == hook.prog.id
        assert hook.query().prog_ids == ids(hook.prog)
    return hook.query().prog_ids == []


def test_no_descriptor_left_for_a_link(hook: Hook) -> None:
    """MPROG-LINK-009, MPROG-LAW-007, MPROG-REV-003."""
    before = hook.query()
    with no_descriptor_left(), refused(errno.EMFILE):
        hook.link()
    assert works(hook, before)


def test_no_file_left_for_a_link(hook: Hook) -> None:
    """MPROG-LINK-009, MPROG-LAW-007, MPROG-REV-003: the link had an id already. A program's descriptor is all that it
    takes to make one."""
    before = hook.query()
    with no_file_left(), refused(errno.ENFILE):
        as_nobody(hook.link)
    assert works(hook, before)
