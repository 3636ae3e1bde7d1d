# SPDX-License-Identifier: MIT
"""What the kernel checks before it makes a struct_ops map, and in which order."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.attrs import MapCreate
from harness.guest.bpf.btf import Btf, BtfObject
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.struct_ops import StructOps, map_attributes, user_btf
from harness.guest.bpf.syscall import ENOTSUPP, bpf, refused
from harness.guest.kr_modules import KrOps
from harness.guest.privilege import CAP_BPF, CAP_PERFMON, unprivileged_bpf, with_only
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import TYPE, Algorithm, Seen, seen
from scenarios.struct_ops.mistakes import Mistake, check, mistake

pytestmark = [pytest.mark.requires("struct_ops")]

CLOSED = 999
# A byte within the kernel's union, behind the last field that map creation knows.
TAIL = 120


@dataclass(frozen=True)
class Desk:
    """Takes requests to create a map of a type."""

    type_name: str
    source: Btf
    types: BtfObject

    @functools.cached_property
    def right(self) -> MapCreate:
        """A request without a mistake."""
        return map_attributes(self.type_name, self.types, self.source)

    def send(self, *, held: tuple[int, ...] | None = None, tail: int = 0, **fields: Any) -> Map:
        """Create a map by one who has the capabilities `held` (None: all)."""
        attr = MapCreate.from_buffer_copy(self.right)
        for name, content in fields.items():
            setattr(attr, name, content)
        raw = bytearray(bytes(attr).ljust(TAIL, b"\0") + bytes([tail]))
        if held is None:
            return Map(bpf(uapi.BPF_MAP_CREATE, raw))
        return Map(with_only(held, bpf, uapi.BPF_MAP_CREATE, raw))

    def check(self, *mistakes: Mistake, pairs: int = 3) -> None:
        """See `mistakes.check`; what is made after all, or half made, must not stay."""
        check(self.send, mistakes, lambda: list(Map.ids()), pairs=pairs)


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Requests for a map of congestion controls."""
    with user_btf() as types:
        yield Desk(TYPE, btf.vmlinux(), types)


def flag_mistakes() -> Iterator[Mistake]:
    """Every flag that a struct_ops map may not have."""
    allowed = {uapi.BPF_F_LINK: "struct_ops_link", uapi.BPF_F_VTYPE_BTF_OBJ_FD: "module_struct_ops"}
    for flag in (1 << bit for bit in range(32)):
        # a token's absence is told later, and otherwise
        if flag != uapi.BPF_F_TOKEN_FD and not (flag in allowed and has(allowed[flag])):
            yield mistake("STOPS-MAP-004", errno.EINVAL, map_flags=flag)


def test_request_for_a_map_is_checked_in_order(desk: Desk, idle: Algorithm) -> None:
    """STOPS-MAP-001 to -005, -007 to -009, -011 to -013, STOPS-PROBE-001, STOPS-ABI-002: no refusal leaves a map."""
    size, value_id = desk.right.value_size, desk.right.btf_vmlinux_value_type_id
    # where the unprivileged may not use bpf() at all, 6.1 says so before it looks at anything
    with unprivileged_bpf(allowed=True):
        desk.check(
            mistake("STOPS-MAP-001", errno.EINVAL, tail=1),
            mistake("STOPS-MAP-002", errno.EINVAL, map_type=uapi.BPF_MAP_TYPE_ARRAY),
            mistake("STOPS-MAP-002", errno.EINVAL, btf_key_type_id=1),
            mistake("STOPS-MAP-002", errno.EINVAL, btf_value_type_id=1),
            mistake("STOPS-MAP-003", errno.EINVAL, map_extra=1),
            mistake("STOPS-MAP-004", errno.EINVAL, key_size=8),
            mistake("STOPS-MAP-004", errno.EINVAL, max_entries=2),
            mistake("STOPS-MAP-004", errno.EINVAL, max_entries=0),
            mistake("STOPS-MAP-004", errno.EINVAL, btf_vmlinux_value_type_id=0),
            mistake("STOPS-MAP-004", errno.EINVAL, map_flags=uapi.BPF_F_NO_PREALLOC),
            mistake("STOPS-MAP-005", errno.EPERM, held=()),
            mistake("STOPS-MAP-005", errno.EPERM, held=(CAP_PERFMON,)),
            mistake("STOPS-MAP-008", ENOTSUPP, btf_vmlinux_value_type_id=btf.vmlinux().struct(TYPE)),
            mistake("STOPS-MAP-008", ENOTSUPP, btf_vmlinux_value_type_id=btf.vmlinux().struct("sk_buff")),
            mistake("STOPS-MAP-009", errno.EINVAL, value_size=size - 1),
            mistake("STOPS-MAP-009", errno.EINVAL, value_size=size + 1),
            mistake("STOPS-MAP-009", errno.EINVAL, value_size=0),
        )
    desk.check(*flag_mistakes(), pairs=0)
    assert btf.vmlinux().type(value_id).name == f"bpf_struct_ops_{TYPE}"

    ignored = {"value_type_btf_obj_fd": CLOSED} if has("module_struct_ops") else {}
    with StructOps.of(desk.send(held=(CAP_BPF,), **ignored), TYPE) as ops:
        assert seen(ops) == Seen(0, 0)
        assert ops.data_offset % 64 == 0


