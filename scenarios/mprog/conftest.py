# SPDX-License-Identifier: MIT
"""An entry to work on, a journal that programs write when packets meet them, and a netkit pair."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import (
    Item,
    asm,
    exit_,
    ld_map_value,
    ldxdw,
    lsh,
    mov,
    or_,
    r0,
    r1,
    r2,
    r6,
    stxdw,
)
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.net import Device, VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import NETKIT_L2, NetkitSettings, link_up, new_netkit, new_veth
from harness.guest.traffic import send_frames
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.requests import Bench, laid_out


@pytest.fixture(autouse=True)
def _needs_tcx(request: pytest.FixtureRequest) -> None:
    if not request.path.name.startswith("test_cgroup"):
        require("tcx")


def ids(*progs: Prog) -> list[int]:
    """The programs' ids, as a query of an entry that holds just these has them."""
    return [prog.id for prog in progs]


@dataclass(frozen=True)
class Entry:
    """A device's ingress list `A B* C`: the link owns B, the other two are attached directly."""

    dev: Device
    a: Prog
    b: Prog
    c: Prog
    link: Link


@pytest.fixture
def entry(dev: Device, sched_cls: LoadSchedCls) -> Iterator[Entry]:
    a, b, c = sched_cls(name="a"), sched_cls(name="b"), sched_cls(name="c")
    tcx.attach(dev, a)
    with tcx.link(dev, b) as link:
        tcx.attach(dev, c)
        yield Entry(dev, a, b, c, link)


@pytest.fixture(params=[uapi.BPF_TCX_INGRESS, uapi.BPF_TCX_EGRESS], ids=["ingress", "egress"])
def bench(
    request: pytest.FixtureRequest, veth: VethPair, sched_cls: LoadSchedCls, groups: tuple[Path, Path]
) -> Iterator[Bench]:
    """The list `A B* C` of one direction, with all that a table of requests may name."""
    with laid_out(veth, request.param, sched_cls, groups[0]) as bench:
        yield bench


class Journal:
    """Makes programs that write down their number (1 to 15) when they run; one CPU, at most 16 notes."""

    def __init__(self, notes: Map, load: LoadSchedCls) -> None:
        self._notes = notes
        self._load = load

    def note(self, number: int) -> Item:
        """Instructions that note `number`; they change r1 and r2."""
        return ld_map_value(r1, self._notes), ldxdw(r2, r1), lsh(r2, 4), or_(r2, number), stxdw(r1, 0, r2)

    def prog(self, number: int, verdict: int = uapi.TCX_NEXT, *then: Item) -> Prog:
        """A program that notes `number`, does `then`, with its context in r6, and returns `verdict`."""
        return self._load(mov(r6, r1), self.note(number), *then, verdict=verdict, name=f"note_{number}")

    def read(self) -> list[int]:
        """The numbers in the order in which they were noted; the journal is empty afterwards."""
        digits = f"{self._notes.number(0):x}"
        self._notes[0] = 0
        return [] if digits == "0" else [int(digit, 16) for digit in digits]


@pytest.fixture
def journal(sched_cls: LoadSchedCls) -> Iterator[Journal]:
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1, name="journal") as notes:
        yield Journal(notes, sched_cls)


def fate(veth: VethPair) -> str:
    """What becomes of a frame from end a to end b: it "arrives", is "lost", or its sender is "refused"."""
    try:
        return "arrives" if send_frames(veth, 1) else "lost"
    except OSError as error:
        assert error.errno == errno.ENOBUFS
        return "refused"


# Where frames for a device go whose own address is not known.
BROADCAST = "ff:ff:ff:ff:ff:ff"
PRIMARY_INDEX, PEER_INDEX = 301, 302


