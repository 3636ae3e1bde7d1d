# SPDX-License-Identifier: MIT
"""Attaching to a cgroup: which errno for which mistake, and which of two mistakes is the one that counts."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.cgroup import Cgroup, attach, link, query
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, errno_name, refused
from harness.guest.bpf.uapi import BPF_F_AFTER as AFTER
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_BEFORE as BEFORE
from harness.guest.bpf.uapi import BPF_F_ID as ID
from harness.guest.bpf.uapi import BPF_F_LINK as LINK
from harness.guest.bpf.uapi import BPF_F_PREORDER as PREORDER
from harness.guest.bpf.uapi import BPF_F_REPLACE as REPLACE
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import LoadCgroupSkb

UNKNOWN = 1 << 7
CLOSED = 1000
NO_ID = 0x7FFFFFFF
FIRST = 1  # the revision of a list that was never changed


@dataclass(frozen=True)
class Stage:
    """`main` holds `A B* C` in MULTI mode; the link owns B. `single` holds A in OVERRIDE mode, `locked` holds A, and
    the cgroup above it a program that allows no others below; `gone` is removed, its descriptor open. D is in no
    list; `bind4` is for another attach type, `cls` for no cgroup at all, `array` is no program.
    """

    main: Cgroup
    single: Cgroup
    locked: Cgroup
    empty: Cgroup
    gone: Cgroup
    a: Prog
    b: Prog
    c: Prog
    d: Prog
    bind4: Prog
    cls: Prog
    array: Map
    link: Link

    def seen(self) -> list[object]:
        """All lists, and what a query says of each."""
        return [query(group) for group in (self.main, self.single, self.locked, self.empty)]


@pytest.fixture
def stage(group: Cgroup, cgroup_skb: LoadCgroupSkb, sched_cls: LoadSchedCls) -> Iterator[Stage]:
    main, locking = group.child("main"), group.child("locking")
    a, b, c, d = (cgroup_skb() for _ in range(4))
    attach(main, a, flags=MULTI)
    with (
        link(main, b) as owner,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY) as array,
        Prog.load(
            asm(mov(r0, 1), exit_()),
            uapi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            expected_attach_type=uapi.BPF_CGROUP_INET4_BIND,
        ) as bind4,
    ):
        attach(main, c, flags=MULTI)
        single, locked, empty, gone = (
            group.child("single"),
            locking.child("locked"),
            group.child("empty"),
            group.child("gone"),
        )
        attach(single, a, flags=OVERRIDE)
        attach(locked, a, flags=MULTI)
        attach(locking, a)
        gone.path.rmdir()
        yield Stage(main, single, locked, empty, gone, a, b, c, d, bind4, sched_cls(), array, owner)


Cases = Mapping[str, tuple[int, Callable[[Stage], object]]]


def refusals(stage: Stage, cases: Cases) -> dict[str, str]:
    """The errno with which each request is refused, by name; "" if it is not."""

    def outcome(request: Callable[[Stage], object]) -> str:
        try:
            request(stage)
        except BpfError as error:
            return error.errno_name
        return ""

    return {name: outcome(request) for name, (_, request) in cases.items()}


def expected(cases: Cases) -> dict[str, str]:
    return {name: errno_name(number) for name, (number, _) in cases.items()}


PLAIN: Cases = {
    "an unknown flag": (errno.EINVAL, lambda s: attach(s.main, s.d, flags=MULTI | UNKNOWN)),
    "a closed program": (errno.EBADF, lambda s: attach(s.main, CLOSED, flags=MULTI)),
    "a map as program": (errno.EINVAL, lambda s: attach(s.main, s.array.fd, flags=MULTI)),
    "a program of another type": (errno.EINVAL, lambda s: attach(s.main, s.cls, flags=MULTI)),
    "a program for another attach type": (
        errno.EINVAL,
        lambda s: attach(s.main, s.bind4, attach_type=uapi.BPF_CGROUP_INET4_CONNECT, flags=MULTI),
    ),
    "a closed target": (errno.EBADF, lambda s: attach(CLOSED, s.d, flags=MULTI)),
    "a directory elsewhere": (errno.EBADF, lambda s: attach("/proc", s.d, flags=MULTI)),
    "a removed cgroup": (errno.ENOENT, lambda s: attach(s.gone, s.d, flags=MULTI)),
    "replacing what is closed": (
        errno.EBADF,
        lambda s: attach(s.main, s.d, flags=MULTI | REPLACE, replace_fd=CLOSED),
    ),
    "replacing what is of another type": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI, replace=s.cls),
    ),
    "two modes": (errno.EINVAL, lambda s: attach(s.empty, s.d, flags=MULTI | OVERRIDE)),
    "replacing in NONE mode": (errno.EINVAL, lambda s: attach(s.empty, s.d, replace=s.d)),
    "replacing in OVERRIDE mode": (
        errno.EINVAL,
        lambda s: attach(s.single, s.d, flags=OVERRIDE, replace=s.a),
    ),
    "what the ancestor forbids": (errno.EPERM, lambda s: attach(s.locked, s.d, flags=MULTI)),
    "another mode": (errno.EPERM, lambda s: attach(s.main, s.d, flags=OVERRIDE)),
    "no mode": (errno.EPERM, lambda s: attach(s.main, s.d)),
    "what is there": (errno.EINVAL, lambda s: attach(s.main, s.c, flags=MULTI)),
    "replacing a stranger": (errno.ENOENT, lambda s: attach(s.empty, s.a, flags=MULTI, replace=s.d)),
    "replacing what a link owns": (errno.ENOENT, lambda s: attach(s.main, s.d, flags=MULTI, replace=s.b)),
}

# Two mistakes in each request: the check that comes first decides. Neighbours with one errno are told apart by
# the next check that has another.
PLAIN_PAIRS: Cases = {
    "unknown flag, closed program": (
        errno.EINVAL,
        lambda s: attach(s.main, CLOSED, flags=MULTI | UNKNOWN),
    ),
    "map as program, closed target": (errno.EINVAL, lambda s: attach(CLOSED, s.array.fd, flags=MULTI)),
    "closed program, removed target": (errno.EBADF, lambda s: attach(s.gone, CLOSED, flags=MULTI)),
    "program for another attach type, closed target": (
        errno.EINVAL,
        lambda s: attach(CLOSED, s.bind4, attach_type=uapi.BPF_CGROUP_INET4_CONNECT, flags=MULTI),
    ),
    "closed target, map to replace": (
        errno.EBADF,
        lambda s: attach(CLOSED, s.d, flags=MULTI | REPLACE, replace_fd=s.array.fd),
    ),
    "removed target, closed program to replace": (
        errno.ENOENT,
        lambda s: attach(s.gone, s.d, flags=MULTI | REPLACE, replace_fd=CLOSED),
    ),
    "closed program to replace, two modes": (
        errno.EBADF,
        lambda s: attach(s.main, s.d, flags=MULTI | OVERRIDE | REPLACE, replace_fd=CLOSED),
    ),
    "closed program to replace but no MULTI": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=REPLACE, replace_fd=CLOSED),
    ),
    "two modes, ancestor forbids": (
        errno.EINVAL,
        lambda s: attach(s.locked, s.d, flags=MULTI | OVERRIDE),
    ),
    "ancestor forbids, there already": (errno.EPERM, lambda s: attach(s.locked, s.a, flags=MULTI)),
    "another mode, stranger to replace": (
        errno.EPERM,
        lambda s: attach(s.single, s.d, flags=MULTI, replace=s.c),
    ),
    "there already, stranger to replace": (
        errno.EINVAL,
        lambda s: attach(s.main, s.a, flags=MULTI, replace=s.d),
    ),
}

POSITIONS: Cases = {
    "replacing at a place": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | AFTER, replace=s.c),
    ),
    "a stale revision": (errno.ESTALE, lambda s: attach(s.main, s.d, flags=MULTI, expected_revision=FIRST)),
    "an anchor but no side": (errno.EINVAL, lambda s: attach(s.main, s.d, flags=MULTI, relative=s.a)),
    "an anchor and both sides": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | AFTER, relative=s.a),
    ),
    "ID but no side": (errno.EINVAL, lambda s: attach(s.main, s.d, flags=MULTI | ID)),
    "a program at a link": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE, relative=s.link),
    ),
    "a link at a program": (errno.EINVAL, lambda s: link(s.main, s.d, flags=BEFORE, relative=s.a)),
    "both sides of nothing": (errno.EINVAL, lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | AFTER)),
    "a closed anchor": (
        errno.EBADF,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE, relative_fd=CLOSED),
    ),
    "a map as anchor": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE, relative_fd=s.array.fd),
    ),
    "an unknown id": (
        errno.ENOENT,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | ID, relative_id=NO_ID),
    ),
    "id 0": (errno.ENOENT, lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | ID)),
    "link number 0": (errno.EINVAL, lambda s: link(s.main, s.d, flags=BEFORE | LINK)),
    "link id 0": (errno.ENOENT, lambda s: link(s.main, s.d, flags=BEFORE | LINK | ID)),
    "a program as link anchor": (
        errno.EINVAL,
        lambda s: link(s.main, s.d, flags=BEFORE | LINK, relative_fd=s.a.fd),
    ),
    "a closed link anchor": (
        errno.EBADF,
        lambda s: link(s.main, s.d, flags=BEFORE | LINK, relative_fd=CLOSED),
    ),
    "an early one beside a late one": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | PREORDER, relative=s.a),
    ),
    "an early link beside a late one": (
        errno.EINVAL,
        lambda s: link(s.main, s.d, flags=BEFORE | PREORDER, relative=s.link),
    ),
    "beside a stranger": (errno.ENOENT, lambda s: attach(s.empty, s.d, flags=MULTI | BEFORE, relative=s.a)),
    "beside itself": (errno.ENOENT, lambda s: attach(s.main, s.d, flags=MULTI | BEFORE, relative=s.d)),
    "beside what a link owns": (
        errno.ENOENT,
        lambda s: attach(s.main, s.d, flags=MULTI | AFTER, relative=s.b),
    ),
    "beside a program of another type": (
        errno.ENOENT,
        lambda s: attach(s.main, s.d, flags=MULTI | AFTER, relative=s.cls),
    ),
    "beside a link of another cgroup": (
        errno.ENOENT,
        lambda s: link(s.empty, s.d, flags=AFTER, relative=s.link),
    ),
}

POSITION_PAIRS: Cases = {
    "replacing at a place, stale": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE, replace=s.c, expected_revision=FIRST),
    ),
    "stale, ancestor forbids": (
        errno.ESTALE,
        lambda s: attach(s.locked, s.d, flags=MULTI, expected_revision=FIRST),
    ),
    "stale, another mode": (errno.ESTALE, lambda s: attach(s.main, s.d, expected_revision=FIRST)),
    "there already, closed anchor": (
        errno.EINVAL,
        lambda s: attach(s.main, s.a, flags=MULTI | BEFORE, relative_fd=CLOSED),
    ),
    "stranger to replace, anchor but no side": (
        errno.ENOENT,
        lambda s: attach(s.main, s.d, flags=MULTI, replace=s.b, relative=s.a),
    ),
    "closed anchor but no side": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI, relative_fd=CLOSED),
    ),
    "unknown id but both sides": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | AFTER | ID, relative_id=NO_ID),
    ),
    "closed link at a program": (
        errno.EINVAL,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | LINK, relative_fd=CLOSED),
    ),
    "closed program at a link": (errno.EINVAL, lambda s: link(s.main, s.d, flags=BEFORE, relative_fd=CLOSED)),
    "early, beside a stranger": (
        errno.ENOENT,
        lambda s: attach(s.main, s.d, flags=MULTI | BEFORE | PREORDER, relative=s.d),
    ),
}


def test_a_refused_request_changes_nothing(stage: Stage) -> None:
    """MPROG-CGROUP-001 to -005, -008, -009, -011, -012."""
    before = stage.seen()
    assert refusals(stage, PLAIN) == expected(PLAIN)
    assert stage.seen() == before


def test_of_two_mistakes_the_first_in_the_order_of_checks_decides(stage: Stage) -> None:
    """MPROG-CGROUP-001 to -005, -008, -009, -011, -012."""
    before = stage.seen()
    assert refusals(stage, PLAIN_PAIRS) == expected(PLAIN_PAIRS)
    assert stage.seen() == before


def test_a_target_is_the_directory_of_a_cgroup_of_version_2(
    group: Cgroup, cgroup_skb: LoadCgroupSkb, tmp_path: Path
) -> None:
    """MPROG-CGROUP-003: not a file in it, nor a cgroup of version 1."""
    a = cgroup_skb()
    with (group.path / "cgroup.procs").open() as file, refused(errno.EBADF):
        attach(file.fileno(), a)
    subprocess.run(["mount", "-t", "cgroup", "-o", "none,name=kernrig", "none", tmp_path], check=True)
    try:
        with refused(errno.EBADF):
            attach(tmp_path, a)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.requires("cgroup_mprog", "cgroup_preorder")
def test_a_refused_position_changes_nothing(stage: Stage) -> None:
    """MPROG-CGROUP-006, -007, -014 to -019."""
    before = stage.seen()
    assert refusals(stage, POSITIONS) == expected(POSITIONS)
    assert stage.seen() == before


@pytest.mark.requires("cgroup_mprog", "cgroup_preorder")
def test_of_two_mistakes_about_a_position_the_first_decides(stage: Stage) -> None:
    """MPROG-CGROUP-006 to -009, -011, -012, -014 to -019."""
    before = stage.seen()
    assert refusals(stage, POSITION_PAIRS) == expected(POSITION_PAIRS)
    assert stage.seen() == before
