# SPDX-License-Identifier: MIT
"""The attributes' layout and numbers as the running kernel has them, their ends, and fields that must be 0."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harness.guest.bpf import btf, netkit, tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import (
    Attr,
    LinkCreate,
    LinkCreateMprog,
    LinkDetach,
    LinkUpdate,
    ProgAttach,
    ProgQuery,
)
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused, system_call
from harness.guest.bpf.uapi import BPF_F_BEFORE, BPF_F_REPLACE, BPF_TCX_INGRESS
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids

NO_DEVICE = 9999
NO_FD = 1 << 30


def attr_union() -> int:
    """The BTF id of union bpf_attr."""
    return btf.vmlinux().id("bpf_attr", uapi.BTF_KIND_UNION)


def offsets(layout: type[Attr]) -> dict[str, int]:
    return {
        name: getattr(layout, name).offset
        for base in reversed(layout.__mro__)
        for name, _ in vars(base).get("_fields_", ())
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        pytest.param(ProgAttach, "", id="attach and detach"),
        pytest.param(ProgQuery, "query.", id="query"),
        pytest.param(LinkCreate, "link_create.", id="link creation"),
        pytest.param(LinkUpdate, "link_update.", id="link update"),
    ],
)
def test_fields_are_where_the_kernel_has_them(layout: type[Attr], prefix: str) -> None:
    """MPROG-ABI-002 to -004."""
    union, types = attr_union(), btf.vmlinux()
    ours = offsets(layout)
    assert {name: types.member(union, prefix + name).offset for name in ours} == ours
    second_names = {"": ("target_ifindex", "relative_id"), "query.": ("target_ifindex",)}
    for name in second_names.get(prefix, ()):
        other = {"target_ifindex": "target_fd", "relative_id": "relative_fd"}[name]
        assert types.member(union, prefix + name).offset == ours[other]


def test_each_kind_of_ordered_link_has_its_block_at_the_same_place() -> None:
    """MPROG-ABI-003: cgroups where they are ordered lists, netkit where there is any."""
    union, types = attr_union(), btf.vmlinux()
    ours = offsets(LinkCreateMprog)
    kinds = ["tcx"] + ["netkit"] * has("netkit") + ["cgroup"] * has("cgroup_mprog")
    for kind in kinds:
        for name, other in (("relative_fd",) * 2, ("relative_id", "relative_fd"), ("expected_revision",) * 2):
            assert types.member(union, f"link_create.{kind}.{name}").offset == ours[other], (kind, name)


def test_numbers_are_those_of_the_kernel() -> None:
    """MPROG-ABI-007, -008: verdicts, link types, attach types."""
    types = btf.vmlinux()
    link_types = types.enum("bpf_link_type")
    assert {name: link_types[f"BPF_LINK_TYPE_{name}"] for name in ("CGROUP", "STRUCT_OPS", "TCX")} == {
        "CGROUP": 3,
        "STRUCT_OPS": 9,
        "TCX": 11,
    }
    assert types.enum("tcx_action_base") == {
        "TCX_NEXT": -1,
        "TCX_PASS": 0,
        "TCX_DROP": 2,
        "TCX_REDIRECT": 7,
    }
    if has("netkit"):
        assert link_types["BPF_LINK_TYPE_NETKIT"] == 13
        assert types.enum("netkit_action") == {
            "NETKIT_NEXT": -1,
            "NETKIT_PASS": 0,
            "NETKIT_DROP": 2,
            "NETKIT_REDIRECT": 7,
        }


@dataclass(frozen=True)
class Command:
    """A command whose attributes end, for it, at `end`; sent as they are they are refused with `otherwise`."""

    number: int
    attr: Attr
    end: int
    otherwise: int

    def errno(self, size: int, **bytes_set: int) -> int:
        """The errno for attributes of this size, with bytes set at the given offsets."""
        room = bytearray(bytes(self.attr).ljust(size, b"\0"))
        for at in bytes_set.values():
            room[at] = 1
        return system_call(self.number, (ctypes.c_char * len(room)).from_buffer(room), size)


def commands() -> Iterator[Command]:
    """Each with a mistake in its first descriptor or device, which is noticed later than a wrong tail."""
    union, types = attr_union(), btf.vmlinux()

    def end(arm: str) -> int:
        return types.size(types.member(union, arm).type)

    attach = ProgAttach(target_ifindex=NO_DEVICE, attach_bpf_fd=NO_FD, attach_type=BPF_TCX_INGRESS)
    attach_end = types.member(union, "expected_revision").offset + 8
    yield Command(uapi.BPF_PROG_ATTACH, attach, attach_end, errno.EBADF)
    yield Command(uapi.BPF_PROG_DETACH, attach, attach_end, errno.EBADF)
    query = ProgQuery(target_ifindex=NO_DEVICE, attach_type=BPF_TCX_INGRESS)
    yield Command(uapi.BPF_PROG_QUERY, query, end("query"), errno.ENODEV)
    link = LinkCreate(target_ifindex=NO_DEVICE, prog_fd=NO_FD, attach_type=BPF_TCX_INGRESS)
    yield Command(uapi.BPF_LINK_CREATE, link, end("link_create"), errno.EBADF)
    yield Command(uapi.BPF_LINK_UPDATE, LinkUpdate(link_fd=NO_FD), end("link_update"), errno.EBADF)
    yield Command(uapi.BPF_LINK_DETACH, LinkDetach(link_fd=NO_FD), end("link_detach"), errno.EBADF)


def test_bytes_behind_the_attributes_must_be_zero() -> None:
    """MPROG-ABI-006, MPROG-ATTACH-001, MPROG-DETACH-001, MPROG-QUERY-002, MPROG-LINK-001, -020: each single one behind
    the command's last field is EINVAL, behind all that the kernel knows E2BIG; a page of zeros is fine, more is not.
    """
    known, page = btf.vmlinux().size(attr_union()), mmap.PAGESIZE
    for command in commands():
        name = uapi.name_of("cmd", command.number)
        assert command.errno(page) == command.otherwise, name
        assert command.errno(page + 1) == errno.E2BIG, name
        tail = {at: command.errno(page, at=at) for at in (*range(command.end, known + 8), page - 1)}
        assert tail == {at: errno.EINVAL if at < known else errno.E2BIG for at in tail}, name
        assert command.errno(page, within=command.end, behind=known) == errno.E2BIG, name


def test_attributes_that_end_early_count_as_zero_behind_their_end(
    dev: Device, sched_cls: LoadSchedCls
) -> None:
    """MPROG-ABI-002, -003: whatever lies there; three words are enough to attach, link, and detach."""
    first, direct, linked = sched_cls(), sched_cls(), sched_cls()
    words = 3 * 4
    tcx.attach(dev, first)
    tcx.attach(dev, direct, flags=BPF_F_BEFORE, relative_fd=NO_FD, expected_revision=99, size=words)
    with tcx.link(dev, linked, flags=BPF_F_BEFORE, relative_fd=NO_FD, expected_revision=99, size=words):
        assert tcx.query(dev).prog_ids == ids(first, direct, linked)
        tcx.detach(dev, first, flags=BPF_F_REPLACE, expected_revision=99, size=words)
        assert tcx.query(dev).prog_ids == ids(direct, linked)


def test_programs_of_other_types_are_refused(
    request: pytest.FixtureRequest, ends: tuple[Device, Device]
) -> None:
    """MPROG-ABI-009, MPROG-ATTACH-004, MPROG-LINK-003: those that see packets, too, to attach and for links."""
    hooks: list[tuple[Any, Device, int]] = [
        (tcx, ends[0], type_) for type_ in (uapi.BPF_TCX_INGRESS, uapi.BPF_TCX_EGRESS)
    ]
    if has("netkit"):
        primary, _ = request.getfixturevalue("netkit_ends")
        hooks += [(netkit, primary, type_) for type_ in (uapi.BPF_NETKIT_PRIMARY, uapi.BPF_NETKIT_PEER)]
    code = asm(mov(r0, 0), exit_())
    for prog_type in (
        uapi.BPF_PROG_TYPE_SCHED_ACT,
        uapi.BPF_PROG_TYPE_XDP,
        uapi.BPF_PROG_TYPE_SOCKET_FILTER,
        uapi.BPF_PROG_TYPE_CGROUP_SKB,
        uapi.BPF_PROG_TYPE_LWT_IN,
    ):
        with Prog.load(code, prog_type) as prog:
            for family, dev, attach_type in hooks:
                with refused(errno.EINVAL):
                    family.attach(dev, prog, attach_type=attach_type)
                with refused(errno.EINVAL):
                    family.link(dev, prog, attach_type=attach_type)
                assert family.query(dev, attach_type=attach_type).count == 0


def known_flags(command: int, attach_type: int) -> set[int]:
    """The flag bits with which the command gets as far as looking for the program, which is not there."""
    found = set()
    for bit in range(32):
        attr = ProgAttach(
            target_fd=NO_FD, attach_bpf_fd=NO_FD, attach_type=attach_type, attach_flags=1 << bit
        )
        code = system_call(command, ctypes.byref(attr), ctypes.sizeof(attr))
        assert code in (errno.EBADF, errno.EINVAL), (bit, code)
        if code == errno.EBADF:
            found.add(1 << bit)
    return found


def test_attach_and_detach_know_these_flags() -> None:
    """MPROG-ABI-001, MPROG-ATTACH-003, MPROG-DETACH-002, MPROG-CGROUP-001, MPROG-PROBE-005: REPLACE, BEFORE, AFTER, ID,
    LINK of tcx and netkit; of cgroups OVERRIDE, MULTI, REPLACE and, where they have ordered lists, the others, too.
    """
    ordered = {8, 16, 32, 1 << 13}
    devices = [uapi.BPF_TCX_INGRESS, uapi.BPF_TCX_EGRESS]
    devices += [uapi.BPF_NETKIT_PRIMARY, uapi.BPF_NETKIT_PEER] * has("netkit")
    for attach_type in devices:
        for command in (uapi.BPF_PROG_ATTACH, uapi.BPF_PROG_DETACH):
            assert known_flags(command, attach_type) == ordered | {4}, (command, attach_type)
    more = (ordered if has("cgroup_mprog") else set()) | ({64} if has("cgroup_preorder") else set())
    assert known_flags(uapi.BPF_PROG_ATTACH, uapi.BPF_CGROUP_INET_EGRESS) == {1, 2, 4} | more


# Attach types that have neither lists in an order nor a mode; the kernel looks for a descriptor first of all.
OTHERS = (
    uapi.BPF_FLOW_DISSECTOR,
    uapi.BPF_SK_SKB_STREAM_PARSER,
    uapi.BPF_SK_SKB_STREAM_VERDICT,
    uapi.BPF_SK_MSG_VERDICT,
)


def test_fields_that_an_attach_type_does_not_use_must_be_zero() -> None:
    """MPROG-FIX-004: anchor, revision, and flags about order; a detach takes no flag at all."""
    unused: list[dict[str, int]] = [
        {"relative_fd": 1},
        {"expected_revision": 1},
        {"expected_revision": 1 << 40},
    ]
    unused += [{"attach_flags": flag} for flag in (8, 16, 32, 1 << 13, 1 << 20)]
    base = [{"attach_flags": flag} for flag in (1, 2, 4)]
    expected, seen = {}, {}
    for attach_type in OTHERS:
        for command, wrong, right in (
            (uapi.BPF_PROG_ATTACH, unused, [{}, *base]),
            (uapi.BPF_PROG_DETACH, unused + base, [{}]),
        ):
            for fields, code in [(f, errno.EINVAL) for f in wrong] + [(f, errno.EBADF) for f in right]:
                where = 0 if attach_type == uapi.BPF_FLOW_DISSECTOR else NO_FD
                attr = ProgAttach(target_fd=where, attach_bpf_fd=NO_FD, attach_type=attach_type, **fields)
                case = (uapi.name_of("cmd", command), attach_type, *fields.items())
                expected[case] = code
                seen[case] = system_call(command, ctypes.byref(attr), ctypes.sizeof(attr))
    assert seen == expected
