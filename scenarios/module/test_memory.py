# SPDX-License-Identifier: MIT
"""Lives of modules, one after the other: the kernel's memory does not fill up with what they leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.guest import modules, slabs
from harness.guest.bpf import uapi
from harness.guest.bpf.probe import require
from harness.guest.kr_modules import KrKptr, KrOps, KrTraced, missing
from scenarios.kptr.owning_map import owning_map
from scenarios.module.attaching import attached, raw_tracepoint
from scenarios.module.tables import new_table


def life_of_a_table() -> None:
    with KrOps() as module, new_table(flags=uapi.BPF_F_LINK) as table, table.link():
        assert module.call("compute", 0, 20, 22) == 42
        with pytest.raises(BlockingIOError):
            module.unload()


def life_of_a_map() -> None:
    with KrKptr(), owning_map("kr_obj"):
        pass


def life_of_a_tracepoint() -> None:
    with KrTraced() as module, attached(raw_tracepoint("kr_traced_event")):
        assert module.call(21) == (42, 0)


LIVES = {"kr_ops": life_of_a_table, "kr_kptr": life_of_a_map, "kr_traced": life_of_a_tracepoint}


@pytest.mark.parametrize(("name", "live"), LIVES.items(), ids=LIVES)
def test_lives_of_a_module_leave_no_objects(name: str, live: Callable[[], None]) -> None:
    """MODLIFE-LAW-004: load, bind, use, try to unload, let go, unload: in no cache as much as an object each time."""
    if name == "kr_ops":
        require("module_struct_ops")
    if reason := missing(name):
        pytest.skip(reason)
    if not slabs.counted():
        pytest.skip("this kernel lacks CONFIG_SLUB_DEBUG")
    assert slabs.growth(live) == {}
    assert modules.state(name) is None
