# SPDX-License-Identifier: MIT
"""BTF made by our builder and read back by libbpf, and what is computed from it."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from harness.guest.bpf import struct_ops, uapi
from harness.guest.bpf.btf import Btf
from harness.guest.bpf.btf_builder import BTF_INT_SIGNED, BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError

pytestmark = pytest.mark.skipif(ctypes.util.find_library("bpf") is None, reason="needs libbpf on the host")


@pytest.fixture
def types() -> Btf:
    b = BtfBuilder()
    u32 = b.integer("unsigned int", 4)
    u64 = b.integer("long", 8, encoding=BTF_INT_SIGNED)
    char = b.integer("char", 1)
    proto = b.func_proto(u32, [("sk", b.ptr(0)), ("ack", u32)])
    b.func("cong_avoid", proto)
    inner = b.struct("", 8, [("low", u32, 0), ("high", u32, 4)])
    nested = b.struct("nested", 16, [("wide", u64, 0), ("", inner, 8)])
    name = b.array(char, 16, u32)
    demo = b.struct(
        "demo_ops", 48, [("run", b.ptr(proto), 0), ("flags", u32, 8), ("name", name, 16), ("in_", nested, 32)]
    )
    common = b.struct("bpf_struct_ops_common_value", 8, [("refcnt", u32, 0), ("state", u32, 4)])
    b.struct("bpf_struct_ops_demo_ops", 112, [("common", common, 0), ("data", demo, 64)])
    b.enum("colours", [("RED", 1), ("BLUE", 7)])
    b.typedef("alias", b.const(nested))
    return Btf.parse(b.blob(), "demo")


def test_names_sizes_and_offsets(types: Btf) -> None:
    assert types.size(types.struct("nested")) == 16
    assert types.offset("nested", "wide") == 0
    assert types.offset("nested", "high") == 12, "through an anonymous structure"
    assert types.offset("demo_ops", "in_.low") == 40
    assert types.member(types.struct("demo_ops"), "name").index == 2
    assert types.strip(types.id("alias", uapi.BTF_KIND_TYPEDEF)).name == "nested"
    assert types.enum("colours") == {"RED": 1, "BLUE": 7}
    assert [p.name for p in types.parameters("cong_avoid")] == ["sk", "ack"]


def test_what_is_not_there_is_named(types: Btf) -> None:
    assert types.find("nothing", uapi.BTF_KIND_STRUCT) is None
    assert not types.has_func("nested"), "a structure is no function"
    with pytest.raises(LookupError, match="BTF of demo has no nothing"):
        types.struct("nothing")
    with pytest.raises(LookupError, match="nested has no member depth"):
        types.offset("nested", "depth")
    with pytest.raises(LookupError, match="no type 999"):
        types.type(999)


def test_malformed_btf_is_an_error() -> None:
    with pytest.raises(BpfError, match="btf__new: EINVAL"):
        Btf.parse(b"\x9f\xeb\x01\x00")


def test_strings_are_shared_and_ids_count_up() -> None:
    b = BtfBuilder()
    assert [b.integer("int", 4), b.fwd("int"), b.ptr(1)] == [1, 2, 3]
    assert b.string("int") == 1
    assert b.string("") == 0
    assert b.blob().count(b"int\0") == 1


@pytest.fixture
def ops(types: Btf) -> Iterator[struct_ops.StructOps]:
    map = Map(-1)
    map.__dict__["shape"] = SimpleNamespace(value_size=112)
    yield struct_ops.StructOps(map, "demo_ops", types)


def test_a_value_is_filled_by_member_names(
    ops: struct_ops.StructOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    prog = Prog(-1)
    monkeypatch.setattr(Prog, "fd", 77)
    value = ops.value({"run": prog, "flags": -1, "name": "kernrig"})
    assert len(value) == 112
    assert value[:64] == bytes(64), "the head must be zero"
    assert value[64:72] == b"\x4d" + bytes(7)
    assert value[72:80] == b"\xff\xff\xff\xff" + bytes(4)
    assert value[80:96] == b"kernrig" + bytes(9)


def test_a_value_that_does_not_fit_is_refused(ops: struct_ops.StructOps) -> None:
    with pytest.raises(ValueError, match=r"demo_ops\.name has 16 bytes, not 17"):
        ops.value({"name": "x" * 17})
    with pytest.raises(KeyError):
        ops.value({"no_such_member": 1})


def test_state_and_programs_are_read_from_the_value(
    ops: struct_ops.StructOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = bytearray(112)
    raw[0], raw[4], raw[64] = 3, uapi.BPF_STRUCT_OPS_STATE_INUSE, 42
    monkeypatch.setattr(ops.map, "lookup", lambda key: bytes(raw))
    assert (ops.refcnt(), ops.state(), ops.prog_ids()) == (3, 1, {"run": 42})
