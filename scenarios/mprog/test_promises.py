# SPDX-License-Identifier: MIT
"""What the interface of ordered lists promises, by its names and its documentation, and does not keep."""

from __future__ import annotations

import errno
from types import ModuleType

import pytest

from harness.guest.bpf import netkit, tcx
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE
from harness.guest.net import Device, VethPair
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, NetkitPair, ids

FULL = 63
UNKNOWN_FLAG = 1 << 20
UNKNOWN_VERDICT = 99


@pytest.mark.known_issue("MPROG-QUIRK-002", reason="every empty list is shown with revision 1")
def test_the_revision_of_an_emptied_netkit_list_can_be_expected(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls
) -> None:
    """MPROG-QUIRK-002, MPROG-NETKIT-004: what a query says is what the next attach may go by."""
    pair, prog = netkit_pair(), sched_cls()
    netkit.attach(pair.a, prog)
    netkit.detach(pair.a, prog)
    netkit.attach(pair.a, prog, expected_revision=netkit.query(pair.a).revision)


@pytest.mark.known_issue("MPROG-QUIRK-007", reason="an entry forgets its revision when it is emptied")
def test_who_read_an_entry_notices_that_it_became_another(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-QUIRK-007, MPROG-REV-006: the expected revision is there to notice just that."""
    read, other, late = (sched_cls() for _ in range(3))
    tcx.attach(dev, read)
    seen = tcx.query(dev)
    tcx.detach(dev, read)
    tcx.attach(dev, other)
    assert tcx.query(dev).prog_ids != seen.prog_ids
    with refused(errno.ESTALE):
        tcx.attach(dev, late, expected_revision=seen.revision)


@pytest.mark.known_issue("MPROG-QUIRK-003", reason="the place behind the last of 63 counts as too far")
@pytest.mark.parametrize("flags", [0, BPF_F_AFTER], ids=["none", "after"])
def test_the_last_of_a_full_list_can_be_taken_off(flags: int, dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-QUIRK-003, MPROG-DETACH-020, -022, -026: without naming it, as from any other list."""
    progs = [sched_cls() for _ in range(FULL)]
    for prog in progs:
        tcx.attach(dev, prog)
    tcx.detach(dev, flags=flags)
    assert tcx.query(dev).prog_ids == ids(*progs[:-1])


@pytest.mark.known_issue("MPROG-QUIRK-005", reason="the neighbour that is not there is the anchor itself")
@pytest.mark.parametrize(("flags", "anchor"), [(BPF_F_BEFORE, 0), (BPF_F_AFTER, -1)], ids=["before", "after"])
def test_an_anchor_without_a_neighbour_stays(
    flags: int, anchor: int, dev: Device, sched_cls: LoadSchedCls
) -> None:
    """MPROG-QUIRK-005, MPROG-DETACH-023, -024: nothing is before the first, nothing behind the last."""
    progs = [sched_cls() for _ in range(3)]
    for prog in progs:
        tcx.attach(dev, prog)
    with refused(errno.ENOENT, errno.ERANGE):
        tcx.detach(dev, flags=flags, relative=progs[anchor])
    assert tcx.query(dev).prog_ids == ids(*progs)


@pytest.mark.known_issue("MPROG-QUIRK-004", reason="the flags of link creation are not checked")
@pytest.mark.parametrize("family", [tcx, netkit], ids=["tcx", "netkit"])
def test_a_link_takes_no_unknown_flag(
    family: ModuleType, netkit_pair: NetkitPair, sched_cls: LoadSchedCls
) -> None:
    """MPROG-QUIRK-004, MPROG-LINK-006: or none can ever be given a meaning."""
    pair = netkit_pair()
    with refused(errno.EINVAL):
        family.link(pair.a, sched_cls(), flags=BPF_F_BEFORE | UNKNOWN_FLAG).close()


@pytest.mark.known_issue("MPROG-QUIRK-006", reason="the list ends before the verdict is mapped")
def test_an_unknown_verdict_means_next(veth: VethPair, journal: Journal) -> None:
    """MPROG-QUIRK-006, MPROG-RUN-006: include/uapi/linux/bpf.h says so of enum tcx_action_base."""
    tcx.attach(veth.b, journal.prog(1, UNKNOWN_VERDICT))
    tcx.attach(veth.b, journal.prog(2))
    assert send_frames(veth, 1) == 1
    assert journal.read() == [1, 2]