def connect_netkit(
    ns_a: NetNamespace,
    ns_b: NetNamespace,
    *,
    policy: int = uapi.NETKIT_PASS,
    mode: int = NETKIT_L2,
    macs: tuple[str | None, str | None] = (None, None),
    settings: NetkitSettings | None = None,
) -> VethPair:
    """A running netkit pair, its primary (end a) in `ns_a`, its peer in `ns_b`; gone with either."""
    a = Device("primary", PRIMARY_INDEX, ns_a, macs[0] or BROADCAST)
    b = Device("peer", PEER_INDEX, ns_b, macs[1] or BROADCAST)
    create = new_netkit(
        a.name, a.ifindex, b.name, b.ifindex, ns_b.fd, policy=policy, mode=mode, macs=macs, settings=settings
    )
    ns_a.rtnl.request(create, link_up(a.ifindex))
    ns_b.rtnl.request(link_up(b.ifindex))
    for device in (a, b):
        wait_until(device.is_running, timeout=2, what=f"{device.name} to be running")
    return VethPair(a, b, ns_a, ns_b)


NetkitPair = Callable[..., VethPair]


@pytest.fixture
def netkit_pair() -> Iterator[NetkitPair]:
    """A maker of one netkit pair across two namespaces, with the options of `connect_netkit`.

    End a is the primary, the scenario's thread is in its namespace.
    """
    require("netkit")
    with NetNamespace.create() as ns_a, NetNamespace.create() as ns_b, ns_a.entered():
        yield functools.partial(connect_netkit, ns_a, ns_b)


NETKIT_LISTS = pytest.mark.parametrize(
    "which", [uapi.BPF_NETKIT_PRIMARY, uapi.BPF_NETKIT_PEER], ids=["primary", "peer"]
)


def crosses(pair: VethPair) -> bool:
    """Whether a frame sent into end a comes out of end b; the sender of a dropped one gets ENOBUFS."""
    try:
        return send_frames(pair, 1) == 1
    except OSError as error:
        assert error.errno == errno.ENOBUFS
        return False


# What a sequence of harness.modelcheck names: both ends of a pair in one namespace, two cgroups.

LoadCgroupSkb = Callable[[], Prog]


@pytest.fixture
def ends(netns: NetNamespace) -> Iterator[tuple[Device, Device]]:
    """Both ends of a veth pair, down, in the scenario's namespace."""
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    netns.rtnl.request(new_veth("d0", 101, macs[0], "d1", 102, macs[1], netns.fd))
    yield Device("d0", 101, netns, macs[0]), Device("d1", 102, netns, macs[1])


@pytest.fixture
def elsewhere() -> Iterator[NetNamespace]:
    """Another namespace, for devices to move to."""
    with NetNamespace.create() as other:
        yield other


@pytest.fixture
def netkit_ends(netns: NetNamespace) -> Iterator[tuple[Device, Device]]:
    """Both ends of a netkit pair, down, in the scenario's namespace; the first is the primary."""
    require("netkit")
    netns.rtnl.request(new_netkit("nk", 103, "nk_peer", 104, netns.fd, policy=uapi.NETKIT_PASS))
    yield Device("nk", 103, netns), Device("nk_peer", 104, netns)


@pytest.fixture
def groups() -> Iterator[tuple[Path, Path]]:
    """A cgroup and one below it."""
    above = Path("/sys/fs/cgroup/kernrig-above")
    below = above / "below"
    below.mkdir(parents=True)
    yield above, below
    below.rmdir()
    above.rmdir()


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A cgroup with nothing attached and no process; it goes with those that are made below it."""
    with Cgroup.create("kernrig") as made:
        yield made


@pytest.fixture
def cgroup_skb() -> Iterator[LoadCgroupSkb]:
    """A factory of CGROUP_SKB programs that let everything pass; closed when the scenario ends."""
    with ExitStack() as stack:
        code = asm(mov(r0, 1), exit_())
        yield lambda: stack.enter_context(Prog.load(code, uapi.BPF_PROG_TYPE_CGROUP_SKB))
