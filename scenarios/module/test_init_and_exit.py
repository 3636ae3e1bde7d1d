# SPDX-License-Identifier: MIT
"""While a module's init or exit runs its types are there to be seen, and nothing can be made of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.probe import require
from harness.guest.bpf.syscall import ENOTSUPP, refused
from harness.guest.errnos import fails_with
from harness.guest.kr_modules import KrKptr, KrOps, KrTraced, missing
from harness.guest.waiting import wait_until
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.kptr.owning_map import owning_map
from scenarios.module.attaching import attached, fentry_program_holds, raw_tracepoint, tracing
from scenarios.module.holders import NO_HOLDERS, reads_variable
from scenarios.module.tables import Binder
from scenarios.module.windows import in_its_exit, in_its_init

Bind = Callable[[], AbstractContextManager[object]]


def kfunc_program() -> AbstractContextManager[object]:
    kfuncs = Kfuncs()
    return kfuncs.load(kfuncs.new(), kfuncs.release())


def map_of_the_type() -> AbstractContextManager[object]:
    types = btf.module("kr_ops")
    with types.object:
        return Binder(types, types.object).create_map()


def program_for_a_member() -> AbstractContextManager[object]:
    types = btf.module("kr_ops")
    with types.object:
        return Binder(types, types.object).load_program()


BINDS: dict[str, tuple[str, Bind, tuple[int, ...]]] = {
    "map_of_its_type": ("kr_ops", map_of_the_type, (errno.EINVAL,)),
    "program_for_a_member": ("kr_ops", program_for_a_member, (ENOTSUPP,)),
    "program_that_calls_it": ("kr_kptr", kfunc_program, (errno.ENXIO,)),
    "map_that_owns_objects": ("kr_kptr", lambda: owning_map("kr_obj"), (errno.ENXIO,)),
    "program_that_reads_a_variable": ("kr_traced", reads_variable, (errno.ENXIO,)),
    "fentry": (
        "kr_traced",
        lambda: attached(tracing("kr_traced_double", uapi.BPF_TRACE_FENTRY)),
        (errno.ENOENT, errno.EINVAL),  # EINVAL in 7.3, where the function's prototype is looked for first
    ),
}


@pytest.fixture(params=list(BINDS))
def binding(request: pytest.FixtureRequest) -> tuple[str, Bind, tuple[int, ...]]:
    """A module that is not loaded, something to make of it, and the errno of that before and after its life."""
    what: str = request.param
    name, bind, refusals = BINDS[what]
    if name == "kr_ops":
        require("module_struct_ops")
    if reason := missing(name):
        pytest.skip(reason)
    if what == "fentry" and not fentry_program_holds():
        pytest.skip("this kernel lacks tracing programs that hold their module from load on")
    if what == "map_that_owns_objects":
        # Before 6.2 such a map is made all the same, with a record that no program can use.
        require("local_kptr")
    return name, bind, refusals


def assert_stays(name: str, state: str) -> None:
    """A removal says EBUSY, and the module is in that state."""
    with fails_with(errno.EBUSY):
        modules.unload(name)
    found = modules.find(name)
    assert found is not None and found.state == state


def test_nothing_binds_until_init_has_returned(binding: tuple[str, Bind, tuple[int, ...]]) -> None:
    """MODLIFE-EDGE-001, MODLIFE-RACE-003, MODLIFE-RM-004, -011, STOPS-PROG-006, KPTR-MAP-007, -032: refused, then
    accepted, by the same BTF id; and a removal says EBUSY.
    """
    name, bind, refusals = binding
    with in_its_init(name) as load:
        id = btf.module(name).object.id
        with refused(*refusals), bind():
            pass
        assert_stays(name, "Loading")
        assert not load.done()
    load.result()
    assert btf.module(name).object.id == id
    with bind():
        pass
    modules.unload_when_unused(name)


def test_init_that_fails_leaves_nothing_and_the_name_free(binding: tuple[str, Bind, tuple[int, ...]]) -> None:
    """MODLIFE-EDGE-002, MODLIFE-RACE-003, -016: nothing could bind meanwhile, its BTF goes, and it can be loaded
    again.
    """
    name, bind, refusals = binding
    with in_its_init(name, f"init_error={errno.ENODEV}") as load:
        id = btf.module(name).object.id
        with refused(*refusals), bind():
            pass
    with fails_with(errno.ENODEV):
        load.result()
    assert id not in BtfObject.ids()
    assert (modules.find(name), Path(f"/sys/kernel/btf/{name}").exists()) == (None, False)

    modules.load_test_module(name)

    assert btf.module(name).object.id > id
    with bind():
        pass
    modules.unload_when_unused(name)


def test_nothing_binds_once_exit_has_begun(binding: tuple[str, Bind, tuple[int, ...]]) -> None:
    """MODLIFE-EDGE-003, MODLIFE-RM-009, -010: its BTF can still be found and opened; a second removal says EBUSY."""
    name, bind, refusals = binding
    modules.load_test_module(name)
    with in_its_exit(name) as unload:
        id = btf.module(name).object.id
        with refused(*refusals), bind():
            pass
        assert_stays(name, "Unloading")
        assert not unload.done()
    unload.result()
    with refused(errno.ENOENT):
        BtfObject.from_id(id)


@pytest.mark.parametrize(("name", "make"), NO_HOLDERS.values(), ids=NO_HOLDERS)
def test_what_holds_nothing_may_go_while_exit_runs(
    request: pytest.FixtureRequest, name: str, make: Bind
) -> None:
    """MODLIFE-RACE-017, MODLIFE-EDGE-003, MODLIFE-LAW-002: one is closed during exit, the other after it."""
    module: KrOps | KrKptr = request.getfixturevalue(name)
    with make():
        early = make()
        with early:
            wait_until(lambda: module.users() == 0, timeout=2, what="what its making held to be let go")
            with in_its_exit(name) as unload:
                early.__exit__(None, None, None)
                assert not unload.done()
        unload.result()


def test_tracepoint_of_a_module_in_its_exit_cannot_be_attached_to(kr_traced: KrTraced) -> None:
    """MODLIFE-EDGE-003: it is still there, but the module can't be held any more."""
    with (
        in_its_exit("kr_traced"),
        refused(errno.ENOENT, errno.EINVAL),
        attached(raw_tracepoint("kr_traced_event")),
    ):
        pass
