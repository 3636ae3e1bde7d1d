# SPDX-License-Identifier: MIT
"""Maps whose values own objects, made while each allocation fails in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import MapCreate
from harness.guest.failslab import Trial, prepared, starve
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import VALUE_SIZE, owning_types

pytestmark = pytest.mark.requires("failslab", "kptr")

MAPS = {
    "array": (uapi.BPF_MAP_TYPE_ARRAY, 4, 0),
    "hash": (uapi.BPF_MAP_TYPE_HASH, 4, 0),
    "hash without preallocation": (uapi.BPF_MAP_TYPE_HASH, 4, uapi.BPF_F_NO_PREALLOC),
    "task storage": (uapi.BPF_MAP_TYPE_TASK_STORAGE, 0, uapi.BPF_F_NO_PREALLOC),
}


@pytest.mark.parametrize("what", MAPS)
def test_making_an_owning_map_without_memory_leaves_nothing(kr_kptr: KrKptr, what: str) -> None:
    """KPTR-NOMEM-001: what knows the value's pointers goes with the map that was not made, and lets go of the module
    whose objects they would have owned."""
    map_type, max_entries, flags = MAPS[what]

    def users() -> int | None:
        module = modules.find("kr_kptr")
        assert module is not None
        return module.refcount

    before = users()

    @contextmanager
    def scene() -> Iterator[Trial]:
        wait_until(lambda: users() == before, timeout=2, what="the last map to let go of the module")
        types = owning_types("kr_obj", locked=True)
        with types.btf:
            attributes = MapCreate(
                map_type=map_type,
                key_size=4,
                value_size=VALUE_SIZE,
                max_entries=max_entries,
                map_flags=flags,
                btf_fd=types.btf.fd,
                btf_key_type_id=types.key,
                btf_value_type_id=types.value,
            )
            yield Trial(prepared(uapi.BPF_MAP_CREATE, attributes), lambda: None, os.close)

    assert starve(scene).refused
    wait_until(lambda: users() == before, timeout=2, what="the last map to let go of the module")
