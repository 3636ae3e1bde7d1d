# SPDX-License-Identifier: MIT
"""delete_module: what it checks and in which order, and what is left of a module afterwards."""

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
from harness.guest.bpf.symbols import has_symbol
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.tracing import load_tracing
from harness.guest.errnos import fails_with
from harness.guest.kr_modules import KrDependent, KrOps, KrTraced
from harness.guest.privilege import without
from harness.guest.waiting import slow_factor, wait_until
from scenarios.module.attaching import reports, seen_map
from scenarios.module.tables import load_adder
from scenarios.module.windows import in_its_exit
from scenarios.struct_ops.pausing import paused_in

CAP_SYS_MODULE = 16
LONGEST_NAME = 64  # MODULE_NAME_LEN is 56 on 64 bits


def test_removal_needs_the_capability_and_permission(kr_traced: KrTraced) -> None:
    """MODLIFE-RM-001: before it is asked whether there is such a module; the sysctl forbids it to everybody."""
    for name in ("kr_traced", "kr_nowhere"):
        with fails_with(errno.EPERM):
            without((CAP_SYS_MODULE,), modules.unload, name)
    kr_traced.unload()
    Path("/proc/sys/kernel/modules_disabled").write_text("1")
    with fails_with(errno.EPERM):
        modules.unload("kr_nowhere")


@pytest.mark.parametrize("name", ["", "kr_nowhere", "x" * LONGEST_NAME], ids=["empty", "unknown", "too long"])
def test_removal_of_what_there_is_not(name: str) -> None:
    """MODLIFE-RM-002."""
    with fails_with(errno.ENOENT):
        modules.unload(name)


@pytest.mark.vm(cpus=2)
@pytest.mark.requires("fentry:find_module_all")
def test_removal_that_waits_for_its_turn_ends_by_a_signal(kr_traced: KrTraced) -> None:
    """MODLIFE-RM-008: while another removal has the mutex of modules; nothing was removed."""
    if "clang" in Path("/proc/version").read_text():
        pytest.skip("clang has inlined find_module_all where a removal calls it")
    thread = 0

    def second() -> None:
        nonlocal thread
        thread = threading.get_native_id()
        kr_traced.unload()

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with (
            ThreadPoolExecutor(1) as pool,
            paused_in("find_module_all", lambda: modules.unload("kr_nowhere")) as first,
        ):
            waiting = pool.submit(second)
            wait_until(
                lambda: waiting.done() or waits_in_delete_module(thread), timeout=5, what="the second one"
            )
            assert not waiting.done()

            signal.pthread_kill(thread_ident(thread), signal.SIGUSR1)

            with fails_with(errno.EINTR):
                waiting.result(timeout=5 * slow_factor())
            assert not first.done()
        with fails_with(errno.ENOENT):
            first.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert modules.state("kr_traced") == "live"
    kr_traced.unload()


def waits_in_delete_module(thread: int) -> bool:
    """Whether this thread of ours sleeps in that call."""
    try:
        status, stack = (Path(f"/proc/self/task/{thread}/{name}").read_text() for name in ("stat", "stack"))
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] == "S" and "delete_module" in stack


def thread_ident(native: int) -> int:
    """Python's number of a thread."""
    return next(each.ident for each in threading.enumerate() if each.native_id == native and each.ident)


def test_module_is_kept_by_another_that_uses_its_symbols(kr_traced: KrTraced) -> None:
    """MODLIFE-RM-003, MODLIFE-RACE-018, MODLIFE-LAW-001: and so by the users of that one."""
    with KrDependent() as dependent, seen_map() as seen:
        found = modules.find("kr_traced")
        assert found is not None and (found.refcount, found.used_by) == (1, ("kr_dependent",))
        with load_tracing(
            "kr_dependent_ask", reports(seen, 0), attach_type=uapi.BPF_TRACE_FENTRY, module="kr_dependent"
        ) as program:
            if dependent.users():  # since 6.4 a loaded program holds it
                with pytest.raises(BlockingIOError):
                    dependent.unload()
            with pytest.raises(BlockingIOError):
                kr_traced.unload()
            assert program.info().attach_btf_obj_id == btf.module("kr_dependent").object.id
        with pytest.raises(BlockingIOError):
            kr_traced.unload()
        modules.unload_when_unused("kr_dependent")
    assert kr_traced.users() == 0
    kr_traced.unload()
    with fails_with(errno.ENOENT):
        KrDependent()


def test_a_module_goes_in_this_order(kr_traced: KrTraced) -> None:
    """MODLIFE-RM-009, -011, MODLIFE-EDGE-003, -004: while exit runs BTF and symbols are there, afterwards nothing
    is.
    """
    btf_in_sysfs = Path("/sys/kernel/btf/kr_traced")
    with in_its_exit("kr_traced") as unload:
        id = btf.module("kr_traced").object.id
        assert (modules.state("kr_traced"), btf_in_sysfs.exists()) == ("going", True)
        assert has_symbol("kr_traced_double", "kr_traced")
    unload.result()
    assert (modules.state("kr_traced"), btf_in_sysfs.exists()) == (None, False)
    assert not has_symbol("kr_traced_double", "kr_traced")
    with refused(errno.ENOENT):
        BtfObject.from_id(id)


def test_btf_that_is_still_open_has_lost_its_number(kr_ops: KrOps) -> None:
    """MODLIFE-EDGE-005, -006: it reads 0, or what it was before the number was given up twice; what it says is
    unchanged, and so is what a program that is left says of it. Nobody else is told by that number.
    """
    types = btf.module("kr_ops")
    with types.object as old, load_adder() as program:
        before = old.info()
        wait_until(lambda: kr_ops.users() == 0, timeout=2, what="the load to let go")
        kr_ops.unload()
        after = old.info()
        assert after.id in (0, before.id)
        assert (after.name, after.size, after.kernel_btf) == (before.name, before.size, True)
        assert program.info().attach_btf_obj_id == after.id
        with KrOps() as again:
            with BtfObject.from_id(btf.module("kr_ops").object.id) as new:
                assert new.info().id not in (0, before.id)
            again.unload()
        with refused(errno.ENOENT):
            BtfObject.from_id(before.id)
