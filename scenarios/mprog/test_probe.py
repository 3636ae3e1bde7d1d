# SPDX-License-Identifier: MIT
"""What the probes say agrees with what else tells whether the kernel has a facility; on those that lack it, too."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from harness.guest.bpf import cgroup, netkit, tcx, uapi
from harness.guest.bpf.attrs import ProgQuery
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import BpfError, bpf, refused
from harness.guest.bpf.uapi import (
    BPF_CGROUP_INET_EGRESS,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_PREORDER,
    BPF_F_QUERY_EFFECTIVE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import new_netkit
from scenarios.mprog.conftest import LoadCgroupSkb, ids

LOOPBACK = 1
UNTOUCHED = 0x5EED5EED5EED


@pytest.fixture(autouse=True)
def _needs_tcx() -> None:
    """Not here."""


def query_errno(family: Any, attach_type: int) -> int:
    try:
        found = family.query(LOOPBACK, attach_type=attach_type)
    except BpfError as error:
        return error.errno or 0
    assert (found.count, found.revision) == (0, 1)
    return 0


def test_tcx_answers_a_query_where_it_is_compiled_in() -> None:
    """MPROG-PROBE-001."""
    there = has("struct:tcx_entry")
    assert has("tcx") is there
    for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
        assert query_errno(tcx, attach_type) == (0 if there else errno.EINVAL)


def test_netkit_finds_loopback_no_device_of_its_own_where_it_can_make_one(netns: NetNamespace) -> None:
    """MPROG-PROBE-002, MPROG-NETKIT-001."""
    try:
        netns.rtnl.request(new_netkit("nk", 103, "nk_peer", 104, netns.fd, policy=uapi.NETKIT_PASS))
        there = True
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        there = False
    assert has("netkit") is there
    for attach_type in (BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER):
        assert query_errno(netkit, attach_type) == (errno.ENXIO if there else errno.EINVAL)


def test_cgroups_with_ordered_lists_report_a_revision(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-PROBE-003: they take positions, too; the others leave the field alone or don't know it (before 6.6)."""
    attr = ProgQuery(target_fd=group.fd, attach_type=BPF_CGROUP_INET_EGRESS, revision=UNTOUCHED)
    try:
        bpf(uapi.BPF_PROG_QUERY, attr)
    except BpfError as error:
        assert error.errno == errno.EINVAL
    first, second = cgroup_skb(), cgroup_skb()
    cgroup.attach(group, first, flags=BPF_F_ALLOW_MULTI)
    if has("cgroup_mprog"):
        assert attr.revision == 1
        cgroup.attach(group, second, flags=BPF_F_ALLOW_MULTI | BPF_F_BEFORE)
        assert cgroup.query(group).prog_ids == ids(second, first)
        assert cgroup.query(group).revision == 3
    else:
        assert attr.revision == UNTOUCHED
        with refused(errno.EINVAL):
            cgroup.attach(group, second, flags=BPF_F_ALLOW_MULTI | BPF_F_BEFORE)


def test_preorder_is_taken_where_it_is_obeyed(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-PROBE-005, MPROG-CGROUP-047."""
    plain, early = cgroup_skb(), cgroup_skb()
    cgroup.attach(group, plain, flags=BPF_F_ALLOW_MULTI)
    if has("cgroup_preorder"):
        cgroup.attach(group, early, flags=BPF_F_ALLOW_MULTI | BPF_F_PREORDER)
        assert cgroup.query(group).prog_ids == ids(plain, early)
        assert cgroup.query(group, flags=BPF_F_QUERY_EFFECTIVE).prog_ids == ids(early, plain)
    else:
        with refused(errno.EINVAL):
            cgroup.attach(group, early, flags=BPF_F_ALLOW_MULTI | BPF_F_PREORDER)
