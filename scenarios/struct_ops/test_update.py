# SPDX-License-Identifier: MIT
"""Writing a value registers all of its members or none of them, once; deleting it is final."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest import tcp
from harness.guest.bpf.struct_ops import Filling, StructOps
from harness.guest.bpf.syscall import refused
from harness.guest.netns import NetNamespace
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, ready, seen, tobefree

pytestmark = [pytest.mark.requires("struct_ops")]

Members = dict[str, Filling]
Spoil = Callable[[StructOps, Members], Members | bytes]


def available() -> list[str]:
    with NetNamespace.current() as here:
        return tcp.available(here)


def trampolines() -> set[str]:
    """Symbols of the code by which the kernel calls the programs (STOPS-PROBE-005)."""
    symbols = Path("/proc/kallsyms").read_bytes()
    return {member.decode() for member in re.findall(rb" bpf__tcp_congestion_ops_(\w+)", symbols)}


def without(*names: str) -> Spoil:
    return lambda ops, members: {name: filling for name, filling in members.items() if name not in names}


def changed(**fillings: Filling) -> Spoil:
    return lambda ops, members: {**members, **fillings}


def swapped(name: str, other: str) -> Spoil:
    """The program of another member in the place of this one's."""
    return lambda ops, members: {**members, name: members[other]}


def byte_at(offset: int) -> Spoil:
    """A byte set outside the members: `offset` counts from where they begin."""

    def spoil(ops: StructOps, members: Members) -> bytes:
        raw = bytearray(ops.value(members))
        raw[ops.data_offset + offset] = 1
        return bytes(raw)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(byte_at(-1), errno.EINVAL, id="padding set"),
        pytest.param(lambda ops, members: b"\1" + ops.value(members)[1:], errno.EINVAL, id="refcnt set"),
        pytest.param(without("ssthresh"), errno.EINVAL, id="ssthresh missing"),
        pytest.param(without("undo_cwnd"), errno.EINVAL, id="undo_cwnd missing"),
        pytest.param(without("cong_avoid"), errno.EINVAL, id="cong_avoid and cong_control missing"),
        pytest.param(without("name"), errno.EINVAL, id="name missing"),
        pytest.param(changed(name="x" * 16), errno.EINVAL, id="name without an end"),
        pytest.param(changed(name="kr/algorithm"), errno.EINVAL, id="name with a slash"),
        pytest.param(changed(name="reno"), errno.EEXIST, id="name taken"),
        pytest.param(changed(flags=1 << 7), errno.EINVAL, id="unknown flag"),
        pytest.param(changed(key=1), errno.EINVAL, id="data member of the kernel's own"),
        pytest.param(changed(undo_cwnd=999), errno.EBADF, id="descriptor not open"),
        pytest.param(
            lambda ops, members: {**members, "undo_cwnd": ops.map.fd}, errno.EINVAL, id="no program"
        ),
        pytest.param(swapped("ssthresh", "undo_cwnd"), errno.EINVAL, id="program of another member"),
        pytest.param(swapped("release", "init"), errno.EINVAL, id="only the last member wrong"),
    ],
)
def test_refused_value_leaves_nothing_behind_and_a_corrected_one_may_follow(
    spoil: Spoil, error: int, ops: StructOps, idle: Algorithm
) -> None:
    """STOPS-UPD-004, -005, -009, -011, -012, -018, STOPS-TCP-001 to -004, STOPS-SEED-002."""
    names = available()
    with refused(error):
        ops.update(spoil(ops, idle.members()))
    assert not any(ops.lookup())
    assert available() == names

    ops.update(idle.members())

    assert seen(ops) == inuse(1)
    assert set(available()) == {*names, NAME}


def test_only_accepted_members_have_trampolines(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-INFO-004, STOPS-LAW-004: the members before the refused one lose theirs again."""
    with refused(errno.EINVAL):
        ops.update(swapped("release", "init")(ops, idle.members()))
    after_refusal = trampolines()
    ops.update(idle.members())
    if not (after_update := trampolines()):
        pytest.skip("this kernel names no struct_ops trampolines in kallsyms")
    assert after_update == set(idle.progs)
    assert after_refusal == set()


@pytest.mark.known_issue("STOPS-QUIRK-001", reason="a refused owner pointer is not reported")
def test_value_with_an_owner_pointer_is_refused(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-UPD-007, STOPS-QUIRK-001: whatever is not registered must not be reported as written."""
    with refused(errno.EINVAL):
        ops.update({**idle.members(), "owner": 1})


def test_plain_map_is_registered_once_and_never_again(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-STATE-001, -002, -003, -010, STOPS-LAW-001: INIT, INUSE, TOBEFREE."""
    assert not any(ops.lookup())
    with refused(errno.ENOENT):
        ops.delete()
    with refused(errno.EINVAL):
        ops.link()
    ops.update(idle.members())
    assert seen(ops) == inuse(1)
    with refused(errno.EBUSY):
        ops.update(idle.members("kr_second"))
    with refused(errno.EINVAL):
        ops.link()
    ops.delete()
    assert seen(ops) == tobefree(0)
    with refused(errno.EBUSY):
        ops.update(idle.members())
    with refused(errno.EINPROGRESS):
        ops.delete()
    with refused(errno.EINVAL):
        ops.link()
    assert not {NAME, "kr_second"} & set(available())


@pytest.mark.requires("struct_ops_link")
def test_link_map_is_written_once_and_has_no_registration_to_delete(
    link_ops: StructOps, idle: Algorithm
) -> None:
    """STOPS-STATE-004, -005, -010, STOPS-LAW-001: INIT, READY."""
    assert not any(link_ops.lookup())
    with refused(errno.EOPNOTSUPP):
        link_ops.delete()
    with refused(errno.EINVAL):
        link_ops.link()
    link_ops.update(idle.members())
    assert seen(link_ops) == ready(0)
    with refused(errno.EBUSY):
        link_ops.update(idle.members())
    with refused(errno.EOPNOTSUPP):
        link_ops.delete()
    assert seen(link_ops) == ready(0)
