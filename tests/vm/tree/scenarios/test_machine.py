# SPDX-License-Identifier: MIT
"""What machine a scenario finds itself in, and what it may leave in it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Record = Callable[[str, object], None]


@pytest.mark.parametrize("turn", [1, 2])
def test_pristine(turn: int, count: int) -> None:
    """Nothing that the other turn leaves is here. Fails in a shared machine, as it should."""
    assert count == 1
    mark, host = Path("/tmp/mark"), Path("/proc/sys/kernel/hostname")
    assert not mark.exists() and host.read_text() != "changed\n" and "KR_MARK" not in os.environ
    mark.touch()
    host.write_text("changed")
    os.environ["KR_MARK"] = "1"


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_counts(turn: int, count: int) -> None: ...


@pytest.mark.parametrize("turn", [1, 2])
def test_identity(turn: int, record_property: Record) -> None:
    """What must differ between clones, and the time, which must be the host's."""
    record_property("urandom", os.urandom(8).hex())
    record_property("python", random.random())
    record_property("uuid", Path("/proc/sys/kernel/random/uuid").read_text().strip())
    record_property("boot_id", Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    record_property("machine_id", Path("/etc/machine-id").read_text().strip())
    record_property("time", time.time())


def test_has_no_network() -> None:
    assert [link.name for link in Path("/sys/class/net").iterdir()] == ["lo"]
    assert list(Path("/sys/block").iterdir()) == []


def test_default_shape() -> None:
    assert os.cpu_count() == 1
    assert 256 << 20 < memory() < 384 << 20


@pytest.mark.vm(cpus=2, memory=512, append="kernrig.word=one kernrig.other=two")
def test_chosen_shape() -> None:
    assert os.cpu_count() == 2
    assert 384 << 20 < memory() < 512 << 20
    assert {"kernrig.word=one", "kernrig.other=two"} < set(Path("/proc/cmdline").read_text().split())


def memory() -> int:
    """Bytes of memory that the kernel manages."""
    return int(Path("/proc/meminfo").read_text().split()[1]) << 10


@pytest.mark.vm(cores=2)
def test_wrong_keyword() -> None: ...


@pytest.mark.vm(cpus="many")
def test_wrong_value() -> None: ...


@pytest.mark.vm(memory=16)
def test_impossible_value() -> None: ...


@pytest.mark.expect_splat("WARNING", because="it is so")
def test_wrong_splat_keyword() -> None: ...


@pytest.mark.expect_splat("(", reason="no regular expression")
def test_wrong_splat_regex() -> None: ...
