# SPDX-License-Identifier: MIT
"""Who may do what: to hold a program is enough to attach it, to look at lists is not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.guest.bpf import cgroup, netkit, tcx
from harness.guest.bpf.attrs import Attr, ProgQuery
from harness.guest.bpf.link import Link
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import bpf
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_QUERY_EFFECTIVE,
    BPF_PROG_QUERY,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.errnos import errno_of
from harness.guest.netns import libc
from harness.guest.privilege import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    CLONE_NEWUSER,
    as_nobody,
    unprivileged_bpf,
    with_only,
)
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry

NO_DEVICE = 9999

# Who has which capabilities.
HOLDERS: dict[str, tuple[int, ...]] = {
    "no capability": (),
    "BPF and PERFMON": (CAP_BPF, CAP_PERFMON),
    "NET_ADMIN": (CAP_NET_ADMIN,),
    "SYS_ADMIN": (CAP_SYS_ADMIN,),
}


def ids_of(kind: type[Prog] | type[Link]) -> list[int]:
    return list(kind.ids())


def permitted(call: Callable[[], object]) -> frozenset[str]:
    """Who may make the call; the others must get EPERM."""
    codes = {who: with_only(held, errno_of, call) for who, held in HOLDERS.items()}
    assert set(codes.values()) <= {0, errno.EPERM}, codes
    return frozenset(who for who, code in codes.items() if code == 0)


def anonymous_detach_is_checked() -> bool:
    """MPROG-PROBE-004."""
    code = with_only((), errno_of, partial(tcx.detach, NO_DEVICE))
    assert code in (errno.EPERM, errno.ENODEV)
    return code == errno.EPERM


@pytest.fixture
def admins() -> frozenset[str]:
    """Who may look at lists: CAP_SYS_ADMIN counts since 6.9, which is also when tokens came."""
    return frozenset({"NET_ADMIN", "SYS_ADMIN"} if has("struct:bpf_token") else {"NET_ADMIN"})


@pytest.mark.parametrize("allowed", [True, False], ids=["unprivileged bpf", "no unprivileged bpf"])
def test_queries_are_for_administrators(
    request: pytest.FixtureRequest,
    entry: Entry,
    groups: tuple[Path, Path],
    admins: frozenset[str],
    allowed: bool,
) -> None:
    """MPROG-QUERY-001, MPROG-PROBE-001: in every family, whether or not unprivileged users may load programs."""
    with unprivileged_bpf(allowed=allowed):
        for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
            assert permitted(partial(tcx.query, entry.dev, attach_type=attach_type)) == admins
        assert permitted(partial(cgroup.query, groups[0])) == admins
        if has("netkit"):
            primary, _ = request.getfixturevalue("netkit_ends")
            assert permitted(partial(netkit.query, primary)) == admins


def test_the_right_to_query_is_looked_at_before_the_query(entry: Entry) -> None:
    """MPROG-QUERY-001, MPROG-ABI-006: before tail, flags, type and device; only bytes behind all that the kernel knows
    are noticed earlier.
    """
    right = {"target_ifindex": entry.dev.ifindex, "attach_type": BPF_TCX_INGRESS}
    known = bytes(ProgQuery(**right))
    wrong: list[Attr | bytes] = [
        ProgQuery(**right | {"target_ifindex": NO_DEVICE}),
        ProgQuery(**right | {"attach_type": 0xFFFF}),
        ProgQuery(**right, query_flags=BPF_F_QUERY_EFFECTIVE),
        ProgQuery(**right, query_flags=1 << 5),
        known + b"\1",
    ]
    for attr in wrong:
        assert errno_of(partial(bpf, BPF_PROG_QUERY, attr)) in (errno.ENODEV, errno.EINVAL)
        assert with_only((), errno_of, partial(bpf, BPF_PROG_QUERY, attr)) == errno.EPERM
    far_behind = known.ljust(4000, b"\0") + b"\1"
    assert with_only((), errno_of, partial(bpf, BPF_PROG_QUERY, far_behind)) == errno.E2BIG


def test_only_the_system_administrator_lists_and_opens_ids(entry: Entry) -> None:
    """MPROG-LINK-046: ids of links as of programs; with them in hand nobody else gets any further."""
    for kind, known in ((Link, entry.link.id), (Prog, entry.a.id)):
        assert permitted(partial(ids_of, kind)) == {"SYS_ADMIN"}
        assert permitted(partial(kind.from_id, known)) == {"SYS_ADMIN"}


@pytest.mark.parametrize("family", [tcx, netkit], ids=["tcx", "netkit"])
def test_detaching_without_naming_a_program_is_for_administrators(
    request: pytest.FixtureRequest, sched_cls: LoadSchedCls, family: Any
) -> None:
    """MPROG-DETACH-002, -004, MPROG-PROBE-004, MPROG-QUIRK-010: where kernels ask, after the flags and before
    the device; where they don't, anybody may.
    """
    dev, _ = request.getfixturevalue("ends" if family is tcx else "netkit_ends")
    checked = anonymous_detach_is_checked()
    prog = sched_cls()
    allowed = set()
    for who, held in HOLDERS.items():
        family.attach(dev, prog)
        code = with_only(held, errno_of, partial(family.detach, dev))
        assert (code, family.query(dev).count) in ((0, 0), (errno.EPERM, 1)), who
        if code == 0:
            allowed.add(who)
        else:
            family.detach(dev, prog)
    assert allowed == ({"NET_ADMIN", "SYS_ADMIN"} if checked else set(HOLDERS))
    for nowhere in (dev, NO_DEVICE):
        flags = partial(family.detach, nowhere, flags=BPF_F_ALLOW_MULTI)
        assert with_only((), errno_of, flags) == errno.EINVAL


def test_nobody_may_use_what_he_holds_and_look_at_nothing(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-QUERY-001, MPROG-DETACH-004, MPROG-LINK-046, MPROG-ANCHOR-011: a user without any privilege who was handed
    programs and a link attaches, replaces, updates and detaches them, also beside what he only knows the id of. That
    does not change when he becomes root of a user namespace.
    """
    dev, d, e = entry.dev, sched_cls(), sched_cls()
    link, owner, neighbour = entry.link, entry.link.id, entry.c.id
    entry.c.close()
    before, checked = tcx.query(dev), anonymous_detach_is_checked()

    def use() -> None:
        tcx.attach(dev, d, flags=BPF_F_AFTER | BPF_F_ID, relative_id=neighbour)
        tcx.attach(dev, e, replace=d)
        tcx.detach(dev, e)
        with tcx.link(dev, d, flags=BPF_F_BEFORE | BPF_F_ID | BPF_F_LINK, relative_id=owner) as own:
            own.update(e)
            own.detach()
        link.update(d)
        link.update(entry.b)

    def look() -> list[int]:
        calls: list[Callable[[], object]] = [
            partial(tcx.query, dev),
            partial(ids_of, Link),
            partial(Link.from_id, owner),
            partial(Prog.from_id, neighbour),
        ]
        if checked:
            calls.append(partial(tcx.detach, dev))
        return [errno_of(call) for call in calls]

    def twice() -> list[list[int]]:
        use()
        seen = [look()]
        if libc().unshare(CLONE_NEWUSER) == 0:
            use()
            seen.append(look())
        return seen

    seen = as_nobody(twice)
    assert {code for codes in seen for code in codes} == {errno.EPERM}, seen
    after = tcx.query(dev)
    assert after.revision == before.revision + 8 * len(seen)
    assert (after.prog_ids, after.link_ids) == (before.prog_ids, before.link_ids)
