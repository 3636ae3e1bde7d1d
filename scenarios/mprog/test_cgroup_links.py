# SPDX-License-Identifier: MIT
"""Links of a cgroup: refusals at creation, updates, detaching, and what becomes of them with the cgroup."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, call, exit_, ld_map_fd, mov, r0, r1, r2
from harness.guest.bpf.attrs import LinkUpdate
from harness.guest.bpf.cgroup import Cgroup, attach, detach, link, query
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import load_lsm_cgroup
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, bpf, errno_name, refused
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_QUERY_EFFECTIVE as EFFECTIVE
from harness.guest.bpf.uapi import BPF_F_REPLACE as REPLACE
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import LoadCgroupSkb, ids

UNKNOWN = 1 << 7
CLOSED = 1000


@dataclass(frozen=True)
class Linked:
    """`A* B* C` in `group`: links own A and B. D is in no list, `cls` is of another type."""

    group: Cgroup
    a: Prog
    b: Prog
    c: Prog
    d: Prog
    cls: Prog
    first: Link
    second: Link


@pytest.fixture
def linked(group: Cgroup, cgroup_skb: LoadCgroupSkb, sched_cls: LoadSchedCls) -> Iterator[Linked]:
    a, b, c, d = (cgroup_skb() for _ in range(4))
    with link(group, a) as first, link(group, b) as second:
        attach(group, c, flags=MULTI)
        yield Linked(group, a, b, c, d, sched_cls(), first, second)


Request = Callable[[Linked], object]

# MPROG-CGROUP-002, -003, -036, -038: where two things are wrong, the first one named here decides
CREATIONS: dict[str, tuple[int, Request]] = {
    "a flag of modes": (errno.EINVAL, lambda s: link(s.group, s.d, flags=MULTI)),
    "another flag of modes": (errno.EINVAL, lambda s: link(s.group, s.d, flags=OVERRIDE)),
    "REPLACE": (errno.EINVAL, lambda s: link(s.group, s.d, flags=REPLACE)),
    "an unknown flag": (errno.EINVAL, lambda s: link(s.group, s.d, flags=UNKNOWN)),
    "the highest flag": (errno.EINVAL, lambda s: link(s.group, s.d, flags=1 << 31)),
    "a closed program, unknown flag": (errno.EBADF, lambda s: link(s.group, CLOSED, flags=UNKNOWN)),
    "a link as program": (errno.EINVAL, lambda s: link(s.group, s.first.fd)),
    "a type that does not fit, closed target": (errno.EINVAL, lambda s: link(CLOSED, s.cls)),
    "an unknown flag, closed target": (errno.EINVAL, lambda s: link(CLOSED, s.d, flags=UNKNOWN)),
    "a closed target": (errno.EBADF, lambda s: link(CLOSED, s.d)),
    "a directory elsewhere": (errno.EBADF, lambda s: link("/proc", s.d)),
}
STALE_CREATIONS: dict[str, tuple[int, Request]] = {
    "stale": (errno.ESTALE, lambda s: link(s.group, s.d, expected_revision=1)),
    "closed target, stale": (errno.EBADF, lambda s: link(CLOSED, s.d, expected_revision=1)),
    "stale, closed anchor without a side": (
        errno.ESTALE,
        lambda s: link(s.group, s.d, relative_fd=CLOSED, expected_revision=1),
    ),
}
# MPROG-CGROUP-039 and the general checks before it; `second` owns B
UPDATES: dict[str, tuple[int, Request]] = {
    "an unknown flag": (errno.EINVAL, lambda s: s.second.update(s.d, flags=MULTI)),
    "a closed program": (errno.EBADF, lambda s: s.second.update(CLOSED)),
    "an old program but no REPLACE": (errno.EINVAL, lambda s: update_with_old(s.second, s.d, s.b)),
    "another old program": (errno.EPERM, lambda s: s.second.update(s.d, old=s.a)),
    "another old program, and a type that differs": (errno.EPERM, lambda s: s.second.update(s.cls, old=s.a)),
    "a type that differs": (errno.EINVAL, lambda s: s.second.update(s.cls)),
}


def update_with_old(link: Link, new: Prog, old: Prog) -> None:
    """BPF_LINK_UPDATE that names the old program without the flag for it."""
    bpf(uapi.BPF_LINK_UPDATE, LinkUpdate(link_fd=link.fd, new_prog_fd=new.fd, old_prog_fd=old.fd))


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(CREATIONS, id="creation"),
        pytest.param(STALE_CREATIONS, id="revision", marks=pytest.mark.requires("cgroup_mprog")),
        pytest.param(UPDATES, id="update"),
    ],
)
def test_a_refused_request_changes_neither_list_nor_link(
    linked: Linked, cases: dict[str, tuple[int, Request]]
) -> None:
    """MPROG-CGROUP-002, -003, -007, -036, -038, -039."""

    def outcome(request: Request) -> str:
        try:
            request(linked)
        except BpfError as error:
            return error.errno_name
        return ""

    before = query(linked.group), linked.second.info()
    found = {name: outcome(request) for name, (_, request) in cases.items()}
    assert found == {name: errno_name(number) for name, (number, _) in cases.items()}
    assert (query(linked.group), linked.second.info()) == before


def test_an_update_keeps_the_place_and_frees_the_old_program(linked: Linked) -> None:
    """MPROG-CGROUP-039, -046: in the cgroup and below it, whoever may hold the program besides."""
    below = linked.group.child("below")
    old = linked.b.id
    linked.second.update(linked.c, old=linked.b)
    assert query(linked.group).prog_ids == ids(linked.a, linked.c, linked.c)
    assert query(below, flags=EFFECTIVE).prog_ids == ids(linked.a, linked.c, linked.c)
    assert linked.second.info().prog_id == linked.c.id
    linked.b.close()
    wait_until(lambda: old not in Prog.ids(), timeout=2, what="the old program to go")


@pytest.mark.requires("cgroup_mprog")
def test_every_update_counts_even_one_that_changes_nothing(linked: Linked) -> None:
    """MPROG-CGROUP-039, -041, MPROG-QUIRK-009."""
    before = query(linked.group)
    linked.second.update(linked.b)
    after = query(linked.group)
    assert (after.prog_ids, after.revision) == (before.prog_ids, before.revision + 1)


@pytest.mark.known_issue("CGROUP-LINK-ATTACH-TYPE", reason="an update looks at the program's type only")
def test_an_update_to_a_program_for_another_attach_type_is_refused(group: Cgroup) -> None:
    """MPROG-CGROUP-039, -002: as it would be refused when it is attached."""
    types = uapi.BPF_CGROUP_INET4_CONNECT, uapi.BPF_CGROUP_INET4_BIND
    with ExitStack() as stack:
        connect, bind = (
            stack.enter_context(
                Prog.load(
                    asm(mov(r0, 1), exit_()),
                    uapi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                    expected_attach_type=attach_type,
                )
            )
            for attach_type in types
        )
        owner = stack.enter_context(link(group, connect, attach_type=types[0]))
        with refused(errno.EINVAL):
            link(group, bind, attach_type=types[0])
        with refused(errno.EINVAL):
            owner.update(bind)


def test_an_update_must_keep_the_cgroup_storage(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-039: another storage map, one instead of none, and none instead of one are refused."""

    def load(storage: Map) -> Prog:
        use = ld_map_fd(r1, storage), mov(r2, 0), call(uapi.BPF_FUNC_get_local_storage)
        return stack.enter_context(Prog.load(asm(use, mov(r0, 1), exit_()), uapi.BPF_PROG_TYPE_CGROUP_SKB))

    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_CGROUP_STORAGE, 16, 8, 0)) for _ in range(2)
        )
        a, same, other, without = load(one), load(one), load(two), cgroup_skb()
        with link(group, a) as stored, link(group, without) as plain:
            for owner, prog in ((stored, other), (stored, without), (plain, a)):
                with refused(errno.EINVAL):
                    owner.update(prog)
            stored.update(same)
            assert query(group).prog_ids == ids(same, without)


