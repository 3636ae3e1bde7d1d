# SPDX-License-Identifier: MIT
"""What the kernel tells about maps and programs, to whom, and that all of it goes with them."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from functools import partial

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.info import MapInfo
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog, enable_stats
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog, map_attributes, user_btf
from harness.guest.bpf.syscall import bpf
from harness.guest.errnos import errno_of
from harness.guest.kr_modules import KrOps
from harness.guest.privilege import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, with_only
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm, inuse, ready, seen, tobefree
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available, trampolines

pytestmark = [pytest.mark.requires("struct_ops")]

# The numbers of include/uapi/linux/bpf.h, not our own constants.
STRUCT_OPS_MAP, STRUCT_OPS_PROG, STRUCT_OPS_LINK, LINK_FLAG, BTF_FD_FLAG = 26, 27, 9, 1 << 13, 1 << 15


def info_of(ops: StructOps, flags: int, name: str, user_btf_id: int, kernel_btf_id: int) -> MapInfo:
    """All that the kernel should tell about a map."""
    return MapInfo(
        type=STRUCT_OPS_MAP,
        id=ops.map.id,
        key_size=4,
        value_size=ops.btf.size(ops.btf.struct(f"bpf_struct_ops_{ops.type_name}")),
        max_entries=1,
        map_flags=flags,
        name=name,
        btf_id=user_btf_id,
        btf_key_type_id=0,
        btf_value_type_id=0,
        btf_vmlinux_value_type_id=ops.btf.struct(f"bpf_struct_ops_{ops.type_name}"),
        btf_vmlinux_id=kernel_btf_id,
        map_extra=0,
    )


def test_map_is_described_as_it_was_created(idle: Algorithm) -> None:
    """STOPS-INFO-001, STOPS-ABI-002, -003, STOPS-PROBE-001, -002: before and after it is filled."""
    kernel = btf.vmlinux()
    # since 6.9, as modules can have types
    kernel_id = kernel.object.id if has("module_struct_ops") else 0
    for flags in (0, LINK_FLAG) if has("struct_ops_link") else (0,):
        with user_btf() as types:
            made = Map(
                bpf(uapi.BPF_MAP_CREATE, map_attributes(TYPE, types, kernel, flags=flags, name="kr_map"))
            )
            expected_btf = types.id
        with StructOps.of(made, TYPE) as ops:
            expected = info_of(ops, flags, "kr_map", expected_btf, kernel_id)
            assert ops.map.info() == expected
            ops.update(idle.members())
            assert ops.map.info() == expected
            if not flags:
                ops.delete()
            assert ops.map.info() == expected


def test_map_and_program_of_a_module_name_its_btf(kr_ops: KrOps) -> None:
    """STOPS-INFO-001, -002, STOPS-ABI-003, STOPS-MAP-006: ids of types are in the module's BTF."""
    source = btf.module("kr_ops")
    with (
        StructOps.create("kr_ops", module="kr_ops") as ops,
        load_struct_ops_prog("kr_ops", "compute", asm(mov(r0, 0), exit_()), module="kr_ops") as prog,
    ):
        info = ops.map.info()
        assert info == info_of(ops, BTF_FD_FLAG, "kr_ops", info.btf_id, source.object.id)
        told = prog.info()
        assert (told.attach_btf_id, told.attach_btf_obj_id) == (source.struct("kr_ops"), source.object.id)


def test_program_names_its_type(idle: Algorithm) -> None:
    """STOPS-INFO-002: of vmlinux's BTF."""
    for name, prog in idle.progs.items():
        info = prog.info()
        assert (info.type, info.name, info.gpl_compatible) == (STRUCT_OPS_PROG, name, True)
        assert info.attach_btf_id == btf.vmlinux().struct(TYPE)
        assert info.attach_btf_obj_id == btf.vmlinux().object.id


