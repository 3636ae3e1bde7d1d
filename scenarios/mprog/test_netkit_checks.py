# SPDX-License-Identifier: MIT
"""netkit: of several things that are wrong with a request, the kernel complains about the first in its order."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from harness.guest.bpf import netkit, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_QUERY_EFFECTIVE,
    BPF_F_REPLACE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
)
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NETKIT_LISTS, NetkitPair, ids

Ends = tuple[Device, Device]
NO_DEVICE, LOOPBACK = 999, 1
CLOSED_FD = 1000
STALE = 77


def mend(
    call: Callable[..., object], request: dict[str, object], *steps: tuple[int, dict[str, object]]
) -> object:
    """Each step says how the request is refused, and repairs just that; the answer once all is well."""
    for number, repair in steps:
        with refused(number):
            call(**request)
        request = {**request, **repair}
    return call(**request)


def to_reach_the_list(primary: Device, peer: Device) -> list[tuple[int, dict[str, object]]]:
    """What stands between a request and the list, drivers/net/netkit.c:netkit_dev_fetch."""
    return [
        (errno.ENODEV, {"target": LOOPBACK}),
        (errno.ENXIO, {"target": peer}),
        (errno.EACCES, {"target": primary}),
    ]


@NETKIT_LISTS
def test_attach_checks_the_end_then_what_it_replaces_then_the_list(
    netkit_ends: Ends, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-001, MPROG-ATTACH-003 to -010, -016."""
    primary, peer = netkit_ends
    there, new, stranger = sched_cls(), sched_cls(), sched_cls()
    netkit.attach(primary, there, attach_type=which)
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1) as no_program:
        mend(
            netkit.attach,
            {
                "target": NO_DEVICE,
                "prog": CLOSED_FD,
                "attach_type": which,
                "flags": BPF_F_REPLACE | BPF_F_ALLOW_MULTI,
                "replace_fd": no_program.fd,
                "relative_fd": CLOSED_FD,
                "expected_revision": STALE,
            },
            (errno.EINVAL, {"flags": BPF_F_REPLACE | BPF_F_BEFORE}),
            (errno.EBADF, {"prog": there}),
            *to_reach_the_list(primary, peer),
            (errno.EINVAL, {"replace_fd": stranger.fd}),
            (errno.ESTALE, {"expected_revision": 2}),
            (errno.EEXIST, {"prog": new}),
            (errno.EBADF, {"relative_fd": there.fd}),
            (errno.ENOENT, {"replace_fd": there.fd}),
            (errno.ERANGE, {"flags": BPF_F_REPLACE}),
        )
    assert netkit.query(primary, attach_type=which).prog_ids == ids(new)


@NETKIT_LISTS
def test_detach_checks_the_end_then_the_list(netkit_ends: Ends, sched_cls: LoadSchedCls, which: int) -> None:
    """MPROG-NETKIT-001, MPROG-DETACH-002, -003, -005, -007, -008, -010 to -012, -014."""
    primary, peer = netkit_ends
    there, linked, stranger = sched_cls(), sched_cls(), sched_cls()
    netkit.attach(primary, there, attach_type=which)
    with netkit.link(primary, linked, attach_type=which):
        mend(
            netkit.detach,
            {
                "target": NO_DEVICE,
                "prog": CLOSED_FD,
                "attach_type": which,
                "flags": BPF_F_REPLACE | BPF_F_ALLOW_MULTI,
                "relative_fd": CLOSED_FD,
                "expected_revision": STALE,
            },
            (errno.EINVAL, {"flags": BPF_F_REPLACE | BPF_F_BEFORE}),
            (errno.EBADF, {"prog": stranger}),
            *to_reach_the_list(primary, peer),
            (errno.EINVAL, {"flags": BPF_F_BEFORE}),
            (errno.ESTALE, {"expected_revision": 3}),
            (errno.EBADF, {"relative_fd": 0}),
            (errno.ENOENT, {"prog": linked}),
            (errno.EBUSY, {"prog": there}),
            (errno.ERANGE, {"flags": 0}),
        )
        assert netkit.query(primary, attach_type=which).prog_ids == ids(linked)


