# SPDX-License-Identifier: MIT
"""netkit: the same lists at a device of their own, and where it differs from tcx."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import netkit
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_BEFORE,
    BPF_NETKIT_PEER,
    NETKIT_DROP,
    NETKIT_NEXT,
    NETKIT_PASS,
)
from harness.guest.net import VethPair
from harness.guest.rtnl import delete_link
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, NetkitPair, ids

UNKNOWN = 99


def test_both_ends_are_programmed_through_the_primary(netkit_pair: NetkitPair, journal: Journal) -> None:
    """MPROG-NETKIT-001, -002, -006: each end's programs run when a packet is sent into that end."""
    pair = netkit_pair()
    first, second, back = journal.prog(1), journal.prog(2), journal.prog(3)
    netkit.attach(pair.a, second)
    with (
        netkit.link(pair.a, first, flags=BPF_F_BEFORE, relative=second),
        netkit.link(pair.a, back, attach_type=BPF_NETKIT_PEER) as far,
    ):
        assert netkit.query(pair.a).prog_ids == ids(first, second)
        assert netkit.query(pair.a, attach_type=BPF_NETKIT_PEER).link_ids == [far.id]
        assert send_frames(pair, 1) == 1
        assert journal.read() == [1, 2]
        assert send_frames(pair.flipped, 1) == 1
        assert journal.read() == [3]
        with pair.ns_b.entered(), refused(errno.EACCES):
            netkit.query(pair.b)


def crosses(pair: VethPair) -> bool:
    """Whether a frame sent into the primary comes out of the peer; the sender of a dropped one gets ENOBUFS."""
    try:
        return send_frames(pair, 1) == 1
    except OSError as error:
        assert error.errno == errno.ENOBUFS
        return False


@pytest.mark.parametrize(
    ("verdict", "arrives"),
    [
        pytest.param(None, False, id="no program"),
        pytest.param(NETKIT_NEXT, True, id="NEXT"),
        pytest.param(NETKIT_PASS, True, id="PASS"),
        pytest.param(UNKNOWN, False, id="unknown"),
    ],
)
def test_a_blackhole_swallows_what_no_program_lets_pass(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, verdict: int | None, arrives: bool
) -> None:
    """MPROG-NETKIT-007, -008: with any program the policy no longer counts; unknown verdicts drop, unlike in tcx."""
    pair = netkit_pair(policy=NETKIT_DROP)
    if verdict is not None:
        netkit.attach(pair.a, sched_cls(verdict=verdict))
    assert crosses(pair) is arrives


def test_an_emptied_list_hides_its_revision(netkit_pair: NetkitPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-NETKIT-004, MPROG-QUIRK-002: it says 1, but goes on counting, and what it says is refused."""
    pair, a = netkit_pair(), sched_cls()
    netkit.attach(pair.a, a)
    netkit.detach(pair.a, a)
    assert netkit.query(pair.a).revision == 1
    with refused(errno.ESTALE):
        netkit.attach(pair.a, a, expected_revision=1)
    netkit.attach(pair.a, a, expected_revision=3)
    assert netkit.query(pair.a).revision == 4


def test_removing_an_end_empties_the_links_of_both(netkit_pair: NetkitPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-NETKIT-010."""
    pair, prog = netkit_pair(), sched_cls()
    with netkit.link(pair.a, prog) as near, netkit.link(pair.a, prog, attach_type=BPF_NETKIT_PEER) as far:
        pair.ns_b.rtnl.request(delete_link(pair.b.ifindex))
        for link in (near, far):
            assert link.info().ifindex == 0
            with refused(errno.ENOLINK):
                link.update(prog)
