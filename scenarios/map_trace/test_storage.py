# SPDX-License-Identifier: MIT
"""Storage maps: programs and system calls make elements by one function, and delete them by several."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.btf_builder import BTF_INT_SIGNED, BtfBuilder
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Source
from harness.guest.bpf.map_trace_hooks import Hook, Operation
from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import require
from harness.guest.bpf.tracing import traceable
from scenarios.map_trace.conftest import Trace

HERE = Path(__file__).parent
MAPS = {"on_task": "of_task", "on_sk": "of_sk", "on_cgroup": "of_cgroup"}


class Storage:
    """A storage map and the program of storage.bpf.c that makes its element (of value 7), or deletes it."""

    def __init__(self, stack: ExitStack, program: str) -> None:
        self._object = stack.enter_context(Object.open(HERE / "storage.bpf.o"))
        for name, map in MAPS.items():
            self._object.tune_prog(name, autoload=name == program)
            self._object.tune_map(map, autocreate=name == program)
        self._object.load()
        self.map = stack.enter_context(self._object.map(MAPS[program]))
        self._prog = stack.enter_context(self._object.prog(program))
        stack.enter_context(Link.tracing(self._prog, uapi.BPF_TRACE_FENTRY))
        self._socket = stack.enter_context(socket.socket()) if program == "on_sk" else None
        if self._socket is not None:
            self.owner = self._socket.fileno()
        else:
            of_task = program == "on_task"
            self.owner = os.pidfd_open(os.getpid()) if of_task else os.open("/sys/fs/cgroup", os.O_RDONLY)
            stack.callback(os.close, self.owner)

    def run(self, *, deleting: bool = False) -> int:
        """Let the program do its work; 0, or a negative errno."""
        self._object.set_number("deleting", deleting)
        self._object.set_number("result", 99)
        if self._socket is not None:
            self._socket.listen()
        else:
            self._prog.test_run()
        return int.from_bytes(self._object.variable("result").raw, "little", signed=True)


@pytest.fixture
def storage() -> Iterator[Callable[[str], Storage]]:
    """A factory of storage maps by the name of their program."""
    with ExitStack() as stack:
        yield lambda program: Storage(stack, program)


HELPERS = {
    "on_task": ("bpf_pid_task_storage", "bpf_task_storage_delete"),
    "on_sk": ("bpf_fd_sk_storage", "bpf_sk_storage_delete"),
    "on_cgroup": ("bpf_cgrp_storage", "bpf_cgrp_storage_delete"),
}


@pytest.mark.parametrize("program", HELPERS)
def test_a_storages_changes_are_seen_from_both_sides(
    storage: Callable[[str], Storage], trace: Trace, program: str
) -> None:
    """MTRACE-HOOK-010, -011: the key that the shared function knows is the owner's address."""
    if program == "on_cgroup":
        require("fentry:bpf_cgrp_storage_get")
    system_call, helper = HELPERS[program]
    under_test = storage(program)
    map = under_test.map
    tracer = trace(map)
    map.update(under_test.owner, 5)
    map.delete(under_test.owner)
    assert under_test.run() == 0
    assert map[under_test.owner] == 7
    assert under_test.run(deleting=True) == 0
    made, deleted, made_by_program, deleted_by_program = tracer.events()
    assert [each.function for each in (made, made_by_program)] == ["bpf_local_storage_update"] * 2
    assert [made.value, made_by_program.value] == [(5).to_bytes(8, "little"), (7).to_bytes(8, "little")]
    assert [made.flags, made_by_program.flags] == [uapi.BPF_ANY, uapi.BPF_NOEXIST]
    assert made.key == made_by_program.key == deleted_by_program.key
    assert made.number >> 47 == 0x1FFFF, "not a kernel address"
    assert (deleted.number, deleted.function) == (under_test.owner, f"{system_call}_delete_elem")
    assert deleted_by_program.function.startswith(helper)
    assert [event.source for event in (made, deleted, made_by_program, deleted_by_program)] == [
        Source.SYSTEM_CALL,
        Source.SYSTEM_CALL,
        Source.PROGRAM,
        Source.PROGRAM,
    ]
    assert {event.error for event in (made, deleted, made_by_program, deleted_by_program)} == {0}


def test_a_get_without_need_to_create_is_no_update(storage: Callable[[str], Storage], trace: Trace) -> None:
    """MTRACE-HOOK-010, -011: the helper's own function is called each time, that which makes elements once."""
    under_test = storage("on_task")
    tracer = trace(under_test.map)
    forms = ("bpf_task_storage_get_recur", "bpf_task_storage_get")
    helper = next(name for name in forms if traceable(name))
    calls = trace(under_test.map, hooks=[Hook(Operation.UPDATE, helper, key=None)])
    for _ in range(3):
        assert under_test.run() == 0
    assert (calls.seen, tracer.seen) == (3, 1)


def test_an_inodes_storage_changed_by_descriptor_is_seen(trace: Trace) -> None:
    """MTRACE-HOOK-011: programs could do so at LSM hooks only."""
    b = BtfBuilder()
    key = b.integer("int", 4, encoding=BTF_INT_SIGNED)
    value = b.integer("long", 8)
    with (
        b.load() as types,
        Map.create(
            uapi.BPF_MAP_TYPE_INODE_STORAGE,
            4,
            8,
            0,
            flags=uapi.BPF_F_NO_PREALLOC,
            btf=types,
            btf_key_type_id=key,
            btf_value_type_id=value,
        ) as map,
        Path(__file__).open("rb") as file,
    ):
        tracer = trace(map)
        descriptor = file.fileno()
        map.update(descriptor, 3)
        map.delete(descriptor)
        made, deleted = tracer.events()
    assert (made.value, made.source, made.error) == ((3).to_bytes(8, "little"), Source.SYSTEM_CALL, 0)
    assert (deleted.number, deleted.source, deleted.error) == (descriptor, Source.SYSTEM_CALL, 0)