def test_map_refused_late_is_freed(desk: Desk, idle: Algorithm) -> None:
    """STOPS-MAP-011, -012: its name and the user's BTF are looked at when the map exists already; it is gone, through
    grace periods, when the call returns."""
    with BtfObject.from_id(btf.vmlinux().object.id) as kernels:
        desk.check(
            mistake("STOPS-MAP-011", errno.EINVAL, map_name=b"kr/table"),
            mistake("STOPS-MAP-012", errno.EBADF, btf_fd=CLOSED),
            mistake("STOPS-MAP-012", errno.EINVAL, btf_fd=idle.memory.fd),
            mistake("STOPS-MAP-012", errno.EACCES, btf_fd=kernels.fd),
        )
    desk.send(map_name=b"kr_Table.1").close()


def test_btf_of_a_module_must_be_named_by_its_descriptor(kr_ops: KrOps, desk: Desk, idle: Algorithm) -> None:
    """STOPS-MAP-006, -007, -013, STOPS-PROBE-003, STOPS-ABI-003: refused requests leave no reference to the module."""
    users = kr_ops.users()
    source = btf.module("kr_ops")
    module = Desk("kr_ops", source, desk.types)
    module.check(
        mistake("STOPS-MAP-004", errno.EINVAL, key_size=8),
        mistake("STOPS-MAP-006", errno.EBADF, value_type_btf_obj_fd=CLOSED),
        mistake("STOPS-MAP-006", errno.EINVAL, value_type_btf_obj_fd=idle.memory.fd),
        mistake("STOPS-MAP-006", errno.EINVAL, value_type_btf_obj_fd=btf.vmlinux().object.fd),
        mistake("STOPS-MAP-006", errno.EINVAL, value_type_btf_obj_fd=desk.types.fd),
        mistake("STOPS-MAP-008", ENOTSUPP, btf_vmlinux_value_type_id=source.struct("kr_ops")),
        mistake("STOPS-MAP-009", errno.EINVAL, value_size=4096),
    )
    assert kr_ops.users() == users
    with refused(ENOTSUPP):
        module.send(map_flags=0, value_type_btf_obj_fd=CLOSED)
    with module.send():
        assert kr_ops.users() == users + 1
    wait_until(lambda: kr_ops.users() == users, timeout=10, what="the map's module to be let go")


@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops", "module_struct_ops")
def test_type_without_links_gives_link_maps_all_the_same() -> None:
    """STOPS-MAP-010: a type that can neither validate nor update; only 6.4 and 6.5 refused it."""
    with StructOps.create("bpf_dummy_ops", flags=uapi.BPF_F_LINK) as dummy:
        assert dummy.map.info().map_flags == uapi.BPF_F_LINK


def test_several_maps_of_a_type_live_side_by_side() -> None:
    """STOPS-MAP-013: each with an id of its own and nothing in it."""
    with ExitStack() as stack:
        maps = [stack.enter_context(StructOps.create(TYPE, name=f"kr_{number}")) for number in range(4)]
        assert [each.map.info().name for each in maps] == ["kr_0", "kr_1", "kr_2", "kr_3"]
        assert len({each.map.id for each in maps}) == len(maps)
        assert not any(any(each.lookup()) for each in maps)
