# SPDX-License-Identifier: MIT
"""What becomes of programs and links when their device, or its whole namespace, goes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.kr_modules import KrOffload, missing
from harness.guest.net import Device, VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import delete_link, move_link, new_ingress_side, new_veth
from harness.guest.traffic import send_frames
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, ids

DIRECTIONS = (BPF_TCX_INGRESS, BPF_TCX_EGRESS)


def check_defunct(link: Link, attach_type: int, prog: Prog, other: Prog) -> None:
    info = link.info()
    assert (info.ifindex, info.attach_type, info.prog_id) == (0, attach_type, prog.id)
    for new in (other, prog):
        with refused(errno.ENOLINK):
            link.update(new)
    link.detach()
    link.detach()
    link.close()


@pytest.mark.parametrize("legacy", [False, True], ids=["tcx alone", "beside clsact"])
def test_removing_a_device_frees_programs_and_empties_links(
    veth: VethPair, sched_cls: LoadSchedCls, legacy: bool
) -> None:
    """MPROG-LIFE-002, -003, -007, -008, MPROG-LINK-024, -040, -041: in both directions at both ends of the pair, also
    while a legacy filter is there."""
    held: list[int] = []
    links: list[tuple[Link, int, Prog]] = []
    other = sched_cls()
    for dev in (veth.a, veth.b):
        if legacy:
            qdisc.add_clsact(dev)
            qdisc.add_bpf_filter(dev, other.fd)
        for direction in DIRECTIONS:
            first, direct, second = (sched_cls() for _ in range(3))
            with dev.ns.entered():
                for linked in (first, second):
                    links.append((tcx.link(dev, linked, attach_type=direction), direction, linked))
                    if linked is first:
                        tcx.attach(dev, direct, attach_type=direction)
            held.append(direct.id)
            direct.close()
    assert set(held) <= set(Prog.ids())
    veth.ns_b.rtnl.request(delete_link(veth.b.ifindex))
    with refused(errno.ENODEV):
        tcx.query(veth.b)
    for link, direction, prog in links:
        check_defunct(link, direction, prog, other)
    wait_until(
        lambda: not set(held) & set(Prog.ids()), timeout=2, what="programs that only the devices held to go"
    )


def test_removing_a_namespace_removes_its_devices(netns: NetNamespace, sched_cls: LoadSchedCls) -> None:
    """MPROG-LIFE-004, MPROG-LINK-041: in the background, and with them those at the other end, which are elsewhere."""
    linked, other, far, direct = (sched_cls() for _ in range(4))
    doomed = NetNamespace.create()
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    netns.rtnl.request(new_veth("here", 101, macs[0], "there", 102, macs[1], doomed.fd))
    here, there = Device("here", 101, netns), Device("there", 102, doomed)
    qdisc.add_clsact(there)
    near_link = tcx.link(here, linked)
    with doomed.entered():
        far_link = tcx.link(there, far, attach_type=BPF_TCX_EGRESS)
        tcx.attach(there, direct)
    number = direct.id
    direct.close()
    doomed.close()
    wait_until(lambda: far_link.info().ifindex == 0, timeout=5, what="the namespace to go")
    wait_until(lambda: near_link.info().ifindex == 0, timeout=5, what="the other end of the pair to go")
    check_defunct(far_link, BPF_TCX_EGRESS, far, other)
    check_defunct(near_link, BPF_TCX_INGRESS, linked, other)
    wait_until(
        lambda: number not in Prog.ids(), timeout=5, what="the program that only the device held to go"
    )


@pytest.fixture
def hardware() -> Iterator[Device]:
    """A device as a driver makes it, in the initial namespace: not one that user space has created."""
    if reason := missing(KrOffload.name):
        pytest.skip(reason)
    with KrOffload(), NetNamespace.current() as initial:
        yield Device.find(initial, KrOffload.name)


def test_hardware_comes_home_when_its_namespace_goes(hardware: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-LIFE-004, -005: with programs, links and revision, but without clsact."""
    linked, direct, other = (sched_cls() for _ in range(3))
    doomed = NetNamespace.create()
    hardware.ns.rtnl.request(move_link(hardware.ifindex, doomed.fd))
    away = Device.find(doomed, hardware.name)
    qdisc.add_clsact(away)
    with doomed.entered():
        link = tcx.link(away, linked)
        tcx.attach(away, direct)
        before = tcx.query(away)
    doomed.close()

    def is_home() -> bool:
        try:
            return Device.find(hardware.ns, hardware.name).ifindex > 0
        except OSError as error:
            assert error.errno == errno.ENODEV
            return False

    wait_until(is_home, timeout=5, what="the device to be in the initial namespace")
    home = Device.find(hardware.ns, hardware.name)
    assert tcx.query(home) == before
    assert "clsact" not in qdisc.kinds(home)
    assert link.info().ifindex == home.ifindex
    link.update(other)
    assert tcx.query(home).prog_ids == ids(other, direct)
    link.close()
    tcx.detach(home, direct)


def test_a_device_that_goes_down_and_up_keeps_its_lists(veth: VethPair, journal: Journal) -> None:
    """MPROG-LIFE-006."""
    first, second = journal.prog(1), journal.prog(2)
    tcx.attach(veth.b, first)
    tcx.attach(veth.b, first, attach_type=BPF_TCX_EGRESS)
    with tcx.link(veth.b, second) as link:
        before = [tcx.query(veth.b, attach_type=direction) for direction in DIRECTIONS], link.info()
        for state in ("down", "up"):
            veth.ns_b.ipr.link("set", index=veth.b.ifindex, state=state)
            after = [tcx.query(veth.b, attach_type=direction) for direction in DIRECTIONS], link.info()
            assert after == before
        for end in (veth.a, veth.b):
            wait_until(end.is_running, timeout=2, what=f"{end.name} to be running again")
        assert send_frames(veth, 1) == 1
        assert journal.read() == [1, 2]


@pytest.mark.vm(cpus=2)
def test_links_may_come_and_go_while_their_device_goes(netns: NetNamespace, sched_cls: LoadSchedCls) -> None:
    """MPROG-LIFE-007, MPROG-FIX-005: beside clsact; the kernel would complain. What was made in time is defunct."""
    rounds, enough = 5, 20
    direct, mine, kept_prog = (sched_cls() for _ in range(3))
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    for number in range(rounds):
        index = 201 + 2 * number
        netns.rtnl.request(
            new_veth("d0", index, macs[0], "d1", index + 1, macs[1], netns.fd),
            new_ingress_side(index, "clsact"),
            new_ingress_side(index + 1, "clsact"),
        )
        for direction in DIRECTIONS:
            tcx.attach(index, direct, attach_type=direction)
        kept = tcx.link(index, kept_prog)
        made = 0
        busy = Event()
        ends: list[int | None] = []

        def make_links(index: int, busy: Event, ends: list[int | None]) -> None:
            nonlocal made
            while True:
                try:
                    tcx.link(index, mine).close()
                except BpfError as error:
                    ends.append(error.errno)
                    busy.set()
                    return
                made += 1
                if made == enough:
                    busy.set()

        # A new thread starts in the namespace of the one that made it.
        maker = Thread(target=make_links, args=(index, busy, ends))
        maker.start()
        assert busy.wait(60)
        netns.rtnl.request(delete_link(index + 1))
        maker.join(60)
        assert ends == [errno.ENODEV]
        assert made >= enough
        check_defunct(kept, BPF_TCX_INGRESS, kept_prog, direct)
