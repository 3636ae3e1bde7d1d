# SPDX-License-Identifier: MIT
"""Tables of kr_ops' struct_ops type: programs for its members, maps that hold them."""

from __future__ import annotations

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Code, add32, asm, exit_, ldxdw, mov, r0, r1, r2
from harness.guest.bpf.btf import Btf, BtfObject
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog

TYPE = "kr_ops"


def adder() -> Code:
    """Code for member compute: the sum of its two arguments."""
    return asm(ldxdw(r0, r1, 0), ldxdw(r2, r1, 8), add32(r0, r2), exit_())


def load_adder() -> Prog:
    """A program for member compute. Raises BpfError, LookupError."""
    return load_struct_ops_prog(TYPE, "compute", adder(), module="kr_ops")


def new_table(*, slot: int = 0, flags: int = 0) -> StructOps:
    """A table that adds: registered in `slot`, or with BPF_F_LINK ready to be. Raises BpfError."""
    table = StructOps.create(TYPE, flags=flags, module="kr_ops")
    with load_adder() as compute:
        table.update({"compute": compute, "slot": slot})
    return table


def new_constant(value: int, *, slot: int = 0) -> StructOps:
    """A table, ready for a link, whose member compute returns `value`. Raises BpfError."""
    table = StructOps.create(TYPE, flags=uapi.BPF_F_LINK, module="kr_ops")
    with load_struct_ops_prog(TYPE, "compute", asm(mov(r0, value), exit_()), module="kr_ops") as compute:
        table.update({"compute": compute, "slot": slot})
    return table


class Binder:
    """A descriptor of the module's BTF and the calls that bind to it, whatever became of the module."""

    def __init__(self, types: Btf, object: BtfObject) -> None:
        self.object = object
        self._value_id = types.struct(f"bpf_struct_ops_{TYPE}")
        self._value_size = types.size(self._value_id)
        self._type_id = types.struct(TYPE)
        compute = types.member(self._type_id, "compute")
        self._compute = compute.index
        self._place = types.member(self._value_id, "data").offset + compute.offset

    def create_map(self, flags: int = 0) -> Map:
        """A map of the module's type, by this descriptor. Raises BpfError."""
        own = BtfBuilder()
        own.integer("int", 4)
        with own.load() as user:
            return Map.create(
                uapi.BPF_MAP_TYPE_STRUCT_OPS,
                4,
                self._value_size,
                flags=flags | uapi.BPF_F_VTYPE_BTF_OBJ_FD,
                btf=user,
                btf_vmlinux_value_type_id=self._value_id,
                value_type_btf_obj_fd=self.object.fd,
            )

    def fill(self, map: Map, compute: Prog) -> None:
        """Write a table for slot 0 into such a map. Raises BpfError."""
        raw = bytearray(self._value_size)
        raw[self._place : self._place + 8] = compute.fd.to_bytes(8, "little")
        map.update(0, bytes(raw))

    def load_program(self) -> Prog:
        """A program for member compute, by this descriptor. Raises BpfError."""
        return Prog.load(
            adder(),
            uapi.BPF_PROG_TYPE_STRUCT_OPS,
            expected_attach_type=self._compute,
            attach_btf_id=self._type_id,
            attach_btf_obj_fd=self.object.fd,
        )
