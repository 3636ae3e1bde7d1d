# SPDX-License-Identifier: MIT
"""libbpf makes tables of a module's type from an object's variables: what it fits together, leaves out and refuses."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.libbpf import checked, libbpf, messages
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrOps, KrTypes

TABLES = ("table", "later", "other_shape", "nowhere", "reused")
POINTER = 8
OBJECT = Path(__file__).with_name("tables.bpf.o")


@pytest.fixture
def tables(kr_ops: KrOps) -> Iterator[Object]:
    """tables.bpf.o, which makes no table yet."""
    with Object.open(OBJECT) as object:
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


def test_program_is_put_into_a_table_before_loading(tables: Object, kr_ops: KrOps) -> None:
    """STOPS-UPD-010, STOPS-PROG-015: one that was in none, in place of another, which is not loaded then."""
    tables.tune_map("table", autocreate=True)
    handle = libbpf().bpf_object__find_program_by_name(tables.handle, b"in_no_table")
    write(tables, "table", 0, handle.to_bytes(POINTER, "little"))
    tables.tune_prog("in_no_table", autoload=True)
    tables.load()
    with tables.attach_struct_ops("table"), tables.prog("in_no_table") as prog:
        assert kr_ops.call("compute", 1, 20, 22) == 0
        with StructOps.of(tables.map("table"), "kr_ops", module="kr_ops") as table:
            assert table.prog_ids()["compute"] == prog.id


def test_optional_table_is_made_on_request(tables: Object, kr_ops: KrOps) -> None:
    """STOPS-MAP-013: the section's name says that it is not made of itself, as its programs are not loaded."""
    with Object.open(OBJECT) as other:
        for name in TABLES:
            other.tune_map(name, autocreate=False)
        other.load()
        assert struct_ops_maps() == []
        with pytest.raises(BpfError):
            other.prog("add")
    tables.tune_map("optional", autocreate=True)
    tables.load()
    assert struct_ops_maps() == ["optional"]
    with tables.attach_struct_ops("optional"):
        assert kr_ops.call("compute", 2, 20, 22) == 42


def struct_ops_maps() -> list[str]:
    """The names of all maps of tables that there are."""
    found = []
    for id in Map.ids():
        with Map.from_id(id) as map:
            if map.info().type == uapi.BPF_MAP_TYPE_STRUCT_OPS:
                found.append(map.info().name)
    return found


class MapSkeleton(ctypes.Structure):
    """struct bpf_map_skeleton, as bpftool generates it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("map", ctypes.POINTER(ctypes.c_void_p)),
        ("mmaped", ctypes.POINTER(ctypes.c_void_p)),
        ("link", ctypes.POINTER(ctypes.c_void_p)),
    )


class Skeleton(ctypes.Structure):
    """struct bpf_object_skeleton."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_char_p),
        ("data_sz", ctypes.c_size_t),
        ("obj", ctypes.POINTER(ctypes.c_void_p)),
        ("map_cnt", ctypes.c_int),
        ("map_skel_sz", ctypes.c_int),
        ("maps", ctypes.POINTER(MapSkeleton)),
        ("prog_cnt", ctypes.c_int),
        ("prog_skel_sz", ctypes.c_int),
        ("progs", ctypes.c_void_p),
    )


def test_skeleton_links_the_tables_that_nobody_excepted(kr_ops: KrOps) -> None:
    """STOPS-LINK-005: all of an object's tables are registered by one call, until their links go."""
    wanted = (b"table", b"optional")
    maps, links = ((ctypes.c_void_p * 2)() for _ in range(2))
    entries = (MapSkeleton * 2)()
    for entry, name, map, link in zip(entries, wanted, _places(maps), _places(links), strict=True):
        entry.name, entry.map, entry.link = name, map, link
    image, object = OBJECT.read_bytes(), ctypes.c_void_p()
    skeleton = Skeleton(
        *(ctypes.sizeof(Skeleton), b"tables", image, len(image), ctypes.pointer(object)),
        *(len(wanted), ctypes.sizeof(MapSkeleton), entries, 0, 0, None),
    )
    library = libbpf()
    with messages() as log:
        checked(library.bpf_object__open_skeleton(ctypes.byref(skeleton), None), "open_skeleton", log)
        with Object(object.value or 0, "tables") as opened:
            for table in TABLES:
                opened.tune_map(table, autocreate=table == "table")
            opened.tune_map("optional", autocreate=True)
            checked(library.bpf_object__load_skeleton(ctypes.byref(skeleton)), "load_skeleton", log)
            checked(library.bpf_map__set_autoattach(ctypes.c_void_p(maps[1]), False), "set_autoattach", log)

            checked(library.bpf_object__attach_skeleton(ctypes.byref(skeleton)), "attach_skeleton", log)

            assert [bool(link) for link in links] == [True, False]
            assert kr_ops.call("compute", 1, 20, 22) == 42
            assert len(kr_ops.tables()) == 1
            library.bpf_link__destroy(links[0])
            assert kr_ops.tables() == []


def _places(array: ctypes.Array[ctypes.c_void_p]) -> list[Any]:
    """A pointer to each element."""
    size = ctypes.sizeof(ctypes.c_void_p)
    return [ctypes.pointer(ctypes.c_void_p.from_buffer(array, size * number)) for number in range(len(array))]


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
    said = "'in_no_table': SEC(\"struct_ops\") program isn't referenced anywhere, did you forget to use it?"
    refused_by_library(tables, errno.EINVAL, said)


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
