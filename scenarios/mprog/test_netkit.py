# SPDX-License-Identifier: MIT
"""netkit: two lists at a device of their own, and what becomes of their programs and links."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf import netkit
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_BEFORE,
    BPF_LINK_TYPE_NETKIT,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
)
from harness.guest.net import Device, VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import delete_link, link_up, move_link, new_veth
from harness.guest.traffic import send_frames
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NETKIT_LISTS, Journal, NetkitPair, connect_netkit, crosses, ids

END = {BPF_NETKIT_PRIMARY: "primary", BPF_NETKIT_PEER: "peer"}


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


@NETKIT_LISTS
def test_an_emptied_list_hides_its_revision(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-004, MPROG-QUIRK-002: it says 1, but goes on counting, and what it says is refused."""
    pair, a = netkit_pair(), sched_cls()
    netkit.attach(pair.a, a, attach_type=which)
    netkit.detach(pair.a, a, attach_type=which)
    assert netkit.query(pair.a, attach_type=which).revision == 1
    for stale in (1, 2, 4):
        with refused(errno.ESTALE):
            netkit.attach(pair.a, a, attach_type=which, expected_revision=stale)
    with netkit.link(pair.a, a, attach_type=which, expected_revision=3):
        assert netkit.query(pair.a, attach_type=which).revision == 4
    with refused(errno.ESTALE):
        netkit.link(pair.a, a, attach_type=which, expected_revision=1)
    netkit.attach(pair.a, a, attach_type=which, expected_revision=5)
    other = BPF_NETKIT_PRIMARY + BPF_NETKIT_PEER - which
    netkit.attach(pair.a, a, attach_type=other, expected_revision=1)


