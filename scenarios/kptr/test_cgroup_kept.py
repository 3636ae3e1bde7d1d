# SPDX-License-Identifier: MIT
"""A cgroup that a map owns stays when its directory goes, and goes with the map."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    asm,
    exit_,
    jeq,
    label,
    ld_imm64,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.netns import libc
from harness.guest.waiting import wait_until
from scenarios.kptr.bench import kfunc
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, owning_map

pytestmark = pytest.mark.requires("kfunc:bpf_cgroup_from_id")
ROOT = Path("/sys/fs/cgroup")
CLONE_NEWCGROUP = 0x02000000
"""include/uapi/linux/sched.h"""


@dataclass(frozen=True)
class Group:
    """A directory of cgroups, made for the scenario."""

    path: Path

    @property
    def id(self) -> int:
        """The number that the kernel finds it by."""
        return self.path.stat().st_ino

    @property
    def dying(self) -> int:
        """How many below it have lost their directory and are there still."""
        lines = (self.path / "cgroup.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["nr_dying_descendants"])


@pytest.fixture
def parent() -> Iterator[Group]:
    path = ROOT / "kept"
    path.mkdir()
    yield Group(path)
    path.rmdir()


def run(*items: Item) -> int:
    """What r8 is behind this."""
    code = asm(mov(r8, 0), *items, label("out"), mov(r0, r8), exit_())
    with Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS) as prog:
        return prog.test_run(bytes(64)).retval


def from_id(id: int) -> Item:
    """r7 = a reference to a cgroup; if there is none, the program ends."""
    return [ld_imm64(r1, id), kfunc("bpf_cgroup_from_id"), jeq(r0, 0, "out"), mov(r7, r0)]


def release() -> Item:
    return [mov(r1, r0), kfunc("bpf_cgroup_release")]


def number_of() -> Item:
    """r8 = the lower half of the number of the cgroup in r7."""
    at = btf.vmlinux().offset
    return [ldxdw(r8, r7, at("cgroup", "kn")), ldxw(r8, r8, at("kernfs_node", "id"))]


def found(id: int) -> bool:
    """Whether a program finds the cgroup."""
    return run(from_id(id), mov(r8, 1), mov(r0, r7), release()) == 1


def stash(owner: Map, id: int) -> None:
    """Let the map own the cgroup instead of what it owned."""
    assert (
        run(value_of(owner), from_id(id), mov(r8, 1), exchange(mov(r2, r7)), jeq(r0, 0, "out"), release())
        == 1
    )


def acquired(owner: Map) -> int:
    """The number of the map's cgroup if a reference to it can be had, which is released."""
    return run(
        value_of(owner),
        ldxdw(r7, r6, OWNED),
        jeq(r7, 0, "out"),
        mov(r1, r7),
        kfunc("bpf_cgroup_acquire"),
        jeq(r0, 0, "out"),
        mov(r7, r0),
        number_of(),
        mov(r0, r7),
        release(),
    )


def take_out(owner: Map) -> None:
    """Release what the map owns."""
    run(value_of(owner), exchange(mov(r2, 0)), jeq(r0, 0, "out"), release())


@pytest.mark.parametrize("end", ["map", "exchange"])
def test_stashed_cgroup_outlives_its_directory(parent: Group, end: str) -> None:
    """KPTR-CGRP-001, KPTR-FREE-014: as a dying descendant, until the map's reference goes; another goes at once."""
    kept, other = Group(parent.path / "kept"), Group(parent.path / "other")
    kept.path.mkdir()
    other.path.mkdir()
    id = kept.id
    with ExitStack() as stack:
        owner = stack.enter_context(owning_map("cgroup"))
        stash(owner, id)
        assert found(id) and acquired(owner) == id & 0xFFFFFFFF

        kept.path.rmdir()
        other.path.rmdir()

        wait_until(lambda: parent.dying == 1, timeout=3, what="the other cgroup to be gone")
        assert not found(id)
        assert (acquired(owner), parent.dying) == (id & 0xFFFFFFFF, 1)
        if end == "exchange":
            take_out(owner)
        else:
            stack.close()
        wait_until(lambda: parent.dying == 0, timeout=3, what="the kept cgroup to be gone")


def test_cgroup_that_is_exchanged_for_another_goes(parent: Group) -> None:
    """KPTR-CGRP-001, KPTR-XCHG-008: each exchange gives back the one before."""
    with owning_map("cgroup") as owner:
        for name in ("a", "b", "c"):
            group = Group(parent.path / name)
            group.path.mkdir()
            stash(owner, group.id)
            assert acquired(owner) == group.id & 0xFFFFFFFF
            group.path.rmdir()
            wait_until(lambda: parent.dying == 1, timeout=3, what="the cgroup before to be gone")
    wait_until(lambda: parent.dying == 0, timeout=3, what="the last to be gone")


def test_ancestors_are_found_by_level(parent: Group) -> None:
    """KPTR-CGRP-001: the root is level 0, the cgroup itself its own; there is none below it, nor above the root."""
    child = Group(parent.path / "child")
    child.path.mkdir()
    try:

        def ancestor(level: int) -> int:
            return run(
                from_id(child.id),
                mov(r6, r7),
                mov(r1, r7),
                mov(r2, level),
                kfunc("bpf_cgroup_ancestor"),
                jeq(r0, 0, "none"),
                mov(r7, r0),
                number_of(),
                mov(r0, r7),
                release(),
                label("none"),
                mov(r0, r6),
                release(),
            )

        assert [ancestor(level) for level in (0, 1, 2)] == [Group(ROOT).id, parent.id, child.id]
        assert [ancestor(level) for level in (3, -1, 2**31 - 1)] == [0, 0, 0]
    finally:
        child.path.rmdir()


@pytest.mark.parametrize("root", ["outside", "inside"])
def test_look_up_by_id_and_the_namespace(parent: Group, root: str) -> None:
    """KPTR-CGRP-001: since 6.18 any cgroup is found; before, one below the root of the task's namespace."""
    child = Group(parent.path / "child")
    child.path.mkdir()
    wanted = (child if root == "inside" else parent).id
    ignores = btf.vmlinux().has_func("__cgroup_get_from_id")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            (child.path / "cgroup.procs").write_text(str(os.getpid()))
            assert libc().unshare(CLONE_NEWCGROUP) == 0
            assert "0::/" in Path("/proc/self/cgroup").read_text().splitlines()
            os.write(writer, b"1" if found(wanted) else b"0")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        seen = answer.read()
    os.waitpid(pid, 0)
    child.path.rmdir()
    assert seen == (b"1" if root == "inside" or ignores else b"0")
