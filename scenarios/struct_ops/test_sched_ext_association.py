# SPDX-License-Identifier: MIT
"""A program that asks for its scheduler, and is associated with a table of another type."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, call_kfunc, exit_, mov, r1
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrTypes
from scenarios.module.module_type import ModuleType

ADDRESS_OF_NOTHING = 0xDEAD_0000_DEAD_0000


@pytest.mark.known_issue(
    "SCX-ANY-ASSOCIATION",
    reason="whatever table a program is associated with is taken for a scheduler's",
    splat="scx_",
)
@pytest.mark.requires("struct_ops_association", "struct_ops:sched_ext_ops", "kfunc:scx_bpf_dsq_nr_queued")
@pytest.mark.usefixtures("panic_on_oops")
def test_table_of_another_type_is_no_scheduler(kr_types: KrTypes) -> None:
    """STOPS-ASSOC-001: there is none, as without an association."""
    data = ModuleType("kr_types", "kr_data")
    at = btf.vmlinux().offset("sched_ext_ops", "priv") - data.btf.offset("kr_data", "words")
    words = bytes(at) + ADDRESS_OF_NOTHING.to_bytes(8, "little")
    code = asm(mov(r1, 1), call_kfunc(btf.vmlinux().func("scx_bpf_dsq_nr_queued"), 0), exit_())
    with (
        data.returning("run", 0) as run,
        data.table({"run": run, "words": words}, flags=uapi.BPF_F_LINK) as table,
        Prog.load(code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE) as asking,
    ):
        nobody = asking.test_run().retval
        assert nobody == -errno.ENODEV & 0xFFFFFFFF
        asking.associate(table.map)
        assert asking.test_run().retval == nobody
