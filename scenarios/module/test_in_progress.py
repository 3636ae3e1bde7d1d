# SPDX-License-Identifier: MIT
"""Unloading while something is being done with the module, which takes as long as it takes."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, add, asm, exit_, jlt, label, mov, r0, r6
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrKptr, KrOps
from harness.guest.waiting import wait_until
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.kptr.pocket import Pocket
from scenarios.module.tables import TYPE, load_adder, new_table
from scenarios.module.windows import LONG_MS, Doing, delayed

ANSWER = 42


def check_held(kr_ops: KrOps) -> None:
    with pytest.raises(BlockingIOError):
        kr_ops.unload()
    assert modules.state("kr_ops") == "live"


def answer(kr_ops: KrOps) -> int:
    return kr_ops.call("compute", 0, 20, 22)


def test_link_being_made_keeps_the_module(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-004, MODLIFE-REF-002: it is registered in the end, although nobody else has the map any more."""
    with ExitStack() as stack:
        table = stack.enter_context(new_table(flags=uapi.BPF_F_LINK))
        with delayed("kr_ops", "reg_delay_ms", table.link) as making:
            table.close()
            check_held(kr_ops)
            assert not making.done()
        with making.result():
            assert answer(kr_ops) == ANSWER
            check_held(kr_ops)
    modules.unload_when_unused("kr_ops")


