# SPDX-License-Identifier: MIT
"""What a query of a cgroup tells, and what the two eras of its lists know."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.cgroup import Cgroup, attach, detach, link, query
from harness.guest.bpf.mprog import ARRAYS
from harness.guest.bpf.probe import has, load_lsm_cgroup
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_F_AFTER as AFTER
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_BEFORE as BEFORE
from harness.guest.bpf.uapi import BPF_F_PREORDER as PREORDER
from harness.guest.bpf.uapi import BPF_F_QUERY_EFFECTIVE as EFFECTIVE
from scenarios.mprog.conftest import LoadCgroupSkb, ids

CLOSED = 1000
UNTOUCHED = 0xA5A5A5A5
STALE = 0x5EED5EED5EED
INGRESS = uapi.BPF_CGROUP_INET_INGRESS
LSM = uapi.BPF_LSM_CGROUP


@dataclass(frozen=True)
class Family:
    """`below` holds `A B*` (a link owns B), `group` above it holds C, both in MULTI mode."""

    group: Cgroup
    below: Cgroup
    a: Prog
    b: Prog
    c: Prog


@pytest.fixture
def family(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> Iterator[Family]:
    a, b, c = (cgroup_skb() for _ in range(3))
    below = group.child("below")
    attach(group, c, flags=MULTI)
    attach(below, a, flags=MULTI)
    with link(below, b):
        yield Family(group, below, a, b, c)


def test_a_query_tells_mode_and_programs(family: Family) -> None:
    """MPROG-CGROUP-042, -046: of the list as it is, or of all that runs, which has no mode."""
    own, effective = query(family.below), query(family.below, flags=EFFECTIVE)
    assert (own.count, own.prog_ids, own.attach_flags) == (2, ids(family.a, family.b), MULTI)
    assert (effective.count, effective.prog_ids) == (3, ids(family.a, family.b, family.c))
    assert effective.attach_flags == 0


@pytest.mark.requires("cgroup_mprog")
def test_a_query_tells_the_revision_of_the_list_but_not_of_all_that_runs(family: Family) -> None:
    """MPROG-CGROUP-041, -042, MPROG-PROBE-003: whatever number was in its place before."""
    assert query(family.below, revision=STALE).revision == 3
    assert query(family.below, revision=STALE, flags=EFFECTIVE).revision == 0
    assert query(family.below, revision=STALE, count=0).revision == 3
    assert query(family.below, revision=STALE, attach_type=INGRESS).revision == 1


@pytest.mark.parametrize("flags", [0, EFFECTIVE], ids=["own", "effective"])
def test_a_query_with_a_short_array_gives_the_first_and_the_true_count(family: Family, flags: int) -> None:
    """MPROG-CGROUP-042, -044: nothing is written behind the array's end; no array at all is no error."""
    full = query(family.below, flags=flags)
    short = query(family.below, flags=flags, count=1, fill=UNTOUCHED, tolerate=(errno.ENOSPC,))
    assert (short.errno, short.count) == (errno.ENOSPC, full.count)
    assert short.arrays["prog_ids"][:2] == [*ids(family.a), UNTOUCHED]
    assert (short.attach_flags, short.revision) == (full.attach_flags, full.revision)
    exact = query(family.below, flags=flags, count=full.count, fill=UNTOUCHED)
    assert exact.arrays["prog_ids"][: full.count + 1] == [*full.prog_ids, UNTOUCHED]
    for counted in (
        query(family.below, flags=flags, count=0, fill=UNTOUCHED),
        query(family.below, flags=flags, count=1, arrays=()),
    ):
        assert (counted.errno, counted.count, counted.revision) == (0, full.count, full.revision)
        assert set(counted.arrays.get("prog_ids", ())) <= {UNTOUCHED}


