# SPDX-License-Identifier: MIT
"""What the operations that are traced do and return, as programs see it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.object import Object
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.map_trace.actors import SMALLEST_PACKET
from scenarios.map_trace.conftest import Trace

OBJECT = Path(__file__).parent / "helpers.bpf.o"


class Helpers:
    """The programs and maps of helpers.bpf.c."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.object = stack.enter_context(Object.open(OBJECT)).load()

    def map(self, name: str) -> Map:
        return self._stack.enter_context(self.object.map(name))

    def __getitem__(self, variable: str) -> int:
        return self.object.number(variable)

    def __setitem__(self, variable: str, value: int) -> None:
        self.object.set_number(variable, value)

    def run(self, program: str) -> list[int]:
        """Run a program; its results."""
        self["visits"] = self["sum"] = 0
        with self.object.prog(program) as prog:
            prog.test_run(SMALLEST_PACKET)
        return list(struct.unpack("=8q", self.object.variable("results").raw))


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    """The object, loaded."""
    with ExitStack() as stack:
        yield Helpers(stack)


def returns_long(function: str) -> bool:
    """Whether a function of the kernel returns a long (from 6.3 on all operations do), not an int."""
    types = btf.vmlinux()
    return types.size(types.type(types.type(types.func(function)).type).type) == 8


def test_a_failed_helper_returns_a_negative_long(helpers: Helpers) -> None:
    """MTRACE-HOOK-001, -008, upstream prog_tests/map_ops.c: map_ops_update_delete, map_ops_push_peek_pop,
    map_ops_for_each; where the kernel's functions return an int, its lower half.
    """
    expected = [errno.EEXIST, errno.ENOENT, errno.E2BIG, errno.ENOENT, errno.ENOENT, errno.EINVAL]
    results = helpers.run("failing")[: len(expected)]
    if not returns_long("htab_map_update_elem"):
        results = [struct.unpack("=i", struct.pack("=q", result)[:4])[0] for result in results]
    assert results == [-error for error in expected]


def test_a_call_back_is_called_for_each_element(helpers: Helpers) -> None:
    """MTRACE-GAP-007, upstream prog_tests/for_each.c: hash_map, array_map; a 1 stops it."""
    numbers, cells = helpers.map("numbers"), helpers.map("cells")
    for key in range(5):
        numbers[key] = key + 10
    for key in range(4):
        cells[key] = key + 1
    assert helpers.run("sum_of_numbers")[0] == 5
    assert (helpers["sum"], helpers["visits"]) == (60, 5)
    assert helpers.run("sum_of_cells")[0] == 4
    assert (helpers["sum"], helpers["visits"]) == (10, 4)
    assert helpers.run("first_number")[0] == 1
    assert helpers["visits"] == 1


def test_what_a_call_back_does_by_helper_is_seen(helpers: Helpers, trace: Trace) -> None:
    """MTRACE-GAP-007, upstream prog_tests/for_each.c: hash_map; deletes are none of the gaps."""
    numbers = helpers.map("numbers")
    for key in range(6):
        numbers[key] = key
    tracer = trace(numbers)
    helpers.run("delete_odd_numbers")
    assert helpers["visits"] == 6
    assert sorted(event.number for event in tracer.events()) == [1, 3, 5]
    assert dict(numbers.items()) == {0: 0, 2: 2, 4: 4}


def test_elements_put_back_while_iterating_do_not_keep_it_going(helpers: Helpers) -> None:
    """MTRACE-GAP-007, upstream prog_tests/for_each.c: hash_modify."""
    numbers = helpers.map("numbers")
    for key in range(4):
        numbers[key] = key
    helpers.run("renew_numbers")
    assert 4 <= helpers["visits"] <= 8
    assert sorted(numbers.keys()) == [key.to_bytes(4, "little") for key in range(4)]
    assert all(isinstance(value, int) and value >= 100 for _, value in numbers.items())


