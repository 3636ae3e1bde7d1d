# SPDX-License-Identifier: MIT
"""libbpf makes tables of a module's type from an object's variables: what it fits together, leaves out and refuses."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.guest.bpf import btf
from harness.guest.bpf.object import Object
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrOps, KrTypes

TABLES = ("table", "later", "other_shape", "nowhere", "reused")
POINTER = 8


@pytest.fixture
def tables(kr_ops: KrOps) -> Iterator[Object]:
    """tables.bpf.o, which makes no table yet."""
    with Object.open(Path(__file__).with_name("tables.bpf.o")) as object:
        for name in TABLES:
            object.tune_map(name, autocreate=False)
        yield object


def test_table_is_fitted_to_the_modules_structure(tables: Object, kr_ops: KrOps) -> None:
    """STOPS-MAP-006, STOPS-INFO-001, STOPS-PROG-015: members are found by name; what is in no table that is made, such
    as a program for an unknown type, is not loaded.
    """
    tables.tune_map("table", autocreate=True)
    tables.load()
    with tables.attach_struct_ops("table"), tables.map("table") as map:
        assert map.info().btf_vmlinux_id == btf.module("kr_ops").object.id
        assert "slot=1 scale=-7 compute=1 inspect=1" in kr_ops.tables()[0]
        assert (kr_ops.call("compute", 1, 20, 22), kr_ops.call("inspect", 1, 0)) == (42, 9)
    for name in ("add_later", "run", "in_no_table"):
        with pytest.raises((BpfError, LookupError)):
            tables.prog(name)


def test_member_taken_out_before_loading_is_empty(tables: Object, kr_ops: KrOps) -> None:
    """STOPS-UPD-010: nor is the program loaded that stood there."""
    tables.tune_map("table", autocreate=True)
    write(tables, "table", POINTER, bytes(POINTER))
    tables.load()
    with (
        tables.attach_struct_ops("table"),
        StructOps.of(tables.map("table"), "kr_ops", module="kr_ops") as table,
    ):
        assert set(table.prog_ids()) == {"compute"}
    with pytest.raises((BpfError, LookupError)):
        tables.prog("inspect")


def test_unknown_member_must_be_zero(tables: Object, kr_ops: KrOps) -> None:
    """STOPS-UPD-009, -010: a later version of the type is accepted as long as it does not use what is new."""
    tables.tune_map("later", autocreate=True)
    tables.load()
    with tables.attach_struct_ops("later"):
        assert kr_ops.call("compute", 0, 20, 22) == 43


def test_unknown_member_that_is_used_is_refused(tables: Object) -> None:
    """STOPS-UPD-009: by libbpf, before the kernel is asked."""
    tables.tune_map("later", autocreate=True)
    write(tables, "later", 2 * POINTER + 4, b"\1")
    refused_by_library(tables, errno.ENOTSUP, "more_data")


WRONG = {
    "other_shape": (("other_shape",), errno.ENOTSUP, "slot"),
    "unknown_type": (("table", "nowhere"), errno.ESRCH, "kr_nowhere"),
    "program_of_two_types": (("table", "reused"), errno.EINVAL, "invalid reuse of prog add"),
}


@pytest.mark.parametrize(("made", "number", "said"), WRONG.values(), ids=WRONG)
def test_table_that_does_not_fit_is_refused(
    tables: Object, kr_types: KrTypes, made: tuple[str, ...], number: int, said: str
) -> None:
    """STOPS-UPD-009, STOPS-PROG-015: nothing of the object is loaded then."""
    for name in made:
        tables.tune_map(name, autocreate=True)
    refused_by_library(tables, number, said)


def test_program_in_no_table_is_refused(tables: Object) -> None:
    """STOPS-PROG-015: libbpf learns from the table what it is for."""
    tables.tune_map("table", autocreate=True)
    tables.tune_prog("in_no_table", autoload=True)
    refused_by_library(tables, errno.EINVAL, "in_no_table")


def write(object: Object, table: str, at: int, content: bytes) -> None:
    """Change a table's variable before it is loaded."""
    memory = object.initial_value(table)
    raw = bytearray(memory.raw)
    raw[at : at + len(content)] = content
    memory.raw = bytes(raw)


def refused_by_library(object: Object, number: int, said: str) -> None:
    with pytest.raises(BpfError) as refused:
        object.load()
    assert said in refused.value.log
    assert refused.value.errno == number
