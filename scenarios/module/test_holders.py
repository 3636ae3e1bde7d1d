# SPDX-License-Identifier: MIT
"""Who keeps a module from being unloaded, who does not, and that the count in /proc/modules says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.kr_modules import DEBUGFS, KrKptr, KrOps, KrTraced
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import owning_types
from scenarios.module.holders import HOLDERS, NO_HOLDERS, Holder, reads_variable


@pytest.fixture
def tcp_bbr() -> None:
    """The kernel's module of this congestion control, loaded."""
    modules.modprobe("tcp_bbr")


@pytest.mark.parametrize(("name", "hold"), HOLDERS.values(), ids=HOLDERS)
def test_holder_blocks_unload_until_it_goes(request: pytest.FixtureRequest, name: str, hold: Holder) -> None:
    """MODLIFE-REF-001, -002, -006 to -010, -012, -014, -018, -020, -021, MODLIFE-LAW-001, MODLIFE-RM-006, -011.

    EAGAIN while it is there, and the count goes up and down by the number of holders.
    """
    request.getfixturevalue(name)
    assert users(name) == 0

    first = hold(0)
    with first:
        of_one = users(name)
        assert modules.refcount(name) == of_one
        with hold(1):
            assert users(name) == 2 * of_one > 0
        wait_until(lambda: users(name) == of_one, timeout=2, what="the second holder to let go")
        with pytest.raises(BlockingIOError):
            modules.unload(name)
        assert modules.state(name) == "live"

    wait_until(lambda: users(name) == 0, timeout=2, what="the first holder to let go")
    modules.unload(name)
    assert modules.find(name) is None


def users(name: str) -> int:
    """The module's count in /proc/modules."""
    found = modules.find(name)
    assert found is not None and found.refcount is not None
    return found.refcount


@pytest.mark.parametrize(("name", "make"), NO_HOLDERS.values(), ids=NO_HOLDERS)
def test_unload_does_not_wait_for_what_holds_nothing(
    request: pytest.FixtureRequest, name: str, make: Callable[[], AbstractContextManager[object]]
) -> None:
    """MODLIFE-REF-004, -005, -013, -021, MODLIFE-LAW-002: it outlives the module, and goes later without a splat."""
    request.getfixturevalue(name)
    with make():
        wait_until(lambda: users(name) == 0, timeout=2, what="what its making held to be let go")
        modules.unload(name)
        assert modules.find(name) is None


def test_types_that_own_objects_hold_the_module_even_without_a_map(kr_kptr: KrKptr) -> None:
    """MODLIFE-REF-015, KPTR-MAP-032: since 6.12; before, they hold it no more than a descriptor of the module's BTF."""
    with owning_types("kr_obj").btf:
        hold = users("kr_kptr") > 0
        if hold:
            with pytest.raises(BlockingIOError):
                kr_kptr.unload()
        else:
            kr_kptr.unload()
    if hold:
        wait_until(lambda: users("kr_kptr") == 0, timeout=2, what="the types to be freed")
        kr_kptr.unload()


def test_table_of_the_kernels_own_type_holds_no_module(kr_ops: KrOps) -> None:
    """MODLIFE-REF-019: no count changes as such a map comes and goes."""
    before = {module.name: module.refcount for module in modules.loaded()}
    with StructOps.create("tcp_congestion_ops"):
        assert {module.name: module.refcount for module in modules.loaded()} == before


def test_program_reads_a_variable_of_the_module(kr_traced: KrTraced) -> None:
    """MODLIFE-REF-007: by its type, and each time it runs."""
    with reads_variable() as program:
        assert program.test_run(bytes(64)).retval == 42


def test_read_in_progress_delays_nothing_but_a_held_file_does(kr_ops: KrOps) -> None:
    """MODLIFE-REF-021: an open file of a module's own keeps it; closed, the path is gone with the module."""
    path: Path = DEBUGFS / "kr_ops" / "stats"
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb", buffering=0))
        with pytest.raises(BlockingIOError):
            kr_ops.unload()
        assert file.read().startswith(b"reg ")
    kr_ops.unload()
    assert not path.exists()
