# SPDX-License-Identifier: MIT
"""The last user of a module's table goes, and the module right behind it, while others still call."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import new_table

ROUNDS, PATIENCE = 5, 200
# What opening a file of debugfs says while its module goes, and afterwards.
NO_MODULE = (errno.ENXIO, errno.ENOENT)


def ids() -> list[set[int]]:
    """Of all programs, maps, links and BTF objects."""
    return [set(kind.ids()) for kind in (Prog, Map, Link, BtfObject)]


@pytest.mark.vm(cpus=2)
def test_module_goes_at_the_first_moment_after_its_last_table(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-006, MODLIFE-RULE-003, MODLIFE-REF-001, STOPS-TCP-021: called up to the last moment on another CPU,
    while grace periods of the freed map still run; each call is answered or finds
    no table, or no module.
    """
    kr_ops.unload()
    for _ in range(ROUNDS):
        module = KrOps()
        link = linked_table()
        outcomes: Counter[str] = Counter()
        begun = threading.Event()

        def call(
            module: KrOps = module, outcomes: Counter[str] = outcomes, begun: threading.Event = begun
        ) -> None:
            while True:
                try:
                    assert module.call("compute", 0, 20, 22, times=50) == 42
                except OSError as error:
                    assert error.errno in (errno.ENOTCONN, *NO_MODULE)
                    return
                outcomes["answered"] += 1
                begun.set()

        with ThreadPoolExecutor() as pool:
            caller = pool.submit(call)
            assert begun.wait(10)
            link.close()
            modules.unload_when_unused("kr_ops")
            caller.result()
        assert outcomes["answered"] > 0


def linked_table() -> Link:
    """A table that nothing but its link holds."""
    with new_table(flags=uapi.BPF_F_LINK) as table:
        return table.link()


def test_module_may_drop_the_last_reference_itself_and_go(kr_ops: KrOps) -> None:
    """MODLIFE-RULE-004, MODLIFE-REF-003, MODLIFE-RACE-006: from its own code, to which the call returns."""
    kr_ops.unload()
    for _ in range(ROUNDS):
        module = KrOps()
        with new_table() as table:
            module.own(1, 0)
            table.delete()
        assert module.call("compute", "@1", 20, 22) == 42
        module.drop(1)
        modules.unload_when_unused("kr_ops")


@pytest.mark.requires("struct_ops_link_detach")
@pytest.mark.vm(cpus=2)
def test_detach_from_both_sides_unregisters_once(kr_ops: KrOps) -> None:
    """MODLIFE-RULE-008, STOPS-LINK-020, -025, -026: the module detaches the link while its owner does."""
    outcomes: Counter[str] = Counter()
    with new_table(flags=uapi.BPF_F_LINK) as table:
        while outcomes.total() < (ROUNDS * 4 if len(outcomes) == 2 else PATIENCE):
            start = threading.Barrier(2)
            with table.link() as link, ThreadPoolExecutor() as pool:

                def from_the_module(start: threading.Barrier = start) -> None:
                    start.wait()
                    try:
                        kr_ops.detach_link(0)
                        outcomes["the module first"] += 1
                    except OSError as error:
                        assert error.errno == errno.ENOENT
                        outcomes["the owner first"] += 1

                other = pool.submit(from_the_module)
                start.wait()
                link.detach()
                other.result()
                assert (kr_ops.tables(), kr_ops.count("unreg"), table.refcnt()) == ([], outcomes.total(), 0)
    print("detach from both sides:", dict(outcomes))
    assert len(outcomes) == 2, "one side always won: nothing was tested"


def test_cycles_of_use_leave_nothing(kr_ops: KrOps) -> None:
    """MODLIFE-LAW-004, MODLIFE-RACE-006, MODLIFE-SEED-001, MODLIFE-RULE-001, MODLIFE-MOD-004, -013: load, table, link,
    calls; unload is tried from the last close on until it succeeds."""
    kr_ops.unload()
    before = ids()
    for _ in range(ROUNDS):
        module = KrOps()
        with new_table(flags=uapi.BPF_F_LINK) as table, table.link():
            assert module.users() == 1
            assert module.call("compute", 0, 20, 22) == 42
            counted = module.counters()
            assert (counted["reg"], counted["calls"], counted["tables"]) == (1, 1, 1)
        modules.unload_when_unused("kr_ops")
    wait_until(lambda: ids() == before, timeout=10, what="all that was made to be gone")
