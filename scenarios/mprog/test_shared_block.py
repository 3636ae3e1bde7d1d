# SPDX-License-Identifier: MIT
"""Qdiscs that replace each other, share blocks of filters or fail half-way must not let go of a list that is in use."""

from __future__ import annotations

import errno

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device, VethPair, veth_pair
from harness.guest.rtnl import new_ingress_side
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal
from scenarios.mprog.revisions import is_held, revisions

BLOCK = 7


def put(
    dev: Device, kind: str, *, replace: bool = False, ingress_block: int = 0, egress_block: int = 0
) -> None:
    """Add or replace the device's qdisc."""
    dev.ns.rtnl.request(
        new_ingress_side(
            dev.ifindex, kind, replace=replace, ingress_block=ingress_block, egress_block=egress_block
        )
    )


def met(veth: VethPair, journal: Journal) -> list[int]:
    """Who meets a frame from end a to end b."""
    assert send_frames(veth, 1) == 1
    return journal.read()


@pytest.mark.parametrize("new", ["clsact", "ingress"])
@pytest.mark.parametrize("old", ["ingress", "clsact"])
def test_a_list_is_held_while_its_qdisc_is_replaced(
    veth: VethPair, journal: Journal, old: str, new: str
) -> None:
    """MPROG-LEGACY-006, MPROG-FIX-006: the new qdisc takes hold before the old one lets go; its filters then run."""
    shared, own, prog = (journal.prog(number) for number in (1, 2, 3))
    put(veth.b, old, ingress_block=BLOCK)
    qdisc.add_bpf_filter(veth.b, shared.fd, block=BLOCK)
    tcx.attach(veth.b, prog)
    tcx.detach(veth.b, prog)
    assert met(veth, journal) == [1]
    put(veth.b, new, replace=True)
    assert qdisc.kinds(veth.b)[-1] == new
    assert is_held(veth.b, BPF_TCX_INGRESS)
    assert tcx.query(veth.b).revision == 3
    assert is_held(veth.b, BPF_TCX_EGRESS) == (new == "clsact")
    qdisc.add_bpf_filter(veth.b, own.fd)
    assert met(veth, journal) == [2]
    tcx.attach(veth.b, prog, expected_revision=3)
    assert met(veth, journal) == [3, 2]
    (qdisc.delete_clsact if new == "clsact" else qdisc.delete_ingress)(veth.b)
    assert met(veth, journal) == [3]
    tcx.detach(veth.b, prog)
    assert revisions(veth.b) == (1, 1)


