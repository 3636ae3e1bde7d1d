# SPDX-License-Identifier: MIT
"""A device goes with everything on it: tcx programs and links in both directions, and clsact with its filters."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import delete_link, new_ingress_side, new_veth
from scenarios.conftest import LoadSchedCls


@pytest.mark.parametrize("first", ["qdisc", "links"])
def test_links_of_both_directions_are_empty_when_the_device_is_gone(
    dev: Device, sched_cls: LoadSchedCls, first: str
) -> None:
    """MPROG-LIFE-002, -007, MPROG-FIX-005: with direct programs and a filter beside them, whichever came first."""
    progs, legacy = [sched_cls() for _ in range(3)], sched_cls()

    def add_filters() -> None:
        qdisc.add_clsact(dev)
        for egress in (False, True):
            qdisc.add_bpf_filter(dev, legacy.fd, egress=egress)

    with ExitStack() as stack:
        if first == "qdisc":
            add_filters()
        links = []
        for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
            tcx.attach(dev, progs[0], attach_type=attach_type)
            links += [stack.enter_context(tcx.link(dev, each, attach_type=attach_type)) for each in progs[1:]]
        if first == "links":
            add_filters()
        assert [link.info().ifindex for link in links] == [dev.ifindex] * 4
        dev.ns.rtnl.request(delete_link(dev.ifindex))
        assert [link.info().ifindex for link in links] == [0] * 4
        for link in links:
            with refused(errno.ENOLINK):
                link.update(progs[0])
            link.detach()


@pytest.mark.vm(cpus=2)
def test_devices_go_while_links_are_made_and_closed(netns: NetNamespace, sched_cls: LoadSchedCls) -> None:
    """MPROG-LIFE-007, MPROG-FIX-005: with clsact; a link that was made in time is empty afterwards."""
    direct, linked, devices = sched_cls(), sched_cls(), 8
    index = 500

    def link_until_gone(busy: Event) -> int:
        made = 0
        while True:
            try:
                # The second of two links with one program would be refused: one in each direction.
                with (
                    tcx.link(index, linked),
                    tcx.link(index, linked, attach_type=BPF_TCX_EGRESS) as outward,
                ):
                    made += 1
                    busy.set()
                    found = outward.info().ifindex
            except BpfError as error:
                assert error.errno == errno.ENODEV
                return made
            assert found in (index, 0)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(devices):
            macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
            netns.rtnl.request(
                new_veth("going", index, macs[0], "peer", index + 1, macs[1], netns.fd),
                new_ingress_side(index, "clsact"),
            )
            tcx.attach(index, direct)
            with tcx.link(index + 1, linked) as kept:
                busy = Event()
                linking = pool.submit(link_until_gone, busy)
                assert busy.wait(10)
                netns.rtnl.request(delete_link(index))
                assert linking.result() >= 1
                assert kept.info().ifindex == 0
