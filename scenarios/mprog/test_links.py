# SPDX-License-Identifier: MIT
"""What a link owns, for how long, and what becomes of it when its device goes."""

from __future__ import annotations

import errno
from pathlib import Path

from harness.guest.bpf import tcx
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device, VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import delete_link, move_link
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids


def test_an_update_keeps_the_slot_and_the_link(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-025, -027, -029, MPROG-QUERY-013."""
    d = sched_cls()
    before = tcx.query(entry.dev)
    with refused(errno.EEXIST):
        entry.link.update(entry.a)
    with refused(errno.EPERM):
        entry.link.update(d, old=entry.a)
    entry.link.update(d, old=entry.b)
    after = tcx.query(entry.dev)
    assert after.prog_ids == ids(entry.a, d, entry.c)
    assert after.link_ids == before.link_ids == [0, entry.link.id, 0]
    assert entry.link.info().prog_id == d.id


def test_a_linked_program_goes_with_its_link_only(entry: Entry) -> None:
    """MPROG-DETACH-012, MPROG-LINK-042, -044: not by a direct detach; the rest keep their order."""
    with refused(errno.EBUSY):
        tcx.detach(entry.dev, entry.b)
    entry.link.close()
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)


def test_a_detached_link_is_an_empty_object(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-040, -041."""
    entry.link.detach()
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)
    entry.link.detach()
    with refused(errno.ENOLINK):
        entry.link.update(sched_cls())
    info = entry.link.info()
    assert (info.ifindex, info.attach_type, info.prog_id) == (0, BPF_TCX_INGRESS, entry.b.id)


def test_a_pinned_link_lives_until_it_is_unpinned(entry: Entry) -> None:
    """MPROG-LINK-042, -043: removal by unlink is asynchronous."""
    pin = Path("/sys/fs/bpf/kernrig-link")
    entry.link.pin(pin)
    entry.link.close()
    try:
        assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, entry.c)
    finally:
        pin.unlink()
    wait_until(
        lambda: tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c), timeout=2, what="B to leave the entry"
    )


def test_removing_the_device_frees_programs_and_empties_links(
    entry: Entry, veth: VethPair, sched_cls: LoadSchedCls
) -> None:
    """MPROG-LIFE-002, -003, -008: at both ends of the pair."""
    with veth.ns_a.entered():
        far = tcx.link(veth.a, entry.b, attach_type=BPF_TCX_EGRESS)
    direct = entry.a.id
    entry.a.close()
    assert direct in Prog.ids()
    with far:
        entry.dev.ns.rtnl.request(delete_link(entry.dev.ifindex))
        for link in (entry.link, far):
            assert link.info().ifindex == 0
            with refused(errno.ENOLINK):
                link.update(sched_cls())
            link.detach()
    with refused(errno.ENODEV):
        tcx.query(entry.dev)
    wait_until(
        lambda: direct not in Prog.ids(), timeout=2, what="the program that only the device held to go"
    )


def test_programs_and_links_follow_a_device_to_another_namespace(
    entry: Entry, sched_cls: LoadSchedCls
) -> None:
    """MPROG-LIFE-005, MPROG-LINK-047: list and revision stay, the link still works from where it was made."""
    before = tcx.query(entry.dev)
    with NetNamespace.create() as other:
        entry.dev.ns.rtnl.request(move_link(entry.dev.ifindex, other.fd))
        with refused(errno.ENODEV):
            tcx.query(entry.dev)
        moved = Device.find(other, entry.dev.name)
        assert other.run(tcx.query, moved) == before
        d = sched_cls()
        entry.link.update(d)
        assert other.run(tcx.query, moved).prog_ids == ids(entry.a, d, entry.c)
        assert entry.link.info().ifindex == moved.ifindex