def test_a_detached_link_is_an_empty_object(linked: Linked) -> None:
    """MPROG-CGROUP-039, -040: detaching again is no error; ENOLINK comes before all else that is wrong."""
    assert linked.second.info().cgroup_id == linked.group.id
    linked.second.detach()
    linked.second.detach()
    assert query(linked.group).prog_ids == ids(linked.a, linked.c)
    info = linked.second.info()
    assert (info.cgroup_id, info.prog_id, info.attach_type) == (
        0,
        linked.b.id,
        uapi.BPF_CGROUP_INET_EGRESS,
    )
    with refused(errno.ENOLINK):
        linked.second.update(linked.cls, old=linked.a)
    with refused(errno.ENOENT):
        detach(linked.group, linked.b)


def test_closing_a_link_releases_its_program(linked: Linked) -> None:
    """MPROG-CGROUP-033, -040: which a direct detach does not."""
    prog = linked.b.id
    linked.b.close()
    with Prog.from_id(prog) as again, refused(errno.ENOENT):
        detach(linked.group, again)
    linked.second.close()
    assert query(linked.group).prog_ids == ids(linked.a, linked.c)
    wait_until(lambda: prog not in Prog.ids(), timeout=2, what="the link's program to go")


def test_a_removed_cgroup_lets_go_of_programs_and_empties_links(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-003, -039, -040: in the background; a link keeps its program."""
    a, b, c = (cgroup_skb() for _ in range(3))
    removed = group.child("removed")
    attach(removed, a, flags=MULTI)
    direct = a.id
    with link(removed, b) as owner:
        a.close()
        removed.path.rmdir()
        for request in (
            lambda: query(removed),
            lambda: attach(removed, c, flags=MULTI),
            lambda: link(removed, c),
            lambda: detach(removed, c),
        ):
            with refused(errno.ENOENT):
                request()
        wait_until(lambda: owner.info().cgroup_id == 0, timeout=5, what="the link to lose its cgroup")
        wait_until(lambda: direct not in Prog.ids(), timeout=5, what="the direct program to go")
        assert owner.info().prog_id == b.id
        with refused(errno.ENOLINK):
            owner.update(c)
        owner.detach()


def test_a_socket_keeps_the_programs_of_its_removed_cgroup(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-040: until it is closed; meanwhile the link works as ever."""
    a, b = cgroup_skb(), cgroup_skb()
    removed = group.child("removed")
    with link(removed, a) as owner:
        with removed.entered():
            used = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        removed.path.rmdir()
        owner.update(b)
        assert (owner.info().cgroup_id, owner.info().prog_id) == (removed.id, b.id)
        used.close()
        wait_until(lambda: owner.info().cgroup_id == 0, timeout=5, what="the link to lose its cgroup")


@pytest.mark.requires("cgroup_lsm")
def test_an_update_looks_for_the_link_in_the_list_of_the_new_hook(group: Cgroup) -> None:
    """MPROG-CGROUP-039: each LSM hook has a list of its own, and the link is in that of the old one."""
    with (
        load_lsm_cgroup("socket_bind") as bind,
        load_lsm_cgroup("socket_bind") as same,
        load_lsm_cgroup("socket_listen") as listen,
        link(group, bind, attach_type=uapi.BPF_LSM_CGROUP) as owner,
    ):
        with refused(errno.ENOENT):
            owner.update(listen)
        owner.update(same)
        assert owner.info().prog_id == same.id
