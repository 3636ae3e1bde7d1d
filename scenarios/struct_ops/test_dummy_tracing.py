# SPDX-License-Identifier: MIT
"""A struct_ops program is traced like any other program."""

from __future__ import annotations

import ctypes
import struct

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, atomic_add, exit_, ld_map_value, mov, r0, r1, r2
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import attach_tracing, load_tracing


@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops")
def test_test_run_of_a_dummy_program_is_traced() -> None:
    """STOPS-RUN-004: an fentry program for it runs once for each run of it, as long as it is attached."""
    types = BtfBuilder()
    number = types.integer("int", 4, encoding=1)
    function = types.func("traced", types.func_proto(number, [("ctx", types.ptr(types.integer("u64", 8)))]))
    dummy = btf.vmlinux().struct("bpf_dummy_ops")
    state = ctypes.c_int(3)
    with (
        types.load() as own,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as memory,
        Prog.load(
            asm(mov(r0, 77), exit_()),
            uapi.BPF_PROG_TYPE_STRUCT_OPS,
            expected_attach_type=btf.vmlinux().member(dummy, "test_1").index,
            attach_btf_id=dummy,
            btf=own,
            func_info=[(0, function)],
        ) as traced,
        load_tracing(
            "traced",
            asm(mov(r2, 1), ld_map_value(r1, memory), atomic_add(r1, 0, r2), mov(r0, 0), exit_()),
            attach_type=uapi.BPF_TRACE_FENTRY,
            target=traced,
            target_btf_id=function,
        ) as tracer,
    ):
        context = struct.pack("=Q", ctypes.addressof(state))
        with attach_tracing(tracer, uapi.BPF_TRACE_FENTRY):
            assert [traced.test_run(ctx=context).retval for _ in range(2)] == [77, 77]
        traced.test_run(ctx=context)
        assert memory.lookup(0) == struct.pack("=Q", 2)
