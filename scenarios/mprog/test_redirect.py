# SPDX-License-Identifier: MIT
"""A redirected frame goes on at the device and in the direction that the helper named, past the programs there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import Item, asm, call, exit_, mov, r0, r1, r2
from harness.guest.bpf.attrs import LinkCreate
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS, TCX_DROP, TCX_REDIRECT
from harness.guest.net import VethPair, veth_pair
from harness.guest.traffic import EXPERIMENTAL_ETHERTYPE, backlog, frame, packet_socket
from harness.guest.waiting import wait_until
from scenarios.mprog.conftest import Journal

BPF_F_INGRESS = 1  # include/uapi/linux/bpf.h, for the redirect helpers
XDP_PASS = 2
XDP_FLAGS_SKB_MODE = 1 << 1  # include/uapi/linux/if_link.h


@dataclass(frozen=True)
class Net:
    """Two veth pairs, a - b and c - d; b and c are in the scenario's namespace, a and d each in its own."""

    near: VethPair
    far: VethPair

    def arrivals(self, sender: VethPair, *, ethertype: int = EXPERIMENTAL_ETHERTYPE) -> list[str]:
        """Send a frame from the first to the second end of `sender`; names of the devices at which it arrived."""
        ends = {"a": self.near.a, "b": self.near.b, "c": self.far.a, "d": self.far.b}
        with ExitStack() as stack:
            receivers = {
                name: stack.enter_context(packet_socket(end, ethertype)) for name, end in ends.items()
            }
            with packet_socket(sender.a) as source:
                source.send(frame(sender.a, sender.b))
            wait_until(lambda: backlog() == 0, timeout=1, what="the CPUs' packet backlogs to empty")
            found = []
            for name, receiver in receivers.items():
                receiver.setblocking(False)
                try:
                    receiver.recv(2048)
                except BlockingIOError:
                    continue
                found.append(name)
            return found


@pytest.fixture
def net(veth: VethPair) -> Iterator[Net]:
    with veth_pair(ns_a=veth.ns_b, names=("veth-c", "veth-d")) as far:
        yield Net(veth, far)


def helper(number: int, ifindex: int, flags: int = 0) -> Item:
    """A call of bpf_redirect or bpf_redirect_peer."""
    return mov(r1, ifindex), mov(r2, flags), call(number)


@pytest.mark.parametrize(
    ("number", "flags", "origin", "met", "arrives"),
    [
        pytest.param(uapi.BPF_FUNC_redirect, 0, BPF_TCX_INGRESS, [1, 2, 4], ["d"], id="in, out of c"),
        pytest.param(uapi.BPF_FUNC_redirect, 0, BPF_TCX_EGRESS, [1, 2, 4], ["d"], id="out, out of c"),
        pytest.param(uapi.BPF_FUNC_redirect, BPF_F_INGRESS, BPF_TCX_INGRESS, [1, 3], ["c"], id="in, into c"),
        pytest.param(uapi.BPF_FUNC_redirect, BPF_F_INGRESS, BPF_TCX_EGRESS, [1, 3], ["c"], id="out, into c"),
        pytest.param(uapi.BPF_FUNC_redirect_peer, 0, BPF_TCX_INGRESS, [1, 4], ["d"], id="in, into d"),
        pytest.param(
            uapi.BPF_FUNC_redirect_peer,
            0,
            BPF_TCX_EGRESS,
            [1],
            [],
            id="out, not into d",
            marks=pytest.mark.known_issue(
                "PEER-REDIRECT-OUT-RCU",
                reason="on the way out a device is asked for its peer without RCU's read lock",
                splat="veth_peer_dev",
                spared=("6.12.117",),
                shown_by="CONFIG_PROVE_RCU",
            ),
        ),
    ],
)
def test_a_redirected_frame_meets_the_programs_on_its_new_way(
    net: Net, journal: Journal, number: int, flags: int, origin: int, met: list[int], arrives: list[str]
) -> None:
    """MPROG-RUN-005, -009, MPROG-LIFE-001: 1 redirects at b, 9 is behind it; 2 is at c's egress, 3 and 4 at c and d.

    The way to the peer leaves out c's egress, and is there for what comes in only (net/core/filter.c:skb_do_redirect).
    """
    b, c, d = net.near.b, net.far.a, net.far.b
    tcx.attach(b, journal.prog(1, TCX_REDIRECT, helper(number, c.ifindex, flags)), attach_type=origin)
    tcx.attach(b, journal.prog(9), attach_type=origin)
    tcx.attach(c, journal.prog(2), attach_type=BPF_TCX_EGRESS)
    tcx.attach(c, journal.prog(3))
    with d.ns.entered():
        tcx.attach(d, journal.prog(4))
    sender = net.near if origin == BPF_TCX_INGRESS else net.near.flipped
    assert net.arrivals(sender) == arrives
    assert journal.read() == met


def test_the_peer_receives_as_if_the_frame_had_come_to_it(net: Net, journal: Journal) -> None:
    """MPROG-RUN-009, -007: generic XDP (5), packet taps, then tcx (4), which may still drop it."""
    b, c, d = net.near.b, net.far.a, net.far.b
    tcx.attach(b, journal.prog(1, TCX_REDIRECT, helper(uapi.BPF_FUNC_redirect_peer, c.ifindex)))
    code = asm(journal.note(5), mov(r0, XDP_PASS), exit_())
    with Prog.load(code, uapi.BPF_PROG_TYPE_XDP) as xdp, d.ns.entered():
        attributes = LinkCreate(
            prog_fd=xdp.fd, target_fd=d.ifindex, attach_type=uapi.BPF_XDP, flags=XDP_FLAGS_SKB_MODE
        )
        tcx.attach(d, journal.prog(4, TCX_DROP))
        with Link.create(attributes), packet_socket(d) as tap:
            tap.setblocking(False)
            assert net.arrivals(net.near) == []
            assert tap.recv(2048) == frame(net.near.a, net.near.b)
        assert journal.read() == [1, 5, 4]


def test_the_peer_must_be_in_another_namespace(veth: VethPair, journal: Journal) -> None:
    """MPROG-RUN-005, -009: into a peer that is where the frame is, it is dropped."""
    with veth_pair(ns_a=veth.ns_b, ns_b=veth.ns_b, names=("veth-c", "veth-d")) as inside:
        tcx.attach(
            veth.b, journal.prog(1, TCX_REDIRECT, helper(uapi.BPF_FUNC_redirect_peer, inside.a.ifindex))
        )
        tcx.attach(inside.b, journal.prog(4))
        assert Net(veth, inside).arrivals(veth) == []
        assert journal.read() == [1]
