# SPDX-License-Identifier: MIT
"""Fixtures of the scenarios that the harness's own tests run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.kr_modules import missing

Provoke = Callable[[str], None]


@pytest.fixture
def provoke() -> Provoke:
    """Makes the kernel misbehave, see images/modules/kr_splat.c. The module stays: the machine has to go anyway."""
    if reason := missing("kr_splat"):
        pytest.skip(reason)

    def deed(name: str) -> None:
        if modules.state("kr_splat") is None:
            modules.load_test_module("kr_splat")
        Path("/sys/kernel/debug/kr_splat/provoke").write_text(name)

    return deed


@pytest.fixture
def unloaded(provoke: Provoke) -> Iterator[Provoke]:
    """`provoke`, with its module unloaded afterwards."""
    yield provoke
    modules.unload("kr_splat")


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> int:
    """How many scenarios have run in this machine, this one included."""
    file = Path("/run/count")
    number = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(number))
    record_property("count", number)
    return number
