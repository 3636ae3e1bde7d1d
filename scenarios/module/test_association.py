# SPDX-License-Identifier: MIT
"""Programs that are tied to a struct_ops table: what they find there, and what they hold.

kr_types' kfunc kr_ask calls member `one` of the table that the calling program is associated with: ENOENT if it is with
none, ENOTCONN if that table is not registered.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import add, asm, exit_, ldxdw, mov, r0, r1
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrTypes
from harness.guest.waiting import wait_until
from scenarios.module.module_type import ModuleType

pytestmark = pytest.mark.requires("struct_ops_association")

NONE, UNREGISTERED = -errno.ENOENT, -errno.ENOTCONN
ARGUMENT = ldxdw(r1, r1, 0)


@pytest.fixture
def first(kr_types: KrTypes) -> ModuleType:
    return ModuleType("kr_types", "kr_first")


def adding(first: ModuleType, value: int) -> Prog:
    """A program for member one: its argument and `value`."""
    return first.load("one", ARGUMENT, mov(r0, r1), add(r0, value))


def asking(first: ModuleType) -> Prog:
    """A program for member two that asks its table with the same argument."""
    return first.load("two", ARGUMENT, first.kfunc("kr_ask"))


def new_asker(first: ModuleType) -> Prog:
    """A program for test runs that asks its table with 5."""
    code = asm(mov(r1, 5), first.kfunc("kr_ask"), exit_())
    return Prog.load(
        code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE, fd_array=[0, first.btf.object]
    )


@pytest.fixture
def asker(first: ModuleType) -> Iterator[Prog]:
    with new_asker(first) as prog:
        yield prog


def ask(asker: Prog) -> int:
    """What it was answered."""
    return int.from_bytes(asker.test_run().retval.to_bytes(4, "little"), "little", signed=True)


def test_each_program_asks_the_table_it_is_tied_to(first: ModuleType, kr_types: KrTypes, asker: Prog) -> None:
    """STOPS-ASSOC-001, -002: by the command, or by being one of the table's own programs; from the first moment that
    the table is registered.
    """
    with (
        adding(first, 10) as ten,
        adding(first, 20) as twenty,
        asking(first) as two,
        asking(first) as other_two,
        first.table({"one": ten, "two": two}, flags=uapi.BPF_F_LINK) as table,
        first.linked({"one": twenty, "two": other_two}) as other,
        new_asker(first) as other_asker,
    ):
        assert ask(asker) == NONE
        asker.associate(table.map)
        other_asker.associate(other.map)
        assert (ask(asker), ask(other_asker)) == (UNREGISTERED, 25)
        with table.link():
            assert (ask(asker), ask(other_asker)) == (15, 25)
            assert sorted(kr_types.call("first", number, 3) for number in range(2)) == [13, 23]


def test_association_is_made_once(first: ModuleType, asker: Prog) -> None:
    """STOPS-ASSOC-001: in the kernel's order: a flag, descriptors, a program with a table of its own, another map."""
    with (
        asking(first) as own,
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1) as array,
        first.empty_table() as table,
        first.empty_table() as other,
    ):
        with refused(errno.EINVAL):
            asker.associate(table.map, flags=1)
        with refused(errno.EINVAL):
            asker.associate(asker)
        with refused(errno.EBADF):
            asker.associate(999)
        with refused(errno.EINVAL):
            asker.associate(array)
        with refused(errno.EINVAL):
            own.associate(table.map)

        asker.associate(table.map)
        asker.associate(table.map)
        with refused(errno.EBUSY):
            asker.associate(other.map)
        assert (table.refcnt(), other.refcnt()) == (0, 0)  # not counted before there is a value


def test_associated_program_holds_table_and_module(first: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-ASSOC-001, STOPS-CMD-006: one reference, until the program goes."""
    with adding(first, 1) as one, new_asker(first) as asker:
        with first.table({"one": one}, flags=uapi.BPF_F_LINK) as table:
            asker.associate(table.map)
            asker.associate(table.map)
            assert table.refcnt() == 1
            id = table.map.id
        with Map.from_id(id):
            pass
        with pytest.raises(BlockingIOError):
            kr_types.unload()
        assert ask(asker) == UNREGISTERED
    modules.unload_when_unused("kr_types")


def test_program_in_two_tables_is_tied_to_neither(first: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-ASSOC-002, STOPS-PROG-015: both tables take it, but it finds no table to ask any more."""
    with adding(first, 10) as one, asking(first) as two, first.linked({"one": one, "two": two}) as table:
        assert kr_types.call("first", 0, 3) == 13
        with first.linked({"one": one, "two": two}) as other:
            assert table.prog_ids() == other.prog_ids()
            assert [kr_types.call("first", number, 3) for number in range(2)] == [NONE, NONE]


@pytest.mark.known_issue(
    "STRUCT-OPS-LOST-ASSOCIATION", reason="a refused update takes it away from another table"
)
def test_refused_update_leaves_the_program_to_its_table(first: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-ASSOC-002, STOPS-UPD-018: as if the second table had never been written."""
    with (
        adding(first, 10) as one,
        asking(first) as two,
        first.linked({"one": one, "two": two}) as table,
        table.link(),
        table.link(),
        table.link(),
        first.empty_table() as other,
    ):
        with refused(errno.EEXIST):  # by reg: the module takes four tables
            other.update({"one": one, "two": two})
        assert kr_types.call("first", 0, 3) == 13


@pytest.mark.parametrize("registered", [True, False])
def test_timer_asks_the_table_of_its_program(first: ModuleType, registered: bool) -> None:
    """STOPS-ASSOC-001: from the callback, with no descriptor of the table left; registered or not any more."""
    with Object.open(Path(__file__).with_name("asking.bpf.o")) as object:
        object.load()
        with object.prog("start") as start, adding(first, 10) as one:
            with first.table({"one": one}, flags=uapi.BPF_F_LINK) as table:
                start.associate(table.map)
                link = table.link()
            with link:
                if not registered:
                    link.close()
                expected = 15 if registered else UNREGISTERED
                assert ask(start) == expected
                wait_until(lambda: object.number("fired") == 1, timeout=2, what="the timer")
                assert int.from_bytes(object.variable("answer").raw, "little", signed=True) == expected
