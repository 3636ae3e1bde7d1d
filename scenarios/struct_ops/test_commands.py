# SPDX-License-Identifier: MIT
"""Descriptors with less than all rights, pins, other holders, and what a pinned map reads like."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import ProgAssocStructOps
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import bpf, refused
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm, inuse, ready, seen, seen_by_id, tobefree
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available

pytestmark = [pytest.mark.requires("struct_ops")]


@pytest.fixture
def pin() -> Iterator[Path]:
    """A path for a pin, which is removed when the scenario ends."""
    path = Path("/sys/fs/bpf/kernrig-table")
    yield path
    path.unlink(missing_ok=True)


def wait_until_freed(map_id: int) -> None:
    """Freeing waits for RCU-tasks grace periods (STOPS-QUIRK-009)."""
    wait_until(lambda: map_id not in Map.ids(), timeout=10, what=f"struct_ops map {map_id} to be freed")


def test_descriptor_allows_what_it_was_opened_for(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-CMD-013, STOPS-UPD-001: look-up and next key need the right to read, update and delete that to write."""
    with (
        StructOps.of(Map.from_id(ops.map.id, open_flags=uapi.BPF_F_RDONLY), TYPE) as reader,
        StructOps.of(Map.from_id(ops.map.id, open_flags=uapi.BPF_F_WRONLY), TYPE) as writer,
    ):
        writes: tuple[Callable[[], None], ...] = (lambda: reader.update(idle.members()), reader.delete)
        for _ in ("INIT", "INUSE"):
            for call in (writer.lookup, writer.map.next_key):
                with refused(errno.EPERM):
                    call()
            for act in writes:
                with refused(errno.EPERM):
                    act()
            assert reader.lookup() == ops.lookup()
            assert reader.map.next_key() == bytes(4)
            if ops.state() == uapi.BPF_STRUCT_OPS_STATE_INIT:
                writer.update(idle.members())
            assert seen(reader) == inuse(1)
        writer.delete()
        assert seen(reader) == tobefree(0)


