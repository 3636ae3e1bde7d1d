# SPDX-License-Identifier: MIT
"""Our own modules have what the scenarios need of them, on each kernel for which they are built."""

from __future__ import annotations

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.libbpf import libbpf
from harness.guest.kr_modules import KrKptr, KrOffload, KrOps, KrOps2, KrTraced, KrTypes, TestModule, missing

TYPES = frozenset(
    {
        uapi.BTF_KIND_INT,
        uapi.BTF_KIND_STRUCT,
        uapi.BTF_KIND_UNION,
        uapi.BTF_KIND_ENUM,
        uapi.BTF_KIND_TYPEDEF,
        uapi.BTF_KIND_FWD,
    }
)


def parameters(module: TestModule) -> set[str]:
    """The names of what can be changed at run time."""
    return {path.name for path in (modules.SYS_MODULE / module.name / "parameters").iterdir()}


def test_struct_ops_can_be_delayed_failed_and_counted_at_each_step(kr_ops: KrOps) -> None:
    """MODLIFE-MOD-001, -004, -006, -014, MODLIFE-EDGE-013."""
    steps = {"init", "reg", "update", "validate"}
    delays = {"init", "exit", "reg", "unreg", "update", "call", "return"}
    assert {f"{step}_error" for step in steps} | {f"{step}_delay_ms" for step in delays} <= parameters(kr_ops)
    counted = {"reg", "unreg", "update", "validate", "init_member", "tables", "calls_in_flight", "last_error"}
    assert counted <= set(kr_ops.counters())
    types = btf.module("kr_ops")
    assert types.find("bpf_struct_ops_kr_ops", uapi.BTF_KIND_STRUCT) is not None
    assert types.has_func("kr_ops_called")


def test_objects_can_be_counted_and_their_destructor_delayed(kr_kptr: KrKptr) -> None:
    """MODLIFE-MOD-008, -014: and a program finds the functions that make and release them."""
    assert {"dtor_delay_us", "init_error"} <= parameters(kr_kptr)
    assert any(kr_kptr.counters()) and not any(kr_kptr.counters().values())
    types = btf.module("kr_kptr")
    assert all(
        types.has_func(name) for name in ("kr_obj_new", "kr_obj_find", "kr_obj_release", "kr_obj_dtor")
    )


def test_there_is_one_of_each_to_attach_to() -> None:
    """MODLIFE-MOD-010, -014: a tracepoint, a function, a variable."""
    if reason := missing("kr_traced"):
        pytest.skip(reason)
    with KrTraced() as traced:
        types = btf.module("kr_traced")
        assert types.has_func("kr_traced_double")
        assert types.find("kr_traced_answer", uapi.BTF_KIND_VAR) is not None
        assert traced.call(21)[0] == 42


@pytest.mark.parametrize("module", [KrKptr, KrOffload, KrOps, KrOps2, KrTraced, KrTypes])
def test_types_of_the_kernel_are_the_kernels(module: type[TestModule]) -> None:
    """MODLIFE-MOD-001: a program that is given an object by the kernel may pass it to the module's functions."""
    if reason := missing(module.name):
        pytest.skip(reason)
    with module():
        own = btf.module(module.name)
        first, end = (libbpf().btf__type_cnt(types.handle) for types in (btf.vmlinux(), own))
        named = [(type.name, type.kind) for type in map(own.type, range(first, end)) if type.kind in TYPES]
        assert [each for each in named if each[0] and btf.vmlinux().find(*each)] == []
