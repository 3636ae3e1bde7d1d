# SPDX-License-Identifier: MIT
"""The proposal's own example: what a program knows of descriptors moves to its successor while files are written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.object import Object
from harness.guest.bpf.syscall import BpfError
from harness.guest.waiting import wait_until

ALLOWED = 3
HOOKS = ("close", "write", "open")
"""In the order of the switch: a descriptor that the new program has seen opened must not be closed by the old one."""
KINDS = {"dispatch_write": uapi.BPF_TRACE_FENTRY, "decide": uapi.BPF_MODIFY_RETURN}


class Descriptors:
    """The programs of files.bpf.c, in charge of the descriptors of this thread and of one other."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._object = stack.enter_context(Object.open(Path(__file__).with_name("files.bpf.o")).load())
        self.old, self.new = (
            stack.enter_context(self._object.map(name)) for name in ("old_state", "new_state")
        )
        self["old_id"], self["limit"] = self.old.id, ALLOWED
        self.tracers: list[Link] = []

    def __getitem__(self, variable: str) -> int:
        return self._object.number(variable)

    def __setitem__(self, variable: str, value: int) -> None:
        self._object.set_number(variable, value)

    def watch(self, *threads: int) -> None:
        """Be in charge of the descriptors of these threads, at most two."""
        self["threads"] = sum(thread << 32 * number for number, thread in enumerate(threads))

    def give_to(self, which: str) -> None:
        """Let the "old" or the "new" program decide from now on."""
        for hook in HOOKS:
            with self._object.map(f"on_{hook}") as turn, self._object.prog(f"{which}_{hook}") as prog:
                turn.update(0, prog.fd)

    def attach(self, *names: str) -> list[Link]:
        """Attach programs."""
        links = []
        for name in names:
            with self._object.prog(name) as prog:
                link = Link.tracing(prog, KINDS.get(name, uapi.BPF_TRACE_FEXIT))
            links.append(self._stack.enter_context(link))
        return links

    def mirror(self) -> None:
        """Attach the tracers of the old program's map."""
        self.tracers = self.attach("mirror_delete", "mirror_update")

    def detach_tracers(self) -> None:
        """Close the tracers' links."""
        for link in self.tracers:
            link.close()

    def copy(self) -> None:
        """Copy the old program's map."""
        with self._object.prog("copy") as prog, Link.iterator(prog, map=self.old) as walk:
            walk.read_iterator()


def opened() -> int:
    """A new descriptor."""
    return os.open("/dev/null", os.O_WRONLY)


def writes(descriptor: int) -> int:
    """How often the descriptor can be written before that is refused; at most a few times."""
    for done in range(2 * ALLOWED):
        try:
            os.write(descriptor, b"x")
        except PermissionError:
            return done
    return 2 * ALLOWED


@pytest.fixture
def descriptors() -> Iterator[Descriptors]:
    """The old program is in charge."""
    with ExitStack() as stack:
        try:
            made = Descriptors(stack)
        except BpfError as error:
            pytest.skip(f"the programs can't be loaded: {error}")
        made.give_to("old")
        made.attach("decide", "dispatch_close", "dispatch_write", "dispatch_open")
        yield made


@contextmanager
def open_files(moving: Descriptors) -> Iterator[list[int]]:
    """A list of this thread's descriptors, which are in the programs' charge until the end of the block."""
    moving.watch(threading.get_native_id())
    files: list[int] = []
    try:
        yield files
    finally:
        moving.watch()
        for file in files:
            os.close(file)


def test_each_program_allows_so_many_writes(descriptors: Descriptors) -> None:
    """MTRACE-TEST-007, MTRACE-MIG-001: and the new one knows nothing of what the old one has seen."""
    with open_files(descriptors) as files:
        files += [opened(), opened()]
        assert writes(files[0]) == ALLOWED
        descriptors.give_to("new")
        files.append(opened())
        assert [writes(file) for file in files] == [0, 0, ALLOWED]


def test_descriptors_from_before_during_and_after_the_copy_go_on(descriptors: Descriptors) -> None:
    """MTRACE-TEST-007, MTRACE-MIG-001 to -005, MTRACE-LAW-005: each may be written as often as is left."""
    with open_files(descriptors) as files:
        files.append(opened())
        os.write(files[0], b"x")
        descriptors.mirror()
        files.append(opened())
        os.write(files[1], b"x")
        os.write(files[1], b"x")
        descriptors.copy()
        files.append(opened())
        gone = opened()
        os.close(gone)
        descriptors.give_to("new")
        descriptors.detach_tracers()
        files.append(opened())
        assert [writes(file) for file in files] == [ALLOWED - 1, ALLOWED - 2, ALLOWED, ALLOWED]
        assert len(list(descriptors.new.keys())) == len(files)
    assert descriptors["failures"] == descriptors["give_ups"] == descriptors["nobody"] == 0


def test_what_happens_between_the_tracers_end_and_the_switch_is_lost(descriptors: Descriptors) -> None:
    """MTRACE-MIG-005, MTRACE-TEST-007: the RFC's order, by which an open and a write are forgotten."""
    with open_files(descriptors) as files:
        files.append(opened())
        descriptors.mirror()
        descriptors.copy()
        descriptors.detach_tracers()
        os.write(files[0], b"x")
        files.append(opened())
        os.write(files[1], b"x")
        descriptors.give_to("new")
        assert [writes(file) for file in files] == [ALLOWED, 0]


@pytest.mark.vm(cpus=2)
def test_a_thread_that_opens_writes_and_closes_does_not_notice(descriptors: Descriptors) -> None:
    """MTRACE-TEST-007, MTRACE-LAW-001, -005: each descriptor can be written as often as allowed, whoever decides."""
    answers: list[int] = []
    begun, stop = threading.Event(), threading.Event()
    ids: list[int] = []

    def work() -> None:
        ids.append(threading.get_native_id())
        assert begun.wait(30)
        while not stop.is_set():
            file = opened()
            answers.append(writes(file))
            os.close(file)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: ids, timeout=1, what="the thread")
        descriptors.watch(*ids)
        begun.set()
        for step in (
            descriptors.mirror,
            descriptors.copy,
            lambda: descriptors.give_to("new"),
            descriptors.detach_tracers,
        ):
            step()
            enough = len(answers) + 5
            wait_until(lambda n=enough: len(answers) >= n, timeout=5, what="some more files")  # type: ignore[misc]
    finally:
        begun.set()
        stop.set()
        worker.join()
        descriptors.watch()
    assert set(answers) == {ALLOWED}
    assert list(descriptors.new.keys()) == []
    assert descriptors["failures"] == descriptors["give_ups"] == descriptors["nobody"] == 0
