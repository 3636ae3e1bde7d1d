# SPDX-License-Identifier: MIT
"""A CPU scheduler made of programs: the system runs by it, until it is unregistered or gives up itself."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    add,
    asm,
    atomic_add,
    call_kfunc,
    exit_,
    jeq,
    label,
    ld_imm64,
    ld_map_value,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r10,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.struct_ops import Filling, StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import inuse, seen

pytestmark = pytest.mark.requires("struct:bpf_struct_ops_sched_ext_ops")

TYPE, NAME = "sched_ext_ops", "kr_scheduler"
SYSFS = Path("/sys/kernel/sched_ext")
NOTHING = asm(mov(r0, 0), exit_())
# include/linux/sched/ext.h
SCX_DSQ_GLOBAL, SCX_SLICE_DFL = 1 << 63 | 1, 20_000_000
ROUNDS = 5


def state() -> str:
    """enabled, disabled, or on the way."""
    return (SYSFS / "state").read_text().strip()


def run_something() -> None:
    """A process that begins and ends, as the scheduler lets it."""
    subprocess.run(["/bin/true"], check=True, timeout=30)


NewMembers = Callable[[Mapping[str, Code]], dict[str, Filling]]


@pytest.fixture
def members() -> Iterator[NewMembers]:
    """Makes a table's members of code; its programs are closed when the scenario ends."""
    with ExitStack() as stack:

        def load(code: Mapping[str, Code]) -> dict[str, Filling]:
            progs = {
                name: stack.enter_context(load_struct_ops_prog(TYPE, name, each))
                for name, each in code.items()
            }
            return {**progs, "name": NAME}

        yield load


@pytest.fixture
def ops() -> Iterator[StructOps]:
    """A plain map for a scheduler; it is unregistered if the scenario leaves it so."""
    with StructOps.create(TYPE) as ops:
        yield ops
        if ops.state() == uapi.BPF_STRUCT_OPS_STATE_INUSE:
            ops.delete()


def test_table_of_a_name_alone_runs_the_system_again_and_again(ops: StructOps, members: NewMembers) -> None:
    """STOPS-UPD-010, -016, -017, STOPS-STATE-002: all functions are optional; a second scheduler is EBUSY."""
    ops.update(members({}))
    assert (state(), (SYSFS / "root/ops").read_text().strip()) == ("enabled", NAME)
    assert seen(ops) == inuse(1)
    run_something()
    with StructOps.create(TYPE) as second, refused(errno.EBUSY):
        second.update(members({}))
    ops.delete()
    assert state() == "disabled"

    for _ in range(ROUNDS):
        with StructOps.create(TYPE) as again:
            again.update(members({}))
            run_something()
            assert state() == "enabled"
            again.delete()
            assert state() == "disabled"
    assert not (SYSFS / "root").exists()


def give_to_all(*before: Item) -> Code:
    """A program for enqueue: the task goes to the queue that all CPUs take from; 6.13 gave the call another name."""
    types = btf.vmlinux()
    return asm(
        mov(r6, r1),
        *before,
        ldxdw(r1, r6, 0),
        ldxdw(r4, r6, 8),
        ld_imm64(r2, SCX_DSQ_GLOBAL),
        mov(r3, SCX_SLICE_DFL),
        call_kfunc(
            types.func("scx_bpf_dsq_insert" if types.has_func("scx_bpf_dsq_insert") else "scx_bpf_dispatch")
        ),
        mov(r0, 0),
        exit_(),
    )


def where_it_was() -> Code:
    """A program for select_cpu: the task stays on its CPU."""
    return asm(ldxw(r0, r1, 8), exit_())


def test_table_of_all_functions_runs_the_system(ops: StructOps, members: NewMembers) -> None:
    """STOPS-UPD-013, -017, STOPS-CMD-003: each member has its program."""
    # sub-schedulers need another kind of table ("cid-form", as the kernel's refusal says)
    own = [name for name in ops.functions if not name.startswith("sub_")]
    everything = dict.fromkeys(own, NOTHING)
    everything |= {"enqueue": give_to_all(), "select_cpu": where_it_was()}
    ops.update(members(everything))
    run_something()
    assert (state(), set(ops.prog_ids())) == ("enabled", set(everything))
    ops.delete()


