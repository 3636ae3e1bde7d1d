# SPDX-License-Identifier: MIT
"""What each command does in each state of a map, and that of racing commands one wins."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, exit_, ld_map_fd, mov, r0, r1
from harness.guest.bpf.attrs import MapElem
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import ENOTSUPP, bpf, errno_name, system_call
from harness.guest.errnos import errno_of
from harness.guest.waiting import slow_factor
from scenarios.struct_ops.algorithms import (
    NAME,
    Algorithm,
    Seen,
    inuse,
    ready,
    seen,
    tobefree,
)
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available

pytestmark = [pytest.mark.requires("struct_ops")]

INIT = Seen(0, 0)
RACERS, ROUNDS = 3, 10


@dataclass(frozen=True)
class State:
    """A state: how to come there, what a look-up shows, whether the name is known, and what commands answer (0: the
    state allows it)."""

    flags: int
    steps: tuple[str, ...]
    seen: Seen
    known: bool
    update: int
    delete: int
    link: int


STATES = {
    "plain INIT": State(0, (), INIT, False, 0, errno.ENOENT, errno.EINVAL),
    "plain INUSE": State(0, ("update",), inuse(1), True, errno.EBUSY, 0, errno.EINVAL),
    "plain TOBEFREE": State(
        0, ("update", "delete"), tobefree(0), False, errno.EBUSY, errno.EINPROGRESS, errno.EINVAL
    ),
    "link INIT": State(uapi.BPF_F_LINK, (), INIT, False, 0, errno.EOPNOTSUPP, errno.EINVAL),
    "link READY": State(uapi.BPF_F_LINK, ("update",), ready(0), False, errno.EBUSY, errno.EOPNOTSUPP, 0),
    "link READY, linked": State(
        uapi.BPF_F_LINK, ("update", "link"), ready(1), True, errno.EBUSY, errno.EOPNOTSUPP, errno.EEXIST
    ),
}


class Machine:
    """A map and the commands that change its state."""

    def __init__(self, ops: StructOps, algorithm: Algorithm) -> None:
        self.ops = ops
        self._algorithm = algorithm
        self._stack = ExitStack()

    def update(self, *, flags: int = 0, key: int = 0) -> None:
        self.ops.update(self._algorithm.members(), flags=flags, key=key)

    def delete(self, *, key: int = 0) -> None:
        self.ops.delete(key=key)

    def link(self) -> Link:
        return self._stack.enter_context(self.ops.link())

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def machine(state: State, new_ops: NewOps, idle: Algorithm) -> Iterator[Machine]:
    """A map in that state."""
    built = Machine(new_ops(state.flags), idle)
    for step in state.steps:
        getattr(built, step)()
    yield built
    built.close()


def raw(command: int, map: Map, *, key: int, flags: int = 0) -> Callable[[], object]:
    """A command of one element by its bare attributes, whose errno no wrapper interprets."""

    def call() -> None:
        attr = MapElem(map_fd=map.fd, flags=flags)
        attr.point("key", (ctypes.c_uint32 * 1)(key))
        attr.point("value", ctypes.create_string_buffer(map.shape.value_size))
        bpf(command, attr)

    return call


def harmless(ops: StructOps) -> dict[str, tuple[Callable[[], object], int]]:
    """Commands that answer the same in every state, and change nothing."""
    map = ops.map
    value = bytes(map.shape.value_size)
    use = asm(ld_map_fd(r1, map), mov(r0, 0), exit_())
    look_up = uapi.BPF_MAP_LOOKUP_ELEM
    return {
        "STOPS-CMD-001": (raw(look_up, map, key=1), errno.ENOENT),
        "look-up with a lock": (raw(look_up, map, key=0, flags=uapi.BPF_F_LOCK), errno.EINVAL),
        "STOPS-CMD-007": (raw(uapi.BPF_MAP_GET_NEXT_KEY, map, key=0), errno.ENOENT),
        "STOPS-CMD-008": (raw(uapi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key=0), ENOTSUPP),
        "STOPS-CMD-008, look-up": (lambda: map.lookup_batch(1), ENOTSUPP),
        "STOPS-CMD-008, look-up and delete": (lambda: map.lookup_batch(1, delete=True), ENOTSUPP),
        "STOPS-CMD-008, update": (lambda: map.update_batch([(0, value)]), ENOTSUPP),
        "STOPS-CMD-008, delete": (lambda: map.delete_batch([0]), ENOTSUPP),
        "STOPS-CMD-009": (map.freeze, ENOTSUPP),
        "STOPS-CMD-010": (lambda: Prog.load(use, uapi.BPF_PROG_TYPE_SCHED_CLS), errno.EINVAL),
        "STOPS-CMD-011": (
            lambda: Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, inner_map=map),
            ENOTSUPP,
        ),
        "STOPS-CMD-012": (lambda: mmap.mmap(map.fd, mmap.PAGESIZE), ENOTSUPP),
    }


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(state, id=name, marks=pytest.mark.requires("struct_ops_link") if state.flags else ())
        for name, state in STATES.items()
    ],
)
def test_commands_answer_by_the_state(state: State, machine: Machine) -> None:
    """STOPS-STATE-001 to -005, -010, -011, STOPS-CMD-001, -002, -007 to -012, STOPS-UPD-002, -003, -006, STOPS-LAW-001,
    -002: what the state refuses changes nothing, what it allows leads to the next state."""
    ops = machine.ops
    contents, names = ops.contents(), available()
    assert seen(ops) == state.seen
    assert (NAME in names) == state.known
    assert any(ops.lookup()) == (state.seen != INIT)
    assert (ops.map.next_key(), ops.map.next_key(7)) == (bytes(4), bytes(4))

    refusals = {
        "update with a flag": (lambda: machine.update(flags=uapi.BPF_EXIST), errno.EINVAL),
        "update of another key": (lambda: machine.update(key=1), errno.E2BIG),
        **{
            name: (call, error)
            for name, call, error in (
                ("update", machine.update, state.update),
                ("delete", machine.delete, state.delete),
                ("delete of another key", lambda: machine.delete(key=7), state.delete),
                ("link", machine.link, state.link),
            )
            if error
        },
    }
    wrong = {
        name: f"{errno_name(answer)}, not {errno_name(error)}"
        for name, (call, error) in {**harmless(ops), **refusals}.items()
        if (answer := errno_of(call)) != error
    }
    assert wrong == {}
    assert (ops.contents(), available()) == (contents, names)

    if not state.update:
        machine.update()
        assert seen(ops) == (ready(0) if state.flags else inuse(1))
    elif not state.delete:
        machine.delete(key=7)
        assert seen(ops) == tobefree(0)
        assert NAME not in available()
    elif not state.link:
        machine.link()
        assert seen(ops) == ready(1)
        assert NAME in available()


@dataclass(frozen=True)
class Call:
    """What became of a racing call: its errno, and when it began and ended."""

    errno: int
    began: float
    ended: float


def race(*calls: Callable[[], int]) -> list[Call]:
    """Make the calls at once, each in a thread of its own."""
    start = threading.Barrier(len(calls))
    outcomes: dict[int, Call] = {}

    def run(number: int, call: Callable[[], int]) -> None:
        start.wait()
        began = time.monotonic()
        failure = call()
        outcomes[number] = Call(failure, began, time.monotonic())

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[number] for number in range(len(calls))]


def overlapped(calls: list[Call]) -> bool:
    """Whether at least two of them were under way at the same time."""
    ordered = sorted(calls, key=lambda call: call.began)
    return any(first.ended > second.began for first, second in itertools.pairwise(ordered))


def element(command: int, ops: StructOps, value: bytes = b"") -> Callable[[], int]:
    """A call about key 0 whose attributes are ready, which gives the errno."""
    attr = MapElem(map_fd=ops.map.fd)
    attr.point("key", (ctypes.c_uint32 * 1)(0))
    if value:
        attr.point("value", ctypes.create_string_buffer(value, len(value)))
    return lambda: system_call(command, ctypes.byref(attr), ctypes.sizeof(attr))


@pytest.mark.vm(cpus=2)
def test_of_racing_updates_and_of_racing_deletes_one_wins(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-UPD-020, STOPS-STATE-012: the others get EBUSY and EINPROGRESS, and the name registered is the winner's."""
    names = [f"kr_racer{number}" for number in range(RACERS)]
    overlaps = {"update": 0, "delete": 0}
    for _ in range(ROUNDS):
        ops = new_ops()
        values = [ops.value(idle.members(name)) for name in names]
        updates = race(*(element(uapi.BPF_MAP_UPDATE_ELEM, ops, value) for value in values))

        assert sorted(each.errno for each in updates) == [0] + [errno.EBUSY] * (RACERS - 1)
        [winner] = (name for name, each in zip(names, updates, strict=True) if each.errno == 0)
        assert {name for name in names if name in available()} == {winner}
        assert ops.contents().members["name"] == winner.encode().ljust(16, b"\0")
        assert seen(ops) == inuse(1)

        deletes = race(*(element(uapi.BPF_MAP_DELETE_ELEM, ops) for _ in names))

        assert sorted(each.errno for each in deletes) == [0] + [errno.EINPROGRESS] * (RACERS - 1)
        assert winner not in available()
        assert seen(ops) == tobefree(0)
        overlaps["update"] += overlapped(updates)
        overlaps["delete"] += overlapped(deletes)
        ops.close()
    print(overlaps)
    assert all(overlaps.values()), "no calls were under way at the same time: nothing was tested"


@pytest.mark.vm(cpus=2)
def test_delete_racing_with_update_loses_no_registration(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-STATE-013: ENOENT until the registration can be seen in the map, then it is undone, once."""
    early = 0
    for _ in range(ROUNDS):
        ops = new_ops()
        delete = element(uapi.BPF_MAP_DELETE_ELEM, ops)
        refusals: list[int] = []

        def undo(delete: Callable[[], int] = delete, refusals: list[int] = refusals) -> int:
            deadline = time.monotonic() + 2 * slow_factor()
            while (failure := delete()) and time.monotonic() < deadline:
                refusals.append(failure)
            return failure

        update = element(uapi.BPF_MAP_UPDATE_ELEM, ops, ops.value(idle.members()))
        outcomes = race(update, undo)

        assert [each.errno for each in outcomes] == [0, 0]
        assert set(refusals) <= {errno.ENOENT}
        assert seen(ops) == tobefree(0)
        assert NAME not in available()
        early += bool(refusals)
        ops.close()
    assert early, "no delete came before the registration: nothing was tested"
