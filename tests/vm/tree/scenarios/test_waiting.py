# SPDX-License-Identifier: MIT
"""Scenarios that wait until somebody ends them, and one that does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the guest, which collects this file for its other tests, has no such module
    from harness.vmfixture import Vm


@pytest.mark.vm(timeout=100)
def test_waits() -> None:
    print("\nwaiting in the guest", flush=True)
    signal.pause()


def test_holds(vm: Vm, request: pytest.FixtureRequest) -> None:
    """Tells who holds a machine, and goes on holding it."""
    vm.succeed("true")
    file = request.config.rootpath / "holder"
    new = file.with_name("holder.new")
    new.write_text(f"{os.getpid()} {vm.machine.process.pid}")
    new.rename(file)
    vm.call("signal:pause", seconds=100)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_passes(turn: int) -> None:
    assert Path("/usr/lib/kernrig/boot.py").exists()