@NETKIT_LISTS
def test_link_creation_checks_the_program_then_the_end_then_the_list(
    netkit_ends: Ends, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-001, MPROG-LINK-002 to -005, -008."""
    primary, peer = netkit_ends
    there, new = sched_cls(), sched_cls()
    netkit.attach(primary, there, attach_type=which)
    with Prog.load(asm(mov(r0, 1), exit_()), uapi.BPF_PROG_TYPE_CGROUP_SKB) as of_another_type:
        link = mend(
            netkit.link,
            {
                "target": NO_DEVICE,
                "prog": CLOSED_FD,
                "attach_type": which,
                "flags": BPF_F_BEFORE,
                "relative_fd": CLOSED_FD,
                "expected_revision": STALE,
            },
            (errno.EBADF, {"prog": of_another_type}),
            (errno.EINVAL, {"prog": there}),
            *to_reach_the_list(primary, peer),
            (errno.ESTALE, {"expected_revision": 2}),
            (errno.EEXIST, {"prog": new}),
            (errno.EBADF, {"relative_fd": there.fd}),
        )
    assert isinstance(link, Link)
    with link:
        assert netkit.query(primary, attach_type=which).prog_ids == ids(new, there)
    assert netkit.query(primary, attach_type=which).prog_ids == ids(there)


@NETKIT_LISTS
def test_query_checks_the_end_then_its_own_flags(netkit_ends: Ends, which: int) -> None:
    """MPROG-NETKIT-001, MPROG-QUERY-002 to -004."""
    primary, peer = netkit_ends
    unknown = BPF_F_QUERY_EFFECTIVE << 1
    answer = mend(
        netkit.query,
        {"target": NO_DEVICE, "attach_type": which, "flags": unknown, "attach_flags": BPF_F_BEFORE},
        (errno.EINVAL, {"flags": BPF_F_QUERY_EFFECTIVE}),
        *to_reach_the_list(primary, peer),
        (errno.EINVAL, {"flags": 0}),
        (errno.EINVAL, {"attach_flags": 0}),
    )
    assert answer == netkit.query(primary, attach_type=which)


@NETKIT_LISTS
def test_detach_from_an_empty_list_says_so_before_it_looks_at_the_request(
    netkit_ends: Ends, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-005: REPLACE and a wrong revision don't matter, never used or emptied."""
    primary, _ = netkit_ends
    prog = sched_cls()

    def detach() -> None:
        netkit.detach(primary, prog, attach_type=which, flags=BPF_F_REPLACE, expected_revision=STALE)

    with refused(errno.ENOENT):
        detach()
    netkit.attach(primary, prog, attach_type=which)
    with refused(errno.EINVAL):
        detach()
    netkit.detach(primary, prog, attach_type=which)
    with refused(errno.ENOENT):
        detach()


@pytest.mark.parametrize("device", [LOOPBACK, "veth"], ids=["loopback", "veth"])
def test_a_device_of_another_kind_has_neither_list(
    netkit_pair: NetkitPair, dev: Device, device: int | str
) -> None:
    """MPROG-NETKIT-001, MPROG-PROBE-002."""
    target = dev if device == "veth" else device
    for which in (BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER):
        with refused(errno.ENXIO):
            netkit.query(target, attach_type=which)


def test_the_lists_are_out_of_reach_from_the_peers_namespace(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-001, -002: there the peer is no primary, and the primary is no device."""
    pair = netkit_pair()
    with pair.ns_b.entered():
        for which in (BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER):
            with refused(errno.EACCES):
                netkit.query(pair.b, attach_type=which)
            with refused(errno.ENODEV):
                netkit.query(pair.a, attach_type=which)
