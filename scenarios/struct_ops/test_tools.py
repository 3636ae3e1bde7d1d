# SPDX-License-Identifier: MIT
"""bpftool, ss and the sysctls tell of tables what our own look-ups tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.net import VethPair
from harness.guest.tools import ToolError, bpftool, run, ss
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm, inuse, seen
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available

pytestmark = [pytest.mark.requires("struct_ops")]

OBJECT = Path(__file__).with_name("reno.bpf.o")
OBJECTS_NAME, OBJECTS_ALGORITHM = "members", "kr_unused"  # of the table in OBJECT
STATES = ("INIT", "INUSE", "TOBEFREE", "READY")


def struct_ops_rows(*tables: StructOps) -> list[dict[str, Any]]:
    """What `bpftool struct_ops show` should list."""
    return [{"id": t.map.id, "name": t.map.info().name, "kernel_struct_ops": TYPE} for t in tables]


def described(ops: StructOps) -> list[dict[str, Any]]:
    """What `bpftool struct_ops dump` should tell about a table: map info, as far as the kernel's BTF has it, and
    contents."""
    known = {member.name for member in ops.btf.members(ops.btf.struct("bpf_map_info"))}
    info = {name: 0 for name in known if name} | asdict(ops.map.info())
    info = {name: value for name, value in info.items() if name in known}
    return [{"bpf_map_info": info}, {f"bpf_struct_ops_{TYPE}": formatted(ops)}]


def formatted(ops: StructOps) -> dict[str, Any]:
    """The contents of a table as bpftool prints them by BTF, functions as the ids of their programs."""
    contents = ops.contents()
    data: dict[str, Any] = dict(contents.members)
    data["name"] = contents.members["name"].rstrip(b"\0").decode()  # type: ignore[union-attr]
    data["list"] = {"next": 0, "prev": 0}
    head = {
        "refcnt": {"refs": {"counter": contents.refcnt}},
        "state": f"BPF_STRUCT_OPS_STATE_{STATES[contents.state]}",
    }
    return {"common": head, "data": data} if has("module_struct_ops") else {**head, "data": data}


def dumped(*selector: object) -> list[dict[str, Any]]:
    """`bpftool struct_ops dump`, functions as ids: it writes "u32 (struct sock *) NAME/prog_id:3"."""
    rows: list[dict[str, Any]] = bpftool("struct_ops", "dump", *selector)
    for row in rows:
        for value in (each for name, each in row.items() if name.startswith("bpf_struct_ops_")):
            for name, text in value["data"].items():
                if found := re.fullmatch(r"\w+ \(.*\) (?:0|.*/prog_id:(\d+))", str(text)):
                    value["data"][name] = int(found[1] or 0)
    return rows


def test_bpftool_shows_tables_as_look_ups_do(
    new_ops: NewOps, idle: Algorithm, reno: Algorithm, veth: VethPair
) -> None:
    """STOPS-CMD-002 to -004, STOPS-INFO-001, STOPS-STATE-001 to -003, -005, STOPS-LAW-005: whole structures, in every
    state.
    """
    empty, used, left = new_ops(), new_ops(), new_ops()
    used.update({**idle.members(), "flags": 2})
    left.update(reno.members("kr_left"))
    left.delete()
    tables = [empty, used, left]
    if has("struct_ops_link"):
        linked = new_ops(uapi.BPF_F_LINK)
        linked.update(idle.members("kr_ready"))
        tables.append(linked)
    with tcp.connect(veth, congestion=NAME):
        assert seen(used) == inuse(2)
        assert bpftool("struct_ops", "show") == struct_ops_rows(*tables)
        assert dumped() == [part for table in tables for part in described(table)]
        [element] = bpftool("map", "dump", "id", used.map.id)
        assert bytes(int(byte, 16) for byte in element["value"]) == used.lookup()
        assert bytes(int(byte, 16) for byte in element["key"]) == bytes(4)
        assert element["formatted"] == {"value": formatted(used)}


def map_row(ops: StructOps) -> dict[str, Any]:
    """What `bpftool map show` should tell, but for the memory."""
    info = ops.map.info()
    return {
        "id": info.id,
        "type": "struct_ops",
        "name": info.name,
        "flags": info.map_flags,
        "bytes_key": 4,
        "bytes_value": info.value_size,
        "max_entries": 1,
        "frozen": 0,
        "btf_id": info.btf_id,
    }


def test_bpftool_lists_maps_programs_and_links_as_their_infos_do(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-INFO-001 to -003, STOPS-LINK-023."""
    plain = new_ops()
    plain.update(idle.members())
    row = bpftool("map", "show", "id", plain.map.id)
    assert row.pop("bytes_memlock") >= 2 * plain.map.info().value_size
    assert row == map_row(plain)
    for name, id in plain.prog_ids().items():
        info = idle.progs[name].info()
        row = bpftool("prog", "show", "id", id)
        for unknown in ("loaded_at", "bytes_memlock"):
            del row[unknown]
        row.pop("orphaned", None)
        assert row == {
            "id": id,
            "type": "struct_ops",
            "name": name,
            "tag": info.tag.hex(),
            "gpl_compatible": True,
            "uid": 0,
            "bytes_xlated": info.xlated_prog_len,
            "jited": True,
            "bytes_jited": info.jited_prog_len,
            "map_ids": list(info.map_ids),
        }
    if has("struct_ops_link"):
        linked = new_ops(uapi.BPF_F_LINK)
        linked.update(idle.members("kr_linked"))
        with linked.link() as link:
            [row] = bpftool("link", "show")
            assert row == {"id": link.info().id, "type": "struct_ops", "prog_id": 0, "map_id": linked.map.id}


