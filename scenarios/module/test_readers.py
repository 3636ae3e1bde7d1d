# SPDX-License-Identifier: MIT
"""What the kernel tells of modules and of BTF objects is read without a pause while a module comes and goes."""

from __future__ import annotations

import errno
import mmap
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.link import Link
from harness.guest.bpf.symbols import KALLSYMS
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.tracing import load_iterator
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import new_table

ROUNDS = 3
ITERATORS = ("bpf_map", "bpf_prog", "bpf_link")
FILES = (
    "/proc/modules",
    "/sys/kernel/btf/kr_ops",
    "/sys/module/kr_ops/refcnt",
    "/sys/module/kr_ops/initstate",
)
# Numbers that the readers share: whether to stop, how often each has read, whether one has failed.
MOST_READERS = 8
FAILED = MOST_READERS + 1


def read_files() -> None:
    """Those that are there; one that goes while it is read says so."""
    for path in FILES:
        try:
            Path(path).read_bytes()
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ENODEV), path


def read_symbols() -> None:
    lines = KALLSYMS.read_text().splitlines()
    assert all(len(line.split(maxsplit=2)) == 3 for line in lines)


class BtfReader:
    """Looks at each BTF object by its id, and remembers whose it was: no number may ever be another object's."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def __call__(self) -> None:
        for id in list(BtfObject.ids()):
            try:
                found = BtfObject.from_id(id)
            except BpfError as error:
                assert error.errno == errno.ENOENT
                continue
            with found:
                info = found.info()
            assert info.id in (id, 0)  # 0: its module has gone since
            assert self._names.setdefault(id, info.name) == info.name


@contextmanager
def reading(*readers: Callable[[], None]) -> Iterator[Callable[[], list[int]]]:
    """Each reader runs in a process of its own; how often each has come to its end. Raises AssertionError, and so does
    asking, when one has failed."""
    assert len(readers) <= MOST_READERS
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as raw, raw.cast("Q") as shared:
        children = [_child(reader, shared, place) for place, reader in enumerate(readers, 1)]

        def finished() -> list[int]:
            assert not shared[FAILED], "a reader has failed; see its traceback in the output"
            return list(shared[1 : 1 + len(readers)])

        try:
            yield finished
        finally:
            shared[0] = 1
            statuses = [os.waitpid(pid, 0)[1] for pid in children]
        assert statuses == [0] * len(readers)


def _child(reader: Callable[[], None], shared: memoryview[int], place: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        while not shared[0]:
            reader()
            shared[place] += 1
        status = 0
    except BaseException:
        traceback.print_exc()
        shared[FAILED] = 1
    finally:
        os._exit(status)


def have_all_read(often: Callable[[], list[int]], before: list[int]) -> bool:
    return all(now > then for now, then in zip(often(), before, strict=True))


@pytest.mark.vm(cpus=2)
def test_readers_see_a_module_come_and_go(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-013, -014: BTF ids, symbols, the list of modules, sysfs, iterators over maps, programs and links;
    a table of the module is registered, called and gone in each round.
    """
    kr_ops.unload()
    with ExitStack() as stack:
        links = []
        for target in ITERATORS:
            prog = stack.enter_context(load_iterator(target, asm(mov(r0, 0), exit_())))
            links.append(stack.enter_context(Link.iterator(prog)))

        def iterate() -> None:
            for link in links:
                link.read_iterator()

        often = stack.enter_context(reading(BtfReader(), read_files, iterate))
        # Reading all symbols takes as long as many rounds of the others.
        rarely = stack.enter_context(reading(read_symbols))
        rounds = 0
        while rounds < ROUNDS or min(rarely()) < 1:
            before = often()
            module = KrOps()
            with new_table() as table:
                assert module.call("compute", 0, 20, 22) == 42
                table.delete()
            modules.unload_when_unused("kr_ops")
            wait_until(
                partial(have_all_read, often, before), timeout=5, what="each reader to read all once more"
            )
            rounds += 1