def test_programs_run_on_while_a_qdisc_is_replaced(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-003, -006: nothing of the list changes, and the last holder's going does not free it."""
    prog = journal.prog(1)
    with tcx.link(veth.b, prog):
        before = tcx.query(veth.b)
        put(veth.b, "ingress", ingress_block=BLOCK)
        put(veth.b, "clsact", replace=True, ingress_block=BLOCK + 1)
        assert tcx.query(veth.b) == before
        legacy = journal.prog(2)
        qdisc.add_bpf_filter(veth.b, legacy.fd, block=BLOCK + 1)
        assert met(veth, journal) == [1, 2]
        qdisc.delete_clsact(veth.b)
        assert tcx.query(veth.b) == before
        assert met(veth, journal) == [1]


def fail_half_way(dev: Device, *, replace: bool = False, ingress_block: int, egress_block: int) -> None:
    """Try to add a clsact that cannot have its blocks; skips where the kernel lets it have them."""
    try:
        put(dev, "clsact", replace=replace, ingress_block=ingress_block, egress_block=egress_block)
    except OSError as error:
        assert error.errno == errno.EBUSY
    else:
        pytest.skip("this kernel lacks the rule that a device is in a shared block only once")


def test_a_qdisc_that_fails_half_way_leaves_no_list(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-LEGACY-007, MPROG-FIX-007: both directions were set up when the second block was refused."""
    fail_half_way(dev, ingress_block=BLOCK, egress_block=BLOCK)
    prog = sched_cls()
    for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
        assert not is_held(dev, attach_type)
        tcx.attach(dev, prog, attach_type=attach_type, expected_revision=1)
        tcx.detach(dev, prog, attach_type=attach_type)
    assert revisions(dev) == (1, 1)
    put(dev, "clsact", ingress_block=BLOCK)


def test_a_qdisc_that_fails_half_way_leaves_programs_alone(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-007, MPROG-FIX-007: it drops no hold but its own."""
    inward, outward = journal.prog(1), journal.prog(2)
    tcx.attach(veth.b, inward)
    with tcx.link(veth.b, outward, attach_type=BPF_TCX_EGRESS):
        before = revisions(veth.b)
        fail_half_way(veth.b, ingress_block=BLOCK, egress_block=BLOCK)
        assert revisions(veth.b) == before
        assert met(veth, journal) == [1]
        assert met(veth.flipped, journal) == [2]
    tcx.detach(veth.b, inward)
    assert revisions(veth.b) == (1, 1)


def test_a_failed_replacement_leaves_the_hold_of_the_qdisc_that_stays(
    veth: VethPair, journal: Journal
) -> None:
    """MPROG-LEGACY-007, MPROG-FIX-007: the new one fails at ingress, before it had anything of egress."""
    inward, outward, prog = (journal.prog(number) for number in (1, 2, 3))
    put(veth.b, "clsact", ingress_block=BLOCK)
    qdisc.add_bpf_filter(veth.b, inward.fd, block=BLOCK)
    qdisc.add_bpf_filter(veth.b, outward.fd, egress=True)
    for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
        tcx.attach(veth.b, prog, attach_type=attach_type)
        tcx.detach(veth.b, prog, attach_type=attach_type)
    fail_half_way(veth.b, replace=True, ingress_block=BLOCK, egress_block=0)
    assert (is_held(veth.b, BPF_TCX_INGRESS), is_held(veth.b, BPF_TCX_EGRESS)) == (True, True)
    assert revisions(veth.b) == (3, 3)
    assert met(veth.flipped, journal) == [2]
    qdisc.delete_clsact(veth.b)
    assert revisions(veth.b) == (1, 1)


LOST = "a qdisc that goes takes away the filters of the one that stays"


@pytest.mark.known_issue("CLSACT-LOSES-FILTERS", reason=LOST)
def test_filters_run_on_when_a_replacement_fails(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-007: the qdisc that stays still has its filter, and must run it."""
    legacy = journal.prog(1)
    put(veth.b, "clsact", ingress_block=BLOCK)
    qdisc.add_bpf_filter(veth.b, legacy.fd, block=BLOCK)
    assert met(veth, journal) == [1]
    fail_half_way(veth.b, replace=True, ingress_block=BLOCK, egress_block=0)
    assert met(veth, journal) == [1]


@pytest.mark.known_issue("CLSACT-LOSES-FILTERS", reason=LOST)
def test_filters_of_a_block_run_when_a_replacing_qdisc_brings_it(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-006: the block has its filter already, from another device; the old qdisc had one, too."""
    legacy, old = journal.prog(1), journal.prog(2)
    with veth_pair(ns_a=veth.ns_b, ns_b=veth.ns_b, names=("holder", "peer")) as other:
        put(other.a, "clsact", ingress_block=BLOCK)
        qdisc.add_bpf_filter(other.a, legacy.fd, block=BLOCK)
        put(veth.b, "clsact")
        qdisc.add_bpf_filter(veth.b, old.fd)
        assert met(veth, journal) == [2]
        put(veth.b, "clsact", replace=True, ingress_block=BLOCK)
        assert met(veth, journal) == [1]


def test_filters_of_a_block_run_when_the_first_qdisc_brings_it(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-001: as above, without a qdisc to replace."""
    legacy, prog = journal.prog(1), journal.prog(2)
    with veth_pair(ns_a=veth.ns_b, ns_b=veth.ns_b, names=("holder", "peer")) as other:
        put(other.a, "clsact", ingress_block=BLOCK)
        qdisc.add_bpf_filter(other.a, legacy.fd, block=BLOCK)
        put(veth.b, "clsact", ingress_block=BLOCK)
        tcx.attach(veth.b, prog)
        assert met(veth, journal) == [2, 1]
