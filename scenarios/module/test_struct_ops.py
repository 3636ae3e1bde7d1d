# SPDX-License-Identifier: MIT
"""A module that defines a struct_ops type lives as long as somebody uses a table of it, and not longer."""

from __future__ import annotations

import errno
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.syscall import ENOTSUPP, refused
from harness.guest.errnos import fails_with
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import Binder, new_table


def test_registered_table_keeps_its_module(kr_ops: KrOps) -> None:
    """MODLIFE-REF-001, MODLIFE-LAW-003, MODLIFE-SEED-002: unload fails and changes nothing, until the table is
    unregistered and its map gone.
    """
    with new_table() as table:
        with pytest.raises(BlockingIOError):
            kr_ops.unload()
        assert kr_ops.call("compute", 0, 20, 22) == 42

        table.delete()

        with fails_with(errno.ENOTCONN):
            kr_ops.call("compute", 0, 20, 22)
        assert kr_ops.count("unreg") == 1
        with pytest.raises(BlockingIOError):
            kr_ops.unload()
    modules.unload_when_unused("kr_ops")


def test_link_alone_keeps_the_module_and_its_table_at_work(kr_ops: KrOps) -> None:
    """MODLIFE-REF-002: neither map nor program has a descriptor any more, the link has."""
    with new_table(flags=uapi.BPF_F_LINK) as table:
        link = table.link()
    with link:
        with pytest.raises(BlockingIOError):
            kr_ops.unload()
        assert kr_ops.call("compute", 0, 20, 22) == 42
    modules.unload_when_unused("kr_ops")


def test_call_in_progress_finishes_before_its_module_goes(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-007, MODLIFE-RULE-002: the table is unregistered under a running call, which still returns."""
    signal.signal(signal.SIGUSR1, lambda *_: None)  # what ends the delay, and nothing else
    kr_ops.set_param("call_delay_ms", 60_000)
    caller: list[int] = []

    def call() -> int:
        caller.append(threading.get_ident())
        return kr_ops.call("compute", 0, 20, 22)

    with ThreadPoolExecutor() as pool:
        with new_table(flags=uapi.BPF_F_LINK) as table:
            link = table.link()
        answer = pool.submit(call)
        try:
            wait_until(lambda: kr_ops.count("calls_in_flight") == 1, timeout=2, what="the call to begin")
            closed = pool.submit(link.close)
            wait_until(lambda: not kr_ops.tables(), timeout=2, what="the table to be out of reach")

            with pytest.raises(BlockingIOError):
                kr_ops.unload()
            assert (answer.done(), closed.done()) == (False, False)
        finally:
            signal.pthread_kill(caller[0], signal.SIGUSR1)

        assert answer.result() == 42
        closed.result()
    assert (kr_ops.count("unreg"), kr_ops.count("calls_in_flight")) == (1, 0)
    modules.unload_when_unused("kr_ops")


def test_nothing_binds_to_the_btf_of_a_removed_module(kr_ops: KrOps) -> None:
    """MODLIFE-EDGE-004, MODLIFE-REF-005: an open descriptor does not block the unload; afterwards it still tells
    its name, but the id is gone and nothing can be made of it.
    """
    types = btf.module("kr_ops")
    old = Binder(types, types.object)
    with old.object:
        id = old.object.id
        kr_ops.unload()

        assert id not in BtfObject.ids()
        with refused(errno.ENOENT):
            BtfObject.from_id(id)
        assert not Path("/sys/kernel/btf/kr_ops").exists()
        assert old.object.info().name == "kr_ops"
        with refused(errno.EINVAL):
            old.create_map()
        with refused(ENOTSUPP):
            old.load_program()


def test_reloaded_module_starts_afresh(kr_ops: KrOps) -> None:
    """MODLIFE-EDGE-009, -011, -012, MODLIFE-SEED-004: a new BTF id, and no trace of the table before."""
    first = btf.module("kr_ops").object.id
    with new_table() as table:
        table.delete()
    modules.unload_when_unused("kr_ops")

    with KrOps() as again:
        assert not any(again.counters().values())
        with new_table() as table:
            assert table.map.info().btf_vmlinux_id == btf.module("kr_ops").object.id > first
            assert again.call("compute", 0, 20, 22) == 42
            table.delete()