def test_a_call_back_cannot_write_the_key() -> None:
    """MTRACE-GAP-007, upstream prog_tests/for_each.c: write_map_key."""
    with Object.open(OBJECT) as object:
        object.tune_prog("write_keys", autoload=True)
        with refused(errno.EACCES, log="write to change key R2 not allowed"):
            object.load()


def test_a_new_element_shows_no_other_cpus_old_value(helpers: Helpers) -> None:
    """MTRACE-HOOK-003, -004, upstream prog_tests/map_init.c: pcpu_map_init, pcpu_lru_map_init."""
    for name in ("per_cpu", "lru_per_cpu"):
        map = helpers.map(name)
        map[1] = [0xBAD] * possible_cpus()
        del map[1]
        helpers["key"], helpers["number"] = 2, 7
        assert helpers.run(f"update_{name}")[0] == 0
        values = map[2]
        assert isinstance(values, list)
        assert sorted(values) == [0] * (possible_cpus() - 1) + [7], name


@pytest.mark.vm(cpus=2)
def test_a_program_looks_another_cpus_value_up(helpers: Helpers) -> None:
    """MTRACE-GAP-010, upstream prog_tests/map_lookup_percpu_elem.c: and none for a CPU that is not there."""
    for name, key in (("per_cpu", 3), ("lru_per_cpu", 3), ("per_cpu_cells", 0)):
        map = helpers.map(name)
        map[key] = [40 + cpu for cpu in range(possible_cpus())]
        helpers["key"] = key
        for cpu in range(possible_cpus()):
            helpers["cpu"] = cpu
            assert helpers.run(f"look_{name}")[0] == 40 + cpu
        helpers["cpu"] = possible_cpus()
        assert helpers.run(f"look_{name}")[0] == -1


def test_a_program_reads_the_fields_of_its_map(helpers: Helpers) -> None:
    """MTRACE-HOOK-023, upstream prog_tests/map_ptr.c: by which tracers tell maps apart."""
    numbers = helpers.map("numbers")
    helpers.run("read_fields")
    shape = numbers.shape
    assert struct.unpack("=5I", helpers.object.variable("fields").raw) == (
        uapi.BPF_MAP_TYPE_HASH,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.id,
    )


def in_threads(*work: Callable[[], None]) -> None:
    """Do all of it at once; the first thread's exception is raised here."""
    errors: list[BaseException] = []

    def run(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.vm(cpus=2)
def test_many_update_one_element_and_each_succeeds(helpers: Helpers, trace: Trace) -> None:
    """MTRACE-REC-007, upstream prog_tests/htab_update.c: concurrent_update; each is traced as well."""
    numbers = helpers.map("numbers")
    tracer = trace(numbers, capacity=1024)

    def updates(first: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(first, first + 100):
                numbers[1] = number

        return work

    in_threads(updates(1000), updates(2000))
    values = [int.from_bytes(event.value or b"", "little") for event in tracer.events()]
    assert sorted(values) == [*range(1000, 1100), *range(2000, 2100)]
    assert numbers[1] in (1099, 2099)


@pytest.mark.vm(cpus=2)
def test_a_reused_element_is_never_half_of_two(helpers: Helpers) -> None:
    """MTRACE-GAP-009, upstream prog_tests/htab_reuse.c: basic, consistency; with BPF_F_LOCK on both sides."""
    blocks = helpers.map("blocks")

    def block(number: int) -> bytes:
        return struct.pack("=16I", 0, *[number] * 15)

    def write() -> None:
        for number in range(150):
            blocks.update(number % 2, block(number), flags=uapi.BPF_F_LOCK)
            if number % 3 == 0:
                try:
                    blocks.delete(1 - number % 2)
                except BpfError as error:
                    assert error.errno == errno.ENOENT

    def read() -> None:
        for number in range(150):
            found = blocks.lookup(number % 2, flags=uapi.BPF_F_LOCK)
            assert found is None or len(set(struct.unpack("=16I", found)[1:])) == 1, found

    in_threads(write, read)