def test_registered_table_outlives_the_process_that_made_it(idle: Algorithm) -> None:
    """STOPS-STATE-014, STOPS-QUIRK-008: nobody has a descriptor; whoever may list ids can find it and unregister it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ops = StructOps.create(TYPE)
        ops.update(idle.members())
        os.write(writing, str(ops.map.id).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        map_id = int(stream.read())
    assert os.waitpid(child, 0)[1] == 0

    assert seen_by_id(map_id) == inuse(1)
    assert NAME in available()
    with StructOps.of(Map.from_id(map_id), TYPE) as found:
        found.delete()
    assert NAME not in available()
    wait_until_freed(map_id)


@pytest.mark.requires("struct_ops_link")
def test_ready_map_lives_by_its_descriptors_pins_and_links(
    link_ops: StructOps, idle: Algorithm, pin: Path
) -> None:
    """STOPS-STATE-015, STOPS-CMD-004, -014, STOPS-LINK-005: pins are users, not references that the value shows."""
    link_ops.update(idle.members())
    map_id, contents = link_ops.map.id, link_ops.contents()
    link_ops.map.pin(pin)
    assert link_ops.contents() == contents
    link_ops.close()

    with StructOps.of(Map.get(pin), TYPE) as reopened:
        assert (reopened.map.id, reopened.contents()) == (map_id, contents)
        link = reopened.link()
    pin.unlink()
    with link:
        assert seen_by_id(map_id) == ready(1)
        assert NAME in available()
    assert NAME not in available()
    wait_until_freed(map_id)


def test_unregistered_table_lives_by_its_pin(ops: StructOps, idle: Algorithm, pin: Path) -> None:
    """STOPS-CMD-014, STOPS-STATE-010, -016: reopened, it is still TOBEFREE."""
    ops.update(idle.members())
    ops.map.pin(pin)
    map_id = ops.map.id
    ops.delete()
    ops.close()
    with StructOps.of(Map.get(pin), TYPE) as reopened:
        assert seen(reopened) == tobefree(0)
        with refused(errno.EBUSY):
            reopened.update(idle.members())
    pin.unlink()
    wait_until_freed(map_id)


def test_program_that_is_bound_to_a_map_counts_as_a_reference(
    ops: StructOps, idle: Algorithm, sched_cls: LoadSchedCls
) -> None:
    """STOPS-CMD-004 to -006: until the program is gone. (Mainline's older counter of its own would not tell it; 6.1.y
    has the newer one by now.)"""
    ops.update(idle.members())
    with sched_cls() as holder:
        holder.bind_map(ops.map)
        holder.bind_map(ops.map)
        assert seen(ops) == inuse(2)
        assert ops.map.id in holder.info().map_ids
    wait_until(lambda: seen(ops) == inuse(1), timeout=10, what="the program's reference to go")


def associate(prog: Prog | Map, map: Map | Prog, *, flags: int = 0) -> None:
    """Tie a program to a table. Raises BpfError."""
    bpf(uapi.BPF_PROG_ASSOC_STRUCT_OPS, ProgAssocStructOps(prog_fd=prog.fd, map_fd=map.fd, flags=flags))


@pytest.mark.requires("struct_ops_association")
def test_program_is_tied_to_one_table_and_holds_it(
    ops: StructOps, new_ops: NewOps, idle: Algorithm, sched_cls: LoadSchedCls
) -> None:
    """STOPS-ASSOC-001, STOPS-CMD-006: in every state, until the program is gone; a second table is refused."""
    other = new_ops()
    with sched_cls() as holder:
        with refused(errno.EINVAL):
            associate(holder, ops.map, flags=1)
        with refused(errno.EINVAL):
            associate(ops.map, ops.map)
        with refused(errno.EINVAL):
            associate(idle.progs["init"], ops.map)
        with refused(errno.EINVAL):
            associate(holder, holder)
        with refused(errno.EINVAL):
            associate(holder, idle.memory)
        for _ in ("first", "again"):
            associate(holder, ops.map)
        with refused(errno.EBUSY):
            associate(holder, other.map)
        ops.update(idle.members())
        assert seen(ops) == inuse(2)
        ops.delete()
        assert seen(ops) == tobefree(1)
    wait_until(lambda: seen(ops) == tobefree(0), timeout=10, what="the program's reference to go")


@pytest.mark.requires("struct_ops_association")
def test_programs_of_tables_are_tied_by_the_update_alone(
    ops: StructOps, new_ops: NewOps, idle: Algorithm
) -> None:
    """STOPS-ASSOC-002: without a reference to the map, and a second table takes them all the same."""
    ops.update(idle.members())
    assert seen(ops) == inuse(1)
    second = new_ops()
    second.update(idle.members("kr_second"))
    assert (seen(ops), seen(second)) == (inuse(1), inuse(1))


def test_pinned_map_reads_as_one_value(ops: StructOps, idle: Algorithm, pin: Path) -> None:
    """STOPS-CMD-015: the state by its name, members in order; of function members only whether there is one."""
    ops.map.pin(pin)
    members = list(ops.members)
    for state in ("INIT", "INUSE", "TOBEFREE"):
        comments, [value] = split_comments(pin.read_text())
        assert comments
        assert f"BPF_STRUCT_OPS_STATE_{state}" in value
        words = re.findall(
            r"[{,]((?:0x)?[0-9a-f]+|\[[^]]*\]|\{[^{}]*\})", value.split(f"STATE_{state}", 1)[1]
        )
        shown = dict(zip(members, words, strict=True))
        filled = {name for name in ops.functions if int(shown[name], 16)}
        if state == "INIT":
            assert filled == set()
            ops.update(idle.members())
            continue
        assert filled == set(idle.progs)
        assert "".join(re.findall("'(.)'", shown["name"])) == NAME
        if state == "INUSE":
            ops.delete()


def split_comments(text: str) -> tuple[list[str], list[str]]:
    """The lines that warn, and the others that are not empty."""
    lines = [line for line in text.splitlines() if line]
    return [line for line in lines if line.startswith("#")], [
        line for line in lines if not line.startswith("#")
    ]
