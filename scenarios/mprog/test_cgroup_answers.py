# SPDX-License-Identifier: MIT
"""What a cgroup's lists answer at their edges."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, cgroup, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import ProgQuery
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import bpf
from scenarios.mprog.conftest import LoadCgroupSkb, ids

FULL = 64
SENTINEL = 0x5EED5EED5EED5EED
SIZE_WITHOUT_REVISION = 40  # of the query's attribute in include/uapi/linux/bpf.h up to 6.5


@pytest.mark.known_issue("MPROG-QUIRK-008", reason="a replacement counts as one more")
def test_a_full_list_takes_a_replacement(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-QUIRK-008, MPROG-CGROUP-010: it stays as long as it was."""
    progs = [cgroup_skb() for _ in range(FULL)]
    for prog in progs:
        cgroup.attach(group, prog, flags=uapi.BPF_F_ALLOW_MULTI)
    other = cgroup_skb()
    cgroup.attach(group, other, flags=uapi.BPF_F_ALLOW_MULTI, replace=progs[0])
    assert cgroup.query(group).prog_ids == ids(other, *progs[1:])


def test_a_query_writes_nothing_behind_a_short_attribute(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-045: programs older than the revision do not expect eight more bytes."""
    with cgroup.link(group, cgroup_skb()):
        attr = ProgQuery(
            target_fd=group.fd, attach_type=uapi.BPF_CGROUP_INET_EGRESS, count=1, revision=SENTINEL
        )
        bpf(uapi.BPF_PROG_QUERY, attr, SIZE_WITHOUT_REVISION)
    assert (attr.count, attr.revision) == (1, SENTINEL)


@pytest.fixture
def at_two_hooks(group: Cgroup) -> Iterator[None]:
    """Two LSM programs of the cgroup, each alone at its hook."""
    with ExitStack() as stack:
        for hook in ("bpf_lsm_socket_bind", "bpf_lsm_socket_create"):
            prog = Prog.load(
                asm(mov(r0, 1), exit_()),
                uapi.BPF_PROG_TYPE_LSM,
                expected_attach_type=uapi.BPF_LSM_CGROUP,
                attach_btf_id=btf.vmlinux().func(hook),
            )
            stack.enter_context(prog)
            stack.enter_context(cgroup.link(group, prog, attach_type=uapi.BPF_LSM_CGROUP))
        yield


@pytest.mark.requires("kfunc:bpf_lsm_socket_bind")
@pytest.mark.usefixtures("at_two_hooks")
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(0, id="attached"),
        pytest.param(
            uapi.BPF_F_QUERY_EFFECTIVE,
            id="effective",
            marks=pytest.mark.known_issue("MPROG-QUIRK-013", reason="the last hook's answer hides ENOSPC"),
        ),
    ],
)
def test_an_array_too_short_for_all_hooks_is_reported(flags: int, group: Cgroup) -> None:
    """MPROG-QUIRK-013, MPROG-CGROUP-044: LSM programs of all hooks come in one answer."""
    arrays = ("prog_ids",) if flags else ("prog_ids", "prog_attach_flags")
    answer = cgroup.query(
        group,
        attach_type=uapi.BPF_LSM_CGROUP,
        flags=flags,
        count=1,
        arrays=arrays,
        tolerate=(errno.ENOSPC,),
    )
    assert (answer.errno, answer.count) == (errno.ENOSPC, 2)