@NETKIT_LISTS
def test_a_link_tells_its_end_by_the_index_there(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-003, MPROG-ABI-008: as info and in /proc."""
    pair, prog = netkit_pair(), sched_cls()
    end = pair.a if which == BPF_NETKIT_PRIMARY else pair.b
    with netkit.link(pair.a, prog, attach_type=which) as link:
        info = link.info()
        assert (info.type, info.prog_id) == (BPF_LINK_TYPE_NETKIT, prog.id)
        assert (info.ifindex, info.attach_type) == (end.ifindex, which)
        lines = Path(f"/proc/self/fdinfo/{link.fd}").read_text().splitlines()
        assert f"ifindex:\t{end.ifindex}" in lines
        assert f"attach_type:\t{which} ({END[which]})" in lines


def test_lists_follow_the_peer_to_another_namespace(netkit_pair: NetkitPair, journal: Journal) -> None:
    """MPROG-NETKIT-002, -003: where its index is taken, so that the link tells another one."""
    pair = netkit_pair()
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    netkit.attach(pair.a, journal.prog(1))
    with (
        NetNamespace.create() as other,
        netkit.link(pair.a, journal.prog(2), attach_type=BPF_NETKIT_PEER) as link,
    ):
        other.rtnl.request(new_veth("taken", pair.b.ifindex, macs[0], "end", 9, macs[1], other.fd))
        before = netkit.query(pair.a, attach_type=BPF_NETKIT_PEER)
        pair.ns_b.rtnl.request(move_link(pair.b.ifindex, other.fd))
        moved = Device.find(other, pair.b.name)
        assert link.info().ifindex == moved.ifindex != pair.b.ifindex
        assert netkit.query(pair.a, attach_type=BPF_NETKIT_PEER) == before
        other.rtnl.request(link_up(moved.ifindex))
        b = Device(moved.name, moved.ifindex, other, pair.b.mac)
        for device in (pair.a, b):
            wait_until(device.is_running, timeout=2, what=f"{device.name} to be running again")
        elsewhere = VethPair(pair.a, b, pair.ns_a, other)
        assert crosses(elsewhere)
        assert crosses(elsewhere.flipped)
        assert journal.read() == [1, 2]


@NETKIT_LISTS
def test_an_update_keeps_the_slot_and_the_link(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-LINK-024 to -029, -040 with netkit: drivers/net/netkit.c:netkit_link_update."""
    pair = netkit_pair()
    a, b, c, d = (sched_cls() for _ in range(4))
    with netkit.link(pair.a, b, attach_type=which) as link:
        netkit.attach(pair.a, a, attach_type=which, flags=BPF_F_BEFORE)
        netkit.attach(pair.a, c, attach_type=which)
        with refused(errno.EPERM):
            link.update(d, old=a)
        with refused(errno.EEXIST):
            link.update(c)
        link.update(b)
        assert netkit.query(pair.a, attach_type=which).revision == 4
        link.update(d, old=b)
        after = netkit.query(pair.a, attach_type=which)
        assert (after.prog_ids, after.link_ids) == (ids(a, d, c), [0, link.id, 0])
        assert after.revision == 5
        with refused(errno.EBUSY):
            netkit.detach(pair.a, d, attach_type=which)
        link.detach()
        link.detach()
        with refused(errno.ENOLINK):
            link.update(b)
        assert link.info().ifindex == 0
        assert netkit.query(pair.a, attach_type=which).prog_ids == ids(a, c)


@pytest.fixture
def pair_in_namespaces_of_its_own() -> Iterator[VethPair]:
    """A netkit pair whose namespaces go when the scenario closes them; nobody is in them."""
    with NetNamespace.create() as ns_a, NetNamespace.create() as ns_b:
        yield connect_netkit(ns_a, ns_b)


REMOVALS: dict[str, Callable[[VethPair], None]] = {
    "primary deleted": lambda pair: pair.ns_a.rtnl.request(delete_link(pair.a.ifindex)),
    "peer deleted": lambda pair: pair.ns_b.rtnl.request(delete_link(pair.b.ifindex)),
    "namespace of the primary": lambda pair: pair.ns_a.close(),
    "namespace of the peer": lambda pair: pair.ns_b.close(),
}


@pytest.mark.requires("netkit")
@pytest.mark.parametrize("way", REMOVALS)
def test_removing_an_end_frees_programs_and_empties_links_of_both(
    pair_in_namespaces_of_its_own: VethPair, sched_cls: LoadSchedCls, way: str
) -> None:
    """MPROG-NETKIT-010, MPROG-LIFE-002, -004."""
    pair = pair_in_namespaces_of_its_own
    linked, held_by_device = sched_cls(), []
    with ExitStack() as links:
        made: list[tuple[int, Link]] = []
        with pair.ns_a.entered():
            for which in (BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER):
                direct = sched_cls()
                netkit.attach(pair.a, direct, attach_type=which)
                held_by_device.append(direct.id)
                direct.close()
                link = links.enter_context(netkit.link(pair.a, linked, attach_type=which))
                made.append((which, link))
        assert set(held_by_device) <= set(Prog.ids())
        REMOVALS[way](pair)
        # A namespace goes in the background.
        wait_until(lambda: made[0][1].info().ifindex == 0, timeout=5, what="the primary to go")
        for which, link in made:
            info = link.info()
            assert (info.ifindex, info.attach_type, info.prog_id) == (0, which, linked.id)
            with refused(errno.ENOLINK):
                link.update(linked)
            link.detach()
        wait_until(
            lambda: not set(held_by_device) & set(Prog.ids()),
            timeout=2,
            what="the programs that only the device held to go",
        )
        assert linked.id in Prog.ids()


def wait_for_the_end_of(number: int, what: str) -> None:
    """Wait until the program with this id is gone; the kernel frees in the background."""
    wait_until(lambda: number not in Prog.ids(), timeout=2, what=f"{what} to go")


LettingGo = Callable[[Device, int, Prog, Prog], None]

# How a list lets go of a direct program `old`; `new` takes its place, if anything does.
LETTING_GO: dict[str, LettingGo] = {
    "detached by name": lambda dev, which, old, new: netkit.detach(dev, old, attach_type=which),
    "detached as the last": lambda dev, which, old, new: netkit.detach(dev, attach_type=which),
    "replaced": lambda dev, which, old, new: netkit.attach(dev, new, attach_type=which, replace=old),
}


@NETKIT_LISTS
def test_a_list_holds_a_program_until_it_lets_go(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-ATTACH-018, -030, MPROG-DETACH-018, MPROG-LIFE-008 with netkit; a refused attach holds nothing."""
    pair = netkit_pair()
    for way, let_go in LETTING_GO.items():
        old, new, never = sched_cls(), sched_cls(), sched_cls()
        number, never_in = old.id, never.id
        netkit.attach(pair.a, old, attach_type=which)
        with refused(errno.ESTALE):
            netkit.attach(pair.a, never, attach_type=which, expected_revision=1)
        never.close()
        wait_for_the_end_of(never_in, "the refused program")
        old.close()
        assert number in Prog.ids()
        with Prog.from_id(number) as again:
            let_go(pair.a, which, again, new)
        wait_for_the_end_of(number, f"the program {way}")
        if netkit.query(pair.a, attach_type=which).count:
            netkit.detach(pair.a, attach_type=which)


@NETKIT_LISTS
def test_a_link_holds_a_program_until_it_is_closed_or_updated(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-LINK-029, -042, MPROG-LAW-009 with netkit."""
    pair = netkit_pair()
    first, second = sched_cls(), sched_cls()
    numbers = first.id, second.id
    link = netkit.link(pair.a, first, attach_type=which)
    link_id = link.id
    link.update(second)
    for prog in (first, second):
        prog.close()
    wait_for_the_end_of(numbers[0], "the program that was updated")
    assert numbers[1] in Prog.ids()
    link.close()
    wait_for_the_end_of(numbers[1], "the program of the closed link")
    wait_until(lambda: link_id not in Link.ids(), timeout=2, what="the closed link to go")
    assert netkit.query(pair.a, attach_type=which).count == 0
