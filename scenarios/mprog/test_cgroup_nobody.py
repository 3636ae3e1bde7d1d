# SPDX-License-Identifier: MIT
"""A user without any capability, who can read the cgroup's directory as everybody can."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.guest.bpf import cgroup
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE
from harness.guest.privilege import as_nobody
from scenarios.mprog.conftest import LoadCgroupSkb


def detach_unnamed(directory: Path) -> None:
    cgroup.detach(directory)


@pytest.mark.known_issue("MPROG-QUIRK-011", reason="the detach of no named program takes no privilege")
@pytest.mark.parametrize("mode", [0, BPF_F_ALLOW_OVERRIDE], ids=["single", "override"])
def test_nobody_removes_no_program(mode: int, group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-QUIRK-011, MPROG-CGROUP-031, -034: nor one that is alone in its list, and need not be named."""
    prog = cgroup_skb()
    cgroup.attach(group, prog, flags=mode)
    with refused(errno.EPERM):
        as_nobody(detach_unnamed, group.path)
    assert cgroup.query(group).prog_ids == [prog.id]
    cgroup.detach(group, prog)


def test_nobody_would_have_to_name_one_of_several(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-QUIRK-011, MPROG-CGROUP-033."""
    prog = cgroup_skb()
    cgroup.attach(group, prog, flags=BPF_F_ALLOW_MULTI)
    with refused(errno.EPERM, errno.EINVAL):
        as_nobody(detach_unnamed, group.path)
    assert cgroup.query(group).prog_ids == [prog.id]
    cgroup.detach(group, prog)
