# SPDX-License-Identifier: MIT
"""What happens when a module is torn away from its users by force, and that it does not happen unnoticed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import new_table

TAINT_FORCED_RMMOD, TAINT_DIE = 1 << 3, 1 << 7  # include/linux/panic.h


def taint() -> int:
    return int(Path("/proc/sys/kernel/tainted").read_text())


@pytest.mark.known_issue("MODLIFE-RACE-023", reason="force is force", splat="bpf_struct_ops_map_free")
def test_a_map_outlives_the_forced_unload_of_its_module(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-023, MODLIFE-RM-006, -007: or it is refused, where the kernel can't do that."""
    with new_table(flags=uapi.BPF_F_LINK):
        try:
            modules.unload("kr_ops", force=True)
        except OSError as refusal:
            assert refusal.errno == errno.EWOULDBLOCK
            assert modules.state("kr_ops") == "live"
            pytest.skip("this kernel forces no module out (CONFIG_MODULE_FORCE_UNLOAD)")
        assert modules.state("kr_ops") is None
        assert taint() & TAINT_FORCED_RMMOD
    # a fault in a kernel worker is nobody's to see but the log's
    wait_until(lambda: taint() & TAINT_DIE, timeout=5, what="the fault when the map is freed")
