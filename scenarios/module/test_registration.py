# SPDX-License-Identifier: MIT
"""What the kernel demands of a struct_ops type that a module registers: its module fails to load otherwise."""

from __future__ import annotations

import errno
import platform
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.probe import has
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import ENOTSUPP, refused
from harness.guest.kmsg import Mark
from harness.guest.kr_modules import missing

pytestmark = pytest.mark.requires("module_struct_ops")

# by shape: the errno, and what the kernel says to it
REFUSED = {
    # STOPS-REG-002, -003
    "long_name": (errno.EINVAL, "name kr_.* is too long"),
    "no_stubs": (errno.EINVAL, "kr_good has no cfi_stubs"),
    # STOPS-REG-004
    "nowhere": (errno.EINVAL, "Cannot find struct kr_nowhere"),
    "no_value": (errno.EINVAL, "Cannot find struct bpf_struct_ops_kr_a"),
    "value_of_one": (errno.EINVAL, "members should be 2, but we get 1"),
    "value_of_three": (errno.EINVAL, "members should be 2, but we get 3"),
    "value_headless": (errno.EINVAL, "first member .* should be bpf_struct_ops_common_value"),
    "value_of_other": (errno.EINVAL, "second member .* should be kr_value_of_other"),
    # STOPS-REG-005, -006
    "65_members": (errno.EINVAL, "Cannot support #65 members"),
    "anonymous": (errno.EOPNOTSUPP, "anon member in struct kr_anonymous"),
    "bit_field": (errno.EOPNOTSUPP, "bit field member bits"),
    # STOPS-REG-008
    "returns_struct": (errno.EINVAL, "return type .* is unsupported"),
    "varargs": (errno.EINVAL, "variable args is unsupported"),
    "big_argument": (errno.EINVAL, "arg0 type .* is unsupported"),
    "thirteen": (errno.EINVAL, "has 13 arguments. Too many"),
    # STOPS-REG-009
    "returns_wide": (errno.EOPNOTSUPP, ">8 byte return value"),
    # STOPS-REG-011
    "stub_nameless": (errno.ENOENT, "Cannot find the stub function name"),
    "stub_unknown": (errno.ENOENT, "Cannot find the stub function kr_stub_otherwise in btf"),
    "stub_arguments": (errno.EINVAL, "number of arguments of the stub function kr_stub does not match"),
    "suffix_on_int": (errno.EINVAL, "__nullable tagging to an unsupported type"),
    "suffix_on_int_pointer": (errno.EINVAL, "__nullable tagging to an unsupported type"),
    "suffix_elsewhere": (errno.EINVAL, "arg#0 type in stub function .* does not match"),
    # STOPS-REG-012; -013, whose EEXIST the module tells in another way
    "init_fails": (errno.EINVAL, "Error in init bpf_struct_ops kr_good"),
    "twice": (errno.ENOTUNIQ, ""),
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
    """STOPS-REG-002 to -006, -008, -009, -011 to -013, STOPS-FIX-006, MODLIFE-MOD-012, MODLIFE-EDGE-002: each is told
    in the log and leaves nothing behind, so that the same module loads with a good type afterwards.
    """
    wrong = {}
    for shape, (expected, said) in REFUSED.items():
        with Mark.now() as log:
            answer = attempt(shape)
            text = "\n".join(record.text for record in log.read())
        if answer != expected or not re.search(said, text):
            wrong[shape] = (answer, text)
    assert not wrong
    good = ("good", "64_members", "no_arguments", "many_words")
    assert {shape: attempt(shape) for shape in good} == dict.fromkeys(good, 0)


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


@contextmanager
def of_shape(shape: str, *, flags: int = 0) -> Iterator[StructOps]:
    """A fresh map of a type with this shape."""
    modules.load_test_module("kr_shapes", f"shape={shape}")
    try:
        with StructOps.create(f"kr_{shape}", module="kr_shapes", flags=flags) as ops:
            yield ops
    finally:
        modules.unload_when_unused("kr_shapes")


def test_pointer_to_data_that_the_type_does_not_take_must_be_zero() -> None:
    """STOPS-UPD-009, -018."""
    with of_shape("data_pointer") as ops:
        with refused(errno.EINVAL):
            ops.update({"pointer": 1})
        assert ops.state() == uapi.BPF_STRUCT_OPS_STATE_INIT
        ops.update({})
        assert ops.state() == uapi.BPF_STRUCT_OPS_STATE_INUSE
        ops.delete()


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="how many words a trampoline passes on is the machine's"
)
def test_function_of_more_words_than_a_trampoline_passes_on_stays_empty() -> None:
    """STOPS-UPD-022, -018: a type may have it, and it has programs, but no map takes one."""
    with (
        of_shape("many_words") as ops,
        load_struct_ops_prog("kr_many_words", "run", asm(mov(r0, 0), exit_()), module="kr_shapes") as prog,
    ):
        with refused(ENOTSUPP):
            ops.update({"run": prog})
        assert ops.state() == uapi.BPF_STRUCT_OPS_STATE_INIT
        assert ops.prog_ids() == {}
        ops.update({})
        ops.delete()


def test_map_of_a_type_that_is_larger_than_memory_is_not_made() -> None:
    """STOPS-MAP-014."""
    with refused(errno.ENOMEM), of_shape("huge"):
        pass


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


def test_module_with_foreign_btf_is_refused_or_loads_without_types(tmp_path: Path) -> None:
    """MODLIFE-EDGE-008: by the kernel's configuration; nobody believes the BTF that does not fit."""
    whole = modules.path_of("kr_ops").read_bytes()
    header = whole.index(struct.pack("<HBB", 0xEB9F, 1, 0))
    (length,) = struct.unpack_from("<I", whole, header + 4)
    kind = header + length + 7  # of the first type; there are not 31 kinds
    foreign = tmp_path / "kr_ops.ko"
    foreign.write_bytes(whole[:kind] + b"\x1f" + whole[kind + 1 :])
    try:
        modules.load(foreign)
    except OSError as error:
        assert (error.errno, modules.state("kr_ops")) == (errno.EINVAL, None)
    else:
        with pytest.raises(LookupError):
            btf.module("kr_ops")
        modules.unload("kr_ops")
    assert not Path("/sys/kernel/btf/kr_ops").exists()
