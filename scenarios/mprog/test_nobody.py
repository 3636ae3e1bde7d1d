# SPDX-License-Identifier: MIT
"""A user without any capability, at a device in a namespace that he is in."""

from __future__ import annotations

import errno
from types import ModuleType

import pytest

from harness.guest.bpf import netkit, tcx
from harness.guest.bpf.syscall import refused
from harness.guest.privilege import as_nobody
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NetkitPair, ids


@pytest.mark.parametrize("family", [tcx, netkit], ids=["tcx", "netkit"])
def test_nobody_removes_no_program(
    family: ModuleType, netkit_pair: NetkitPair, sched_cls: LoadSchedCls
) -> None:
    """MPROG-QUIRK-010, MPROG-DETACH-004: not by a detach that names none, for which no descriptor is needed."""
    pair, prog = netkit_pair(), sched_cls()
    family.attach(pair.a, prog)
    with refused(errno.EPERM):
        as_nobody(family.detach, pair.a.ifindex)
    assert family.query(pair.a).prog_ids == ids(prog)