def test_registration_being_made_keeps_the_module(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-004, MODLIFE-REF-001: the same without a link."""
    with StructOps.create(TYPE, module="kr_ops") as table, load_adder() as compute:
        with delayed("kr_ops", "reg_delay_ms", lambda: table.update({"compute": compute})) as making:
            check_held(kr_ops)
            assert not making.done()
        making.result()
        assert answer(kr_ops) == ANSWER
        table.delete()
    modules.unload_when_unused("kr_ops")


def test_registration_that_fails_in_the_end_lets_the_module_go(kr_ops: KrOps) -> None:
    """MODLIFE-RULE-006, MODLIFE-RACE-004: the module says no after all; nothing of the table is left in it."""
    with new_table(flags=uapi.BPF_F_LINK) as table:
        kr_ops.set_param("reg_error", errno.ENOSPC)
        with delayed("kr_ops", "reg_delay_ms", table.link) as making:
            check_held(kr_ops)
        with pytest.raises(BpfError) as refusal:
            making.result()
        assert refusal.value.errno == errno.ENOSPC
        assert (kr_ops.tables(), kr_ops.count("reg_failed")) == ([], 1)
        kr_ops.set_param("reg_error", 0)
        with table.link():
            assert answer(kr_ops) == ANSWER
    modules.unload_when_unused("kr_ops")


def test_link_being_closed_keeps_the_module(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-005, MODLIFE-REF-002: EAGAIN until unreg has returned; then the map goes, and the module can."""
    with new_table(flags=uapi.BPF_F_LINK) as table:
        link = table.link()
    with delayed("kr_ops", "unreg_delay_ms", link.close) as closing:
        wait_until(lambda: kr_ops.count("unreg") == 1, timeout=2, what="the table to be out of reach")
        assert not kr_ops.tables()
        check_held(kr_ops)
        assert not closing.done()
    closing.result()
    modules.unload_when_unused("kr_ops")


def test_link_being_updated_keeps_the_module(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-008, MODLIFE-RULE-007: the old table goes on answering until the new one does."""
    with new_table(flags=uapi.BPF_F_LINK) as old, new_table(flags=uapi.BPF_F_LINK) as new:
        link = old.link()
        with delayed("kr_ops", "update_delay_ms", lambda: link.update(new.map, old=old.map)) as updating:
            assert answer(kr_ops) == ANSWER
            check_held(kr_ops)
            assert not updating.done()
        updating.result()
        assert link.info().map_id == new.map.id
    with link:
        assert answer(kr_ops) == ANSWER
        check_held(kr_ops)
    modules.unload_when_unused("kr_ops")


def test_old_table_may_be_in_a_call_while_its_link_gets_a_new_one(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-008, MODLIFE-RACE-007: the call ends by the old programs, others run the new ones meanwhile, and
    nothing lets go of the module before all have ended.
    """
    signal.signal(signal.SIGUSR1, lambda *_: None)  # what ends the delay, and nothing else
    with (
        load_struct_ops_prog(TYPE, "compute", asm(mov(r0, 7), exit_()), module="kr_ops") as seven,
        new_table(flags=uapi.BPF_F_LINK) as old,
        StructOps.create(TYPE, flags=uapi.BPF_F_LINK, module="kr_ops") as new,
    ):
        new.update({"compute": seven})
        link = old.link()
        with ThreadPoolExecutor(2) as pool:
            kr_ops.set_param("call_delay_ms", LONG_MS)
            calling = Doing(lambda: answer(kr_ops), "kr_ops", pool)
            try:
                wait_until(calling.inside, timeout=2, what="the call to begin")
                kr_ops.set_param("call_delay_ms", 0)
                updating = Doing(lambda: link.update(new.map), "kr_ops", pool)
                wait_until(lambda: answer(kr_ops) == 7, timeout=2, what="the new table to answer")
                check_held(kr_ops)
                assert not (calling.done() or updating.done())
            finally:
                signal.pthread_kill(calling.thread, signal.SIGUSR1)
            assert calling.result() == ANSWER
            updating.result()
    check_held(kr_ops)
    link.close()
    modules.unload_when_unused("kr_ops")


# The verifier takes a good part of a second for them.
STEPS = 6_000


def endless() -> Item:
    """Code whose verification takes long: a loop that is walked to its end."""
    return [mov(r6, 0), label("again"), add(r6, 1), jlt(r6, STEPS, "again")]


def long_kfunc_program() -> Prog:
    kfuncs = Kfuncs()
    return kfuncs.load(endless(), kfuncs.new(), kfuncs.release())


def long_struct_ops_program() -> Prog:
    return load_struct_ops_prog(TYPE, "compute", asm(endless(), mov(r0, 0), exit_()), module="kr_ops")


@pytest.mark.parametrize(
    ("name", "load", "holds"),
    [("kr_kptr", long_kfunc_program, True), ("kr_ops", long_struct_ops_program, False)],
    ids=["kfunc", "struct_ops"],
)
def test_program_being_verified_keeps_the_module(
    request: pytest.FixtureRequest, name: str, load: Callable[[], Prog], holds: bool
) -> None:
    """MODLIFE-RACE-002, MODLIFE-REF-004, -006: EAGAIN from some moment of the load on; afterwards it is as with
    any such program, and closing it is clean.
    """
    module: KrKptr | KrOps = request.getfixturevalue(name)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        wait_until(
            lambda: module.users() > 0 or loading.done(), timeout=2, what="the load to hold the module"
        )
        assert not loading.done(), "the verifier was too quick: nothing was in progress"
        with pytest.raises(BlockingIOError):
            module.unload()
        assert not loading.done(), "the verifier was too quick: nothing was in progress"
        program = loading.result()
    with program:
        if holds:
            with pytest.raises(BlockingIOError):
                module.unload()
        else:
            wait_until(lambda: module.users() == 0, timeout=2, what="the load to let go")
            module.unload()
    if holds:
        modules.unload_when_unused(name)


def test_map_with_living_objects_keeps_their_module(kr_kptr: KrKptr) -> None:
    """MODLIFE-RACE-011, MODLIFE-REF-012, -016, MODLIFE-RULE-005: until each destructor has run, once for
    each object.
    """
    kr_kptr.set_param("dtor_delay_us", 1000)
    with Pocket() as pocket:
        for key in range(4):
            pocket.put(key + 1, key)
        with pytest.raises(BlockingIOError):
            kr_kptr.unload()
        assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (4, 0)
    modules.unload_when_unused("kr_kptr")  # which complains if objects are left, or were released twice