def test_each_program_has_the_flags_of_its_list(family: Family, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-042, -043: in an array of their own; what runs has none, and must not be asked for them."""
    arrays = ("prog_ids", "prog_attach_flags")
    assert query(family.below, arrays=arrays, fill=UNTOUCHED).arrays["prog_attach_flags"][:3] == [
        MULTI,
        MULTI,
        UNTOUCHED,
    ]
    with refused(errno.EINVAL):
        query(family.below, arrays=arrays, flags=EFFECTIVE)
    with refused(errno.EINVAL):
        query(family.below, arrays=("prog_attach_flags",), flags=EFFECTIVE, count=0)
    single = family.group.child("single")
    attach(single, cgroup_skb(), flags=OVERRIDE)
    assert query(single, arrays=arrays).prog_attach_flags == [OVERRIDE]


@pytest.mark.requires("cgroup_mprog")
def test_links_are_listed_by_their_programs_only(family: Family) -> None:
    """MPROG-CGROUP-046: the arrays for links stay as they were; `attach_flags` need not be 0 before."""
    found = query(family.below, arrays=ARRAYS, fill=UNTOUCHED, attach_flags=OVERRIDE)
    assert found.prog_ids == ids(family.a, family.b)
    assert found.attach_flags == MULTI
    assert set(found.arrays["link_ids"] + found.arrays["link_attach_flags"]) == {UNTOUCHED}


def test_a_query_is_refused_before_anything_is_written(family: Family) -> None:
    """MPROG-CGROUP-003, -042."""
    with refused(errno.EINVAL):
        query(family.below, flags=EFFECTIVE << 1)
    with refused(errno.EINVAL):
        query(CLOSED, flags=EFFECTIVE << 1)
    with refused(errno.EBADF):
        query(CLOSED)
    with refused(errno.EBADF):
        query("/proc")
    with refused(errno.EBADF):
        query(CLOSED, flags=EFFECTIVE, arrays=("prog_ids", "prog_attach_flags"))


def test_attach_types_of_a_cgroup_are_lists_of_their_own(family: Family, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-009, -041: with a mode and a revision each."""
    d = cgroup_skb()
    before = query(family.below)
    attach(family.below, d, attach_type=INGRESS)
    found = query(family.below, attach_type=INGRESS)
    assert (found.prog_ids, found.attach_flags) == (ids(d), 0)
    assert query(family.below) == before
    if has("cgroup_mprog"):
        assert found.revision == 2


@pytest.mark.requires("cgroup_lsm")
def test_a_query_of_lsm_programs_goes_through_all_hooks(group: Cgroup) -> None:
    """MPROG-CGROUP-042, -043, -044: it wants to know each program's flags, and has no revision."""
    arrays = ("prog_ids", "prog_attach_flags")
    with (
        load_lsm_cgroup("socket_bind") as bind,
        load_lsm_cgroup("socket_listen") as listen,
        link(group, bind, attach_type=LSM),
        link(group, listen, attach_type=LSM),
    ):
        found = query(group, attach_type=LSM, arrays=arrays)
        assert sorted(found.prog_ids) == sorted(ids(bind, listen))
        assert (found.prog_attach_flags, found.attach_flags, found.revision) == ([MULTI, MULTI], 0, 0)
        assert query(group, attach_type=LSM, arrays=(), count=1).count == 2
        with refused(errno.EINVAL):
            query(group, attach_type=LSM)
        short = query(group, attach_type=LSM, arrays=arrays, count=1, tolerate=(errno.ENOSPC,))
        assert (short.errno, short.count, short.prog_ids) == (errno.ENOSPC, 2, found.prog_ids[:1])
        running = query(group.child("below"), attach_type=LSM, flags=EFFECTIVE)
        assert (running.prog_ids, running.revision) == (found.prog_ids, 0)


def test_each_era_takes_the_requests_that_it_knows(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-PROBE-003, -005, MPROG-CGROUP-001, -030, -036: BEFORE and the like, or EINVAL."""
    a, b = cgroup_skb(), cgroup_skb()
    anchored = {
        "BEFORE": {"flags": MULTI | BEFORE},
        "AFTER": {"flags": MULTI | AFTER},
        "anchor": {"flags": MULTI | AFTER, "relative": a},
        "revision": {"flags": MULTI, "expected_revision": 2},
        "PREORDER": {"flags": MULTI | PREORDER},
    }
    known = {name: has("cgroup_preorder" if name == "PREORDER" else "cgroup_mprog") for name in anchored}
    for name, request in anchored.items():
        there = group.child(name)
        attach(there, a, flags=MULTI)
        with ExitStack() as stack:
            if not known[name]:
                stack.enter_context(refused(errno.EINVAL))
            attach(there, b, **request)  # type: ignore[arg-type]
        assert query(there).count == 1 + known[name], name
    with ExitStack() as stack:
        if not has("cgroup_mprog"):
            stack.enter_context(refused(errno.EINVAL))
        detach(group.path / "BEFORE", a, expected_revision=3)
    with ExitStack() as stack:
        if not has("cgroup_mprog"):
            stack.enter_context(refused(errno.EINVAL))
        link(group.path / "AFTER", a, flags=BEFORE).close()