class Tally:
    """Programs that count how often they ran."""

    def __init__(self, memory: Map, *names: str) -> None:
        self._memory, self._names = memory, names

    def count(self, name: str) -> Item:
        """Instructions that count a run of `name`; they change r1 and r2."""
        at = 8 * self._names.index(name)
        return ld_map_value(r1, self._memory, at), mov(r2, 1), atomic_add(r1, 0, r2)

    def runs(self) -> dict[str, int]:
        """How often each ran."""
        raw = self._memory.lookup(0)
        assert raw is not None
        return {
            name: int.from_bytes(raw[8 * at : 8 * at + 8], "little") for at, name in enumerate(self._names)
        }


@pytest.fixture
def tally() -> Iterator[Tally]:
    names = ("init", "exit", "init_task", "exit_task", "enable", "disable")
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8 * len(names), 1) as memory:
        yield Tally(memory, *names)


def test_what_is_initialised_and_enabled_is_disabled_and_let_go(
    ops: StructOps, members: NewMembers, tally: Tally
) -> None:
    """STOPS-UPD-017, STOPS-SEED-001: the scheduler once, each task once, those that came and went meanwhile as well."""
    ops.update(members({name: asm(tally.count(name), mov(r0, 0), exit_()) for name in tally.runs()}))
    for _ in range(ROUNDS):
        run_something()
    ops.delete()
    runs = tally.runs()
    assert runs["init"] == runs["exit"] == 1
    assert runs["init_task"] == runs["exit_task"] > ROUNDS
    assert runs["enable"] == runs["disable"] > ROUNDS


def test_argument_that_may_be_null_must_be_tested() -> None:
    """STOPS-PROG-016: of dispatch and yield the second task."""
    for member, at in (("dispatch", 8), ("yield", 8)):
        code = ldxdw(r1, r1, at), jeq(r1, 0, "out"), ldxdw(r0, r1, 0), label("out"), mov(r0, 0), exit_()
        with refused(errno.EACCES):
            load_struct_ops_prog(TYPE, member, asm(*(each for each in code if each != code[1])))
        load_struct_ops_prog(TYPE, member, asm(*code)).close()


def giving_up() -> Item:
    """Instructions that end the scheduler from within a program; they change r0 to r5."""
    return (
        mov(r1, ord("x")),
        stxdw(r10, -8, r1),
        mov(r1, 0),
        stxdw(r10, -16, r1),
        mov(r1, 17),
        mov(r2, r10),
        add(r2, -8),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, 8),
        call_kfunc(btf.vmlinux().func("scx_bpf_exit_bstr")),
    )


GIVING_UP: dict[str, Callable[[], Code]] = {
    "enqueue": lambda: give_to_all(giving_up()),
    "dispatch": lambda: asm(giving_up(), mov(r0, 0), exit_()),
    "running": lambda: asm(giving_up(), mov(r0, 0), exit_()),
    "exit_task": lambda: asm(giving_up(), mov(r0, 0), exit_()),
}


@pytest.mark.parametrize("member", GIVING_UP)
def test_scheduler_may_give_up_from_any_function(
    ops: StructOps, members: NewMembers, tally: Tally, member: str
) -> None:
    """STOPS-STATE-002, -003, STOPS-LINK-025: the system goes on without it; its table stays to be unregistered."""
    leaving = asm(tally.count("exit"), mov(r0, 0), exit_())
    ops.update(members({member: GIVING_UP[member](), "exit": leaving}))

    run_something()
    wait_until(lambda: state() == "disabled", timeout=5, what="the scheduler to give up")

    wait_until(lambda: tally.runs()["exit"] == 1, timeout=2, what="its function exit to run")
    assert seen(ops) == inuse(1)
    with refused(errno.EBUSY):
        ops.update(members({}))
    ops.delete()
    with StructOps.create(TYPE) as another:
        another.update(members({}))
        assert state() == "enabled"
        another.delete()


@pytest.mark.vm(cpus=2)
def test_scheduler_that_knows_no_other_cpus_ends_when_one_goes(
    ops: StructOps, members: NewMembers, tally: Tally
) -> None:
    """MODLIFE-RACE-022, STOPS-STATE-002: and can be registered anew with the CPUs that there are."""
    cpu = Path("/sys/devices/system/cpu/cpu1/online")
    ops.update(members({"exit": asm(tally.count("exit"), mov(r0, 0), exit_())}))
    cpu.write_text("0")
    try:
        wait_until(lambda: state() == "disabled", timeout=5, what="the scheduler to end")
        ops.delete()
        assert tally.runs()["exit"] == 1
        with StructOps.create(TYPE) as another:
            another.update(members({}))
            run_something()
            assert state() == "enabled"
            another.delete()
    finally:
        cpu.write_text("1")
