# SPDX-License-Identifier: MIT
"""A module that is loaded, used and unloaded again and again leaves nothing behind."""

from __future__ import annotations

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import new_table

CYCLES = 5


def existing() -> list[set[int]]:
    return [set(kind.ids()) for kind in (BtfObject, Map, Prog, Link)]


def test_cycles_of_load_use_release_and_unload_leave_no_object(kr_ops: KrOps) -> None:
    """MODLIFE-LAW-004, MODLIFE-RACE-006: unload is tried from the last close on until it succeeds."""
    kr_ops.unload()
    before = existing()
    for _ in range(CYCLES):
        with KrOps() as module:
            with new_table(flags=uapi.BPF_F_LINK) as table, table.link():
                assert module.call("compute", 0, 20, 22) == 42
            modules.unload_when_unused("kr_ops")
    wait_until(lambda: existing() == before, timeout=2, what="the objects of all cycles to be freed")
