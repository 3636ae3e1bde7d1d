# SPDX-License-Identifier: MIT
"""What the kernel demands of a struct_ops type that a module registers: its module fails to load otherwise."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf
from harness.guest.bpf.probe import has
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.kr_modules import missing

pytestmark = pytest.mark.requires("module_struct_ops")

REFUSED = {
    # STOPS-REG-002, -003
    "long_name": errno.EINVAL,
    "no_stubs": errno.EINVAL,
    # STOPS-REG-004
    "nowhere": errno.EINVAL,
    "no_value": errno.EINVAL,
    "value_of_one": errno.EINVAL,
    "value_of_three": errno.EINVAL,
    "value_headless": errno.EINVAL,
    "value_of_other": errno.EINVAL,
    # STOPS-REG-005, -006
    "65_members": errno.EINVAL,
    "anonymous": errno.EOPNOTSUPP,
    "bit_field": errno.EOPNOTSUPP,
    # STOPS-REG-008
    "returns_struct": errno.EINVAL,
    "varargs": errno.EINVAL,
    "big_argument": errno.EINVAL,
    "thirteen": errno.EINVAL,
    # STOPS-REG-009
    "returns_wide": errno.EOPNOTSUPP,
    # STOPS-REG-011
    "stub_nameless": errno.ENOENT,
    "stub_unknown": errno.ENOENT,
    "stub_arguments": errno.EINVAL,
    "suffix_on_int": errno.EINVAL,
    "suffix_elsewhere": errno.EINVAL,
    # STOPS-REG-012, -013
    "init_fails": errno.EINVAL,
    "twice": errno.EEXIST,
}


@pytest.fixture(autouse=True)
def _built() -> None:
    for name in ("kr_ops", "kr_shapes"):
        if reason := missing(name):
            pytest.skip(reason)


def attempt(shape: str) -> int:
    """0 if the type can be registered, else the errno that the module's load fails with."""
    try:
        modules.load_test_module("kr_shapes", f"shape={shape}")
    except OSError as error:
        assert modules.find("kr_shapes") is None
        return error.errno or 0
    modules.unload_when_unused("kr_shapes")
    return 0


def test_type_of_a_wrong_shape_fails_its_module() -> None:
    """STOPS-REG-002 to -006, -008, -009, -011 to -013, MODLIFE-MOD-012, MODLIFE-EDGE-002: each refusal leaves
    nothing behind, so that the same module loads with a good type afterwards.
    """
    assert {shape: attempt(shape) for shape in REFUSED} == REFUSED
    assert (attempt("good"), attempt("64_members")) == (0, 0)


def test_pointer_to_anything_but_a_structure_is_not_returned() -> None:
    """STOPS-REG-010: since members can return an object."""
    expected = errno.EOPNOTSUPP if has("struct_ops_ref_argument") else 0
    assert attempt("returns_pointer") == expected


def test_types_of_the_same_name_are_not_told_apart() -> None:
    """STOPS-REG-013: both are registered, and what is made of the name belongs to one of them."""
    modules.load_test_module("kr_shapes", "shape=namesake")
    with StructOps.create("kr_good", module="kr_shapes"):
        pass
    modules.unload_when_unused("kr_shapes")


def test_module_without_btf_loads_without_its_type(tmp_path: Path) -> None:
    """STOPS-REG-001, MODLIFE-EDGE-007: it loads and is at work, but programs do not know it."""
    whole = modules.path_of("kr_ops").read_bytes()
    assert whole.count(b"\0.BTF\0") == 1
    stripped = tmp_path / "kr_ops.ko"
    stripped.write_bytes(whole.replace(b"\0.BTF\0", b"\0.BTX\0"))

    modules.load(stripped)

    assert modules.state("kr_ops") == "live"
    assert not Path("/sys/kernel/btf/kr_ops").exists()
    assert Path("/sys/kernel/debug/kr_ops/stats").exists()
    with pytest.raises(LookupError):
        btf.module("kr_ops")
    modules.unload("kr_ops")