def test_ids_list_maps_and_links_but_not_the_inner_links_of_maps(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-INFO-003, STOPS-ABI-004, STOPS-STATE-014: the programs in a table are tied to it by links without ids."""
    before = set(Map.ids()), set(Link.ids())
    ops = new_ops()
    ops.update(idle.members())
    id = ops.map.id
    ops.close()
    assert set(Map.ids()) - before[0] == {id}
    assert set(Link.ids()) == before[1]
    if has("struct_ops_link"):
        linked = new_ops(uapi.BPF_F_LINK)
        linked.update(idle.members("kr_linked"))
        with linked.link() as link:
            info = link.info()
            assert (info.type, info.map_id, info.prog_id) == (STRUCT_OPS_LINK, linked.map.id, 0)
            assert set(Link.ids()) - before[1] == {info.id}
    with StructOps.of(Map.from_id(id), TYPE) as reopened:
        assert reopened.contents().members["name"] == NAME.encode().ljust(16, b"\0")
        assert seen(reopened) == inuse(1)


KINDS: tuple[type[Map | Prog | BtfObject], ...] = (Map, Prog, BtfObject)
# Who has which capabilities, and whether ids are for them.
HOLDERS = {
    "no capability": ((), False),
    "BPF": ((CAP_BPF,), False),
    "PERFMON": ((CAP_PERFMON,), False),
    "SYS_ADMIN": ((CAP_SYS_ADMIN,), True),
}


@pytest.mark.parametrize(("held", "ids"), HOLDERS.values(), ids=HOLDERS)
def test_ids_are_for_administrators_and_descriptors_for_everybody(
    held: tuple[int, ...], ids: bool, ops: StructOps, new_ops: NewOps, idle: Algorithm
) -> None:
    """STOPS-INFO-003, STOPS-CMD-003, -004: who was given descriptors may look at the table, register it and take it
    away, without any capability.
    """
    map_id, prog_id = ops.map.id, idle.progs["init"].id
    for call in (
        lambda: list(Map.ids()),
        lambda: list(Prog.ids()),
        partial(Map.from_id, map_id),
        partial(Prog.from_id, prog_id),
    ):
        assert with_only(held, errno_of, call) == (0 if ids else errno.EPERM)

    with_only(held, ops.update, idle.members())

    assert with_only(held, ops.contents) == ops.contents()
    assert with_only(held, ops.map.info) == ops.map.info()
    assert seen(ops) == inuse(1)
    with_only(held, ops.delete)
    assert seen(ops) == tobefree(0)
    if has("struct_ops_link"):
        linked = new_ops(uapi.BPF_F_LINK)
        linked.update(idle.members())
        with with_only(held, linked.link):
            assert NAME in available()
            assert seen(linked) == ready(1)


def test_everything_goes_with_the_last_reference(new_idle: Callable[[], Algorithm], new_ops: NewOps) -> None:
    """STOPS-LAW-007, STOPS-STATE-015, -016, STOPS-INFO-004, STOPS-PROBE-005, STOPS-QUIRK-009: the map's id, the ids of
    its programs and of the BTF that it was created with, and the symbols of its trampolines; of two tables those of
    the other one stay.
    """
    leaving, staying = new_idle(), new_idle()
    first, second = new_ops(), new_ops(uapi.BPF_F_LINK if has("struct_ops_link") else 0)
    first.update(leaving.members("kr_leaving"))
    second.update(staying.members("kr_staying"))
    named = has("struct_ops_symbols")
    assert trampolines() == (sorted([*leaving.progs, *staying.progs]) if named else [])
    going = {first.map.id}, set(first.prog_ids().values()), {first.map.info().btf_id}
    left = {second.map.id}, set(second.prog_ids().values()), {second.map.info().btf_id}
    leaving.close_programs()
    staying.close_programs()

    first.delete()
    first.close()

    def left_of_it() -> list[set[int]]:
        return [gone & set(kind.ids()) for kind, gone in zip(KINDS, going, strict=True)]

    # freeing waits for RCU-tasks grace periods (STOPS-QUIRK-009)
    wait_until(lambda: not any(left_of_it()), timeout=10, what=f"map, programs and BTF {going} to go")
    for kind, there in zip(KINDS, left, strict=True):
        assert there <= set(kind.ids())
    assert trampolines() == (sorted(staying.progs) if named else [])


@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops")
def test_runs_are_counted() -> None:
    """STOPS-INFO-006: as of any program, while statistics are on."""
    state = (ctypes.c_int32 * 1)(0)
    context = struct.pack("=5Q", ctypes.addressof(state), 1, 2, 3, 4)
    with load_struct_ops_prog("bpf_dummy_ops", "test_2", asm(mov(r0, 0), exit_())) as prog:
        prog.test_run(ctx=context)
        assert (prog.info().run_cnt, prog.info().run_time_ns) == (0, 0)
        with enable_stats():
            for _ in range(3):
                prog.test_run(ctx=context)
        info = prog.info()
        assert (info.run_cnt, info.recursion_misses) == (3, 0)
        assert info.run_time_ns > 0


def test_probes_agree_with_the_kernels_own_types() -> None:
    """STOPS-PROBE-001 to -004, STOPS-ABI-001: what the calls say is what the kernel's BTF shows."""
    kernel = btf.vmlinux()
    states = {"INIT": 0, "INUSE": 1, "TOBEFREE": 2} | ({"READY": 3} if has("struct_ops_link") else {})
    prefix = "BPF_STRUCT_OPS_STATE_"
    assert kernel.enum("bpf_struct_ops_state") == {prefix + name: number for name, number in states.items()}
    assert has("struct_ops_link") == kernel.has_func("bpf_struct_ops_link_create")
    assert has("struct_ops_link_detach") == kernel.has_func("bpf_struct_ops_map_link_detach")
    assert has("module_struct_ops") == kernel.has_func("__register_bpf_struct_ops")
    StructOps.create(TYPE).close()
