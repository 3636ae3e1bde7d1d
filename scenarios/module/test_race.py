# SPDX-License-Identifier: MIT
"""Unloading a module while another CPU makes users of it: each side wins or loses whole."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.guest import modules
from harness.guest.bpf import btf
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrOps
from harness.guest.waiting import wait_until
from scenarios.module.tables import Binder

ENOUGH = 3


def newest_btf(module: str) -> BtfObject | None:
    """A descriptor of the module's BTF, if it is loaded."""
    for id in sorted(BtfObject.ids(), reverse=True):
        try:
            found = BtfObject.from_id(id)
        except BpfError:
            continue
        if found.info().name == module:
            return found
        found.close()
    return None


@pytest.mark.vm(cpus=2)
def test_map_creation_and_unload_never_both_succeed(kr_ops: KrOps) -> None:
    """MODLIFE-RACE-001: a map that was made keeps its module, an unload that succeeded lets none be made."""
    types = btf.module("kr_ops")  # numbers of types are the same in each instance
    creations: Counter[str] = Counter()
    unloads: Counter[str] = Counter()
    stop = threading.Event()

    def create_maps() -> None:
        while not stop.is_set():
            object = newest_btf("kr_ops")
            if object is None:
                continue  # unloaded; the other side is about to load it again
            with object:
                binder = Binder(types, object)
                while not stop.is_set():
                    try:
                        made = binder.create_map()
                    except BpfError as error:
                        creations[error.errno_name] += 1
                        break
                    with made:
                        creations["success"] += 1
                        assert modules.state("kr_ops") == "live"
                        assert object.id in BtfObject.ids()

    def unload_and_load() -> bool:
        try:
            modules.unload("kr_ops")
        except OSError as error:
            unloads[errno.errorcode[error.errno or 0]] += 1
        else:
            unloads["success"] += 1
            modules.load_test_module("kr_ops")
        outcomes = (creations["success"], creations["EINVAL"], unloads["success"], unloads["EAGAIN"])
        return min(outcomes) >= ENOUGH

    with ThreadPoolExecutor() as pool:
        creator = pool.submit(create_maps)
        try:
            wait_until(
                lambda: any(unload_and_load() for _ in range(20)) or creator.done(),
                timeout=20,
                what=f"each side to win and lose {ENOUGH} times",
            )
        finally:
            stop.set()
        creator.result()

    assert set(creations) <= {"success", "EINVAL"}
    assert set(unloads) <= {"success", "EAGAIN"}