@pytest.fixture
def registered() -> Iterator[StructOps]:
    """The table that bpftool registered from an object file; unregistered when the scenario ends."""
    before = set(Map.ids())
    bpftool("struct_ops", "register", OBJECT)
    found = None
    for id in set(Map.ids()) - before:
        map = Map.from_id(id)
        if map.info().type == uapi.BPF_MAP_TYPE_STRUCT_OPS:
            found = StructOps.of(map, TYPE)
        else:
            map.close()
    assert found is not None
    with found:
        yield found
        if not found.map.closed and found.state() == uapi.BPF_STRUCT_OPS_STATE_INUSE:
            found.delete()


def test_bpftool_registers_and_unregisters(registered: StructOps, veth: VethPair) -> None:
    """STOPS-UPD-017, -019, STOPS-STATE-002, -014, STOPS-CMD-003: nobody has a descriptor but we, who reopened it."""
    names = {}
    for member, id in registered.prog_ids().items():
        with Prog.from_id(id) as prog:
            names[member] = prog.info().name
    assert names == {name: name for name in ("init", "release", "ssthresh", "cong_avoid", "undo_cwnd")}
    assert registered.map.info().name == OBJECTS_NAME
    assert seen(registered) == inuse(1)
    with tcp.connect(veth, congestion=OBJECTS_ALGORITHM) as pair:
        assert seen(registered) == inuse(2)

        run("bpftool", "struct_ops", "unregister", "id", registered.map.id)

        assert registered.state() == uapi.BPF_STRUCT_OPS_STATE_TOBEFREE
        assert OBJECTS_ALGORITHM not in available()
        pair.transfer(4096)
        with pytest.raises(ToolError):
            run("bpftool", "struct_ops", "unregister", "id", registered.map.id)
    map_id = registered.map.id
    registered.close()
    wait_until(lambda: map_id not in Map.ids(), timeout=10, what="the unregistered table to be freed")
    assert struct_ops_rows() == bpftool("struct_ops", "show")


def test_ss_and_sysctls_name_the_algorithms_that_tables_hold(
    veth: VethPair, new_ops: NewOps, idle: Algorithm
) -> None:
    """STOPS-TCP-010, -023, STOPS-CMD-004: as many sockets as the table shows references of users."""
    first, second = new_ops(), new_ops()
    first.update(idle.members("kr_first"))
    second.update(idle.members("kr_second"))
    with (
        tcp.connect(veth, congestion="kr_first"),
        tcp.connect(veth, congestion="kr_first"),
        tcp.connect(veth, congestion="kr_second"),
    ):
        with veth.ns_a.entered():
            lines = ss("-t", "-i")
        for ops, name in ((first, "kr_first"), (second, "kr_second")):
            users = sum(f" {name} " in line for line in lines)
            assert seen(ops) == inuse(1 + users) != inuse(1)
        assert {"kr_first", "kr_second"} <= set(tcp.available(veth.ns_a)) & set(available())
        first.delete()
        with veth.ns_a.entered():
            assert ss("-t", "-i") != [] and sum(" kr_first " in line for line in ss("-t", "-i")) == 2
        assert "kr_first" not in tcp.available(veth.ns_a)
