# SPDX-License-Identifier: MIT
"""Queries as users make them: arrays too short, left out or somewhere bad, flags, nothing attached, a full list."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from typing import Any

import pytest

from harness.guest import qdisc
from harness.guest.bpf import netkit, tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import ARRAYS, CAPACITY, QueryResult
from harness.guest.bpf.probe import has, require
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import (
    BPF_F_QUERY_EFFECTIVE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids

UNTOUCHED = 0xA5A5A5A5
NO_DEVICE = 9999
# No attach type of any kernel (include/uapi/linux/bpf.h:enum bpf_attach_type).
NO_TYPE = 0xFFFF

TCX = (BPF_TCX_INGRESS, BPF_TCX_EGRESS)
NETKIT = (BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER)


@dataclass(frozen=True)
class Listed:
    """The list `A B* C` of one hook: the link owns B. `query` is the family's, for this hook."""

    query: Callable[..., QueryResult]
    a: Prog
    b: Prog
    c: Prog
    link: Link

    def arrays(self, count: int, passed: tuple[str, ...] = ARRAYS) -> dict[str, list[int]]:
        """What the arrays that are passed hold after a query in which `count` elements were written."""
        columns = {
            "prog_ids": ids(self.a, self.b, self.c),
            "link_ids": [0, self.link.id, 0],
            "prog_attach_flags": [0, 0, 0],
            "link_attach_flags": [0, 0, 0],
        }
        return {name: columns[name][:count] + [UNTOUCHED] * (CAPACITY - count) for name in passed}


@pytest.fixture(params=["tcx", "netkit"])
def listed(request: pytest.FixtureRequest, sched_cls: LoadSchedCls) -> Iterator[Listed]:
    """An egress list of tcx, and the list of a netkit pair's far end."""
    family: Any = tcx if request.param == "tcx" else netkit
    dev, _ = request.getfixturevalue("ends" if family is tcx else "netkit_ends")
    attach_type = BPF_TCX_EGRESS if family is tcx else BPF_NETKIT_PEER
    a, b, c = sched_cls(), sched_cls(), sched_cls()
    family.attach(dev, a, attach_type=attach_type)
    with family.link(dev, b, attach_type=attach_type) as link:
        family.attach(dev, c, attach_type=attach_type)
        yield Listed(partial(family.query, dev, attach_type=attach_type), a, b, c, link)


def test_arrays_hold_as_many_elements_as_fit(listed: Listed) -> None:
    """MPROG-QUERY-005 to -009, MPROG-REV-003: ENOSPC when they are too short, never when there is no room at all; the
    count is the true one, and what lies behind the array's end or the last element is left alone.
    """
    for count in (0, 1, 2, 3, 4, CAPACITY):
        found = listed.query(count=count, fill=UNTOUCHED, revision=77, tolerate=(errno.ENOSPC,))
        assert found.errno == (errno.ENOSPC if 0 < count < 3 else 0)
        assert (found.count, found.revision, found.attach_flags) == (3, 4, 0)
        assert found.arrays == listed.arrays(min(count, 3))


def test_each_array_may_be_left_out(listed: Listed) -> None:
    """MPROG-QUERY-006, -009: whichever others are passed; without program ids none is touched."""
    for passed in chain.from_iterable(combinations(ARRAYS, n) for n in range(len(ARRAYS) + 1)):
        for count, code in ((CAPACITY, 0), (2, errno.ENOSPC)):
            found = listed.query(arrays=passed, count=count, fill=UNTOUCHED, tolerate=(errno.ENOSPC,))
            written = min(count, 3) if "prog_ids" in passed else 0
            assert (found.errno, found.count, found.revision) == (code if written else 0, 3, 4), passed
            assert found.arrays == listed.arrays(written, passed), passed


def test_flags_are_refused_and_nothing_is_written(listed: Listed) -> None:
    """MPROG-QUERY-004, MPROG-ABI-004: neither EFFECTIVE nor any attach flag; not even the count comes back."""
    for options in (
        {"flags": BPF_F_QUERY_EFFECTIVE},
        *({"attach_flags": 1 << bit} for bit in range(32)),
        {"flags": 1 << 1},
        {"attach_type": NO_TYPE},
    ):
        found = listed.query(**options, count=2, fill=UNTOUCHED, revision=77, tolerate=tuple(errno.errorcode))
        assert found.errno == errno.EINVAL, options
        assert (found.count, found.revision) == (2, 77), options
        assert found.attach_flags == options.get("attach_flags", 0), options
        assert found.arrays == listed.arrays(0), options


@pytest.mark.parametrize("family", [tcx, netkit], ids=["tcx", "netkit"])
def test_the_device_is_looked_up_between_the_two_checks_of_flags(
    request: pytest.FixtureRequest, family: Any
) -> None:
    """MPROG-QUERY-002 to -004, MPROG-NETKIT-001: unknown query flags before it, EFFECTIVE and attach flags behind."""
    if family is netkit:
        require("netkit")
    for bit in range(1, 32):
        with refused(errno.EINVAL):
            family.query(NO_DEVICE, flags=1 << bit | BPF_F_QUERY_EFFECTIVE)
    for options in ({}, {"flags": BPF_F_QUERY_EFFECTIVE}, {"attach_flags": 1}):
        with refused(errno.ENODEV):
            family.query(NO_DEVICE, **options)


def test_an_empty_hook_has_revision_one_and_touches_no_array(
    request: pytest.FixtureRequest, ends: tuple[Device, Device]
) -> None:
    """MPROG-QUERY-006, -010, MPROG-REV-001, MPROG-FIX-003: in all four places, and where clsact keeps an entry."""
    held, bare = ends
    qdisc.add_clsact(held)
    hooks: list[tuple[Any, Device, int]] = [(tcx, dev, type_) for dev in (held, bare) for type_ in TCX]
    if has("netkit"):
        primary, _ = request.getfixturevalue("netkit_ends")
        hooks += [(netkit, primary, type_) for type_ in NETKIT]
    for family, dev, attach_type in hooks:
        for count in (0, 1, CAPACITY):
            found = family.query(dev, attach_type=attach_type, count=count, fill=UNTOUCHED, revision=77)
            assert (found.errno, found.count, found.revision, found.attach_flags) == (0, 0, 1, 0)
            assert found.arrays == {name: [UNTOUCHED] * CAPACITY for name in ARRAYS}


def test_a_full_list_fills_63_places(ends: tuple[Device, Device], sched_cls: LoadSchedCls) -> None:
    """MPROG-ABI-005, MPROG-QUERY-007, -008: not one less is enough, and the 64th place is never written."""
    dev, progs = ends[0], [sched_cls() for _ in range(63)]
    for prog in progs:
        tcx.attach(dev, prog)
    for count, code in ((62, errno.ENOSPC), (63, 0), (64, 0)):
        found = tcx.query(dev, count=count, fill=UNTOUCHED, tolerate=(errno.ENOSPC,))
        written = min(count, 63)
        assert (found.errno, found.count, found.revision) == (code, 63, 64)
        assert found.arrays["prog_ids"] == ids(*progs[:written]) + [UNTOUCHED] * (64 - written)
        assert found.arrays["link_ids"] == [0] * written + [UNTOUCHED] * (64 - written)
