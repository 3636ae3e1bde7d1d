# SPDX-License-Identifier: MIT
"""What a module may register as a structure's destructor, and which structures of the kernel have one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.syscall import BpfError
from harness.guest.kmsg import Mark
from harness.guest.kr_modules import missing
from scenarios.kptr.pointers import kind, owning_tag, pointer_map, types_are_parsed_early, viewing_tag

# images/modules/kr_dtors.c; each function but the good ones breaks one rule of kernel/bpf/btf.c:btf_check_dtor_kfuncs
SHAPES = {
    "good": 0,
    "gone": 0,
    "returns": errno.EINVAL,
    "none": errno.EINVAL,
    "two": errno.EINVAL,
    "number": errno.EINVAL,
    "structure": errno.EINVAL,
    "255": 0,
    "256": errno.E2BIG,
}

# A structure of the kernel, and the destructors that it has had by the names they have had
KERNEL_TYPES = {
    "task_struct": ("bpf_task_release_dtor",),
    "cgroup": ("bpf_cgroup_release_dtor",),
    "bpf_cpumask": ("bpf_cpumask_release_dtor",),
    "bpf_crypto_ctx": ("bpf_crypto_ctx_release_dtor",),
    "sk_buff": ("bpf_kfree_skb_dtor",),
    "prog_test_ref_kfunc": ("bpf_kfunc_call_test_release_dtor", "bpf_kfunc_call_test_release"),
    "bpf_ksock": ("bpf_ksock_release_dtor",),
    "inode": (),
    "sock": (),
}


@pytest.fixture(autouse=True)
def _built() -> None:
    if reason := missing("kr_dtors"):
        pytest.skip(reason)


@contextmanager
def registered(shape: str) -> Iterator[None]:
    """The module with a destructor of this shape. Raises OSError if it cannot be loaded."""
    modules.load_test_module("kr_dtors", f"shape={shape}")
    try:
        yield
    finally:
        modules.unload_when_unused("kr_dtors")


def attempt(shape: str) -> int:
    """0 if such a destructor can be registered, else the errno that the module's load fails with."""
    try:
        with registered(shape):
            return 0
    except OSError as error:
        assert modules.find("kr_dtors") is None
        return error.errno or 0


def owning(pointee: str) -> str:
    """What a pointer with the owning tag to this structure is: see `kind`; the errno's name if its types do not load.

    Up to 6.11 the types load, the map is made, and there is no pointer in it.
    """
    try:
        pointers = pointer_map(owning_tag(), pointee)
    except BpfError as error:
        assert error.command == "BPF_BTF_LOAD"
        return error.errno_name
    with pointers:
        return kind(pointers)


def test_destructor_is_a_function_of_one_pointer() -> None:
    """KPTR-MAP-028: that returns nothing; fewer than 256 of them."""
    with Mark.now() as log:
        assert {shape: attempt(shape) for shape in SHAPES} == SHAPES
        said = "\n".join(record.text for record in log.read())
    assert "cannot register more than 256 kfunc destructors" in said


@pytest.mark.expect_splat(r"register_btf_id_dtor_kfuncs", reason="a module registers destructors twice")
def test_module_registers_its_destructors_at_once() -> None:
    """KPTR-MAP-028: a second call is refused, and forgets the first one's; the kernel complains."""
    assert attempt("twice") == errno.EINVAL
    assert attempt("good") == 0


def test_pointer_owns_if_its_destructor_has_a_symbol() -> None:
    """KPTR-MAP-008, -032: a module's function that ended with its initialisation releases nothing."""
    with registered("good"):
        assert owning("kr_owned") == "owning"
        assert owning("kr_owned_too") == ("ENOENT" if types_are_parsed_early() else "data")
    with registered("gone"):
        assert owning("kr_owned") == ("EINVAL" if types_are_parsed_early() else "data")


def test_structures_with_a_destructor_can_be_owned() -> None:
    """KPTR-MAP-005, -006, -029, -032: all others can only be looked at; since 6.12 their types do not even load."""
    kernel = btf.vmlinux()
    present = [each for each in KERNEL_TYPES if kernel.find(each, uapi.BTF_KIND_STRUCT) is not None]
    assert len(present) >= 3
    expected = {}
    for each in present:
        has_destructor = any(kernel.has_func(name) for name in KERNEL_TYPES[each])
        expected[each] = "owning" if has_destructor else "ENOENT" if types_are_parsed_early() else "data"
    assert {each: owning(each) for each in present} == expected
    assert "owning" in expected.values()

    for each in present:
        with pointer_map(viewing_tag(), each) as pointers:
            assert kind(pointers) == "viewing"
