# SPDX-License-Identifier: MIT
"""Who keeps a module from being unloaded, who does not, and that the count in /proc/modules says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has, kptr_map
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.kr_modules import TestModule
from harness.guest.waiting import wait_until
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.kptr.owning_map import owning_map
from scenarios.module.tables import load_adder, new_table

Holder = Callable[[int], AbstractContextManager[object]]
"""Makes the holder with this number; the two of a scenario must not be in each other's way."""


def kfunc_program(number: int) -> AbstractContextManager[object]:
    kfuncs = Kfuncs()
    return kfuncs.load(kfuncs.new(), kfuncs.release())


def fentry_link(number: int) -> AbstractContextManager[object]:
    # up to 6.3 it is the trampoline that holds the module, once for each function
    function, nothing = ("kr_obj_refs", "kr_obj_mark")[number], asm(mov(r0, 0), exit_())
    with load_tracing(function, nothing, attach_type=uapi.BPF_TRACE_FENTRY, module="kr_kptr") as prog:
        return attach_tracing(prog, uapi.BPF_TRACE_FENTRY)


def map_in_map_template(number: int) -> AbstractContextManager[object]:
    with owning_map("kr_obj") as template:
        return Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, inner_map=template)


def pinned_map(number: int) -> AbstractContextManager[object]:
    path = Path(f"/sys/fs/bpf/owning{number}")
    with owning_map("kr_obj") as map:
        map.pin(path)
    pin = ExitStack()
    pin.callback(path.unlink)
    return pin


def table_link(number: int) -> AbstractContextManager[object]:
    with new_table(slot=number, flags=uapi.BPF_F_LINK) as table:
        return table.link()


HOLDERS: dict[str, tuple[str, Holder]] = {
    "kfunc_program": ("kr_kptr", kfunc_program),
    "fentry_link": ("kr_kptr", fentry_link),
    "map_that_owns_objects": ("kr_kptr", lambda number: owning_map("kr_obj")),
    "pinned_map_that_owns_objects": ("kr_kptr", pinned_map),
    "template_of_inner_maps": ("kr_kptr", map_in_map_template),
    "table_ready_for_a_link": ("kr_ops", lambda number: new_table(slot=number, flags=uapi.BPF_F_LINK)),
    "link_of_a_table": ("kr_ops", table_link),
}


@pytest.mark.parametrize(("name", "hold"), HOLDERS.values(), ids=HOLDERS)
def test_holder_blocks_unload_until_it_goes(request: pytest.FixtureRequest, name: str, hold: Holder) -> None:
    """MODLIFE-REF-001, -002, -006, -008, -012, -014, -020, MODLIFE-LAW-001: EAGAIN while it is there, and the
    count goes up and down by the number of holders.
    """
    module: TestModule = request.getfixturevalue(name)
    assert users(name) == 0

    first = hold(0)
    with first:
        of_one = users(name)
        with hold(1):
            assert users(name) == 2 * of_one > 0
        wait_until(lambda: users(name) == of_one, timeout=2, what="the second holder to let go")
        with pytest.raises(BlockingIOError):
            module.unload()
        assert modules.state(name) == "live"

    wait_until(lambda: users(name) == 0, timeout=2, what="the first holder to let go")
    module.unload()
    assert modules.find(name) is None


def users(name: str) -> int:
    """The module's count in /proc/modules."""
    found = modules.find(name)
    assert found is not None and found.refcount is not None
    return found.refcount


NO_HOLDERS: dict[str, tuple[str, Callable[[], AbstractContextManager[object]]]] = {
    "struct_ops_program": ("kr_ops", load_adder),
    "descriptor_of_its_btf": ("kr_kptr", lambda: btf.module("kr_kptr").object),
    "map_that_only_sees_objects": (
        "kr_kptr",
        lambda: kptr_map("kptr_untrusted" if has("kptr_untrusted_tag") else "kptr", "kr_obj"),
    ),
}


@pytest.mark.parametrize(("name", "make"), NO_HOLDERS.values(), ids=NO_HOLDERS)
def test_unload_does_not_wait_for_what_holds_nothing(
    request: pytest.FixtureRequest, name: str, make: Callable[[], AbstractContextManager[object]]
) -> None:
    """MODLIFE-REF-004, -005, -013, MODLIFE-LAW-002: it outlives the module, and goes later without a splat."""
    module: TestModule = request.getfixturevalue(name)
    with make():
        wait_until(lambda: users(name) == 0, timeout=2, what="what its making held to be let go")
        module.unload()
        assert modules.find(name) is None
