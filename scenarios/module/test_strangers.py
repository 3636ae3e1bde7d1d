# SPDX-License-Identifier: MIT
"""A program that was verified against one module's types gets into no other module's table."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import btf
from harness.guest.bpf.asm import asm, exit_, ldxdw, ldxw, r0, r1
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrOps, KrOps2
from scenarios.module.tables import TYPE, adder

VALUE = 42


def load_inspect(module: str) -> Prog:
    """A program for member inspect that returns the argument's value, by that module's layout."""
    types = btf.module(module)
    value = types.offset("kr_ops_arg", "value")
    code = asm(ldxdw(r1, r1), ldxw(r0, r1, value), exit_())
    return load_struct_ops_prog(TYPE, "inspect", code, module=module)


def ids(module: str) -> tuple[int, int]:
    """The number of the type, and of its map's value, in the module's BTF."""
    types = btf.module(module)
    return types.struct(TYPE), types.struct(f"bpf_struct_ops_{TYPE}")


@pytest.mark.known_issue("STOPS-QUIRK-003", reason="the number of a type is compared, not whose type it is")
@pytest.mark.parametrize("unload", [False, True], ids=["both loaded", "the first one unloaded"])
def test_a_program_made_for_another_module_is_refused(unload: bool, kr_ops: KrOps) -> None:
    """STOPS-QUIRK-003, MODLIFE-RACE-009, -010, MODLIFE-EDGE-010, MODLIFE-MOD-011, STOPS-UPD-012."""
    numbers = ids("kr_ops")
    with load_inspect("kr_ops") as stranger:
        if unload:
            kr_ops.unload()
        with KrOps2() as other:
            assert ids("kr_ops2") == numbers
            with (
                StructOps.create(TYPE, module="kr_ops2") as table,
                load_struct_ops_prog(TYPE, "compute", adder(), module="kr_ops2") as compute,
            ):
                try:
                    with refused(errno.EINVAL):
                        table.update({"compute": compute, "inspect": stranger})
                finally:
                    if table.state():
                        print("read", other.call("inspect", 0, VALUE), "where there is", VALUE)
                        table.delete()
