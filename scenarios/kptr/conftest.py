# SPDX-License-Identifier: MIT
"""Set-up of the kptr scenarios: maps that own objects of kr_kptr, and how this kernel releases."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import jeq, mov, r0, r1, r2, r7
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import require
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.kfuncs import Kfuncs, exchange, value_of
from scenarios.kptr.local_types import local_types
from scenarios.kptr.owning_map import VALUE_SIZE, owning_map
from scenarios.kptr.pocket import Pocket
from scenarios.kptr.slots import Slots
from scenarios.kptr.workshop import Workshop


class MakePocket(Protocol):
    """Makes a pocket whose map has this type; closed when the scenario ends, if not earlier."""

    def __call__(self, map_type: int = uapi.BPF_MAP_TYPE_ARRAY, *, flags: int = 0) -> Pocket: ...


@pytest.fixture
def make_pocket(kr_kptr: KrKptr) -> Iterator[MakePocket]:
    """A factory of pockets."""
    with ExitStack() as stack:

        def make(map_type: int = uapi.BPF_MAP_TYPE_ARRAY, *, flags: int = 0) -> Pocket:
            try:
                return stack.enter_context(Pocket(map_type, flags=flags))
            except BpfError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                pytest.skip(f"this kernel lacks kptrs in {uapi.name_of('map_type', map_type)}")

        yield make


class MakeSlots(Protocol):
    """Makes a map of this type with programs; closed when the scenario ends, if not earlier."""

    def __call__(
        self,
        map_type: int = uapi.BPF_MAP_TYPE_ARRAY,
        *,
        flags: int = 0,
        max_entries: int = 4,
        locked: bool = False,
    ) -> Slots: ...


@pytest.fixture
def make_slots(kr_kptr: KrKptr) -> Iterator[MakeSlots]:
    """A factory of slots."""
    with ExitStack() as stack:

        def make(
            map_type: int = uapi.BPF_MAP_TYPE_ARRAY,
            *,
            flags: int = 0,
            max_entries: int = 4,
            locked: bool = False,
        ) -> Slots:
            try:
                map = owning_map("kr_obj", map_type, flags=flags, max_entries=max_entries, locked=locked)
            except BpfError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                pytest.skip(f"this kernel lacks kptrs in {uapi.name_of('map_type', map_type)}")
            return stack.enter_context(Slots(map))

        yield make


@pytest.fixture
def updates_release(kr_kptr: KrKptr) -> bool:
    """Whether an update or delete releases before it returns, or the map's recycled value keeps the object.

    KPTR-PROBE-005: the answer changed in 7.2 and in stable series, so it is found out by doing it.
    """
    with owning_map("kr_obj") as map:
        kfuncs = Kfuncs()
        code = [value_of(map), mov(r1, 2), kfuncs.call("kr_obj_find"), jeq(r0, 0, "out")]
        with kfuncs.load(
            code, exchange(mov(r2, r0)), jeq(r0, 0, "out"), mov(r7, r0), kfuncs.release()
        ) as put:
            put.test_run(bytes(64))
        map.update(0, bytes(VALUE_SIZE))
        return kr_kptr.static_refs(2) == 0


@pytest.fixture
def workshop(kr_kptr: KrKptr) -> Iterator[Workshop]:
    """Verbs for programs that allocate objects, and the objects' types."""
    require("local_kptr")
    types = local_types()
    with types.btf:
        yield Workshop(types)


@pytest.fixture
def store(workshop: Workshop) -> Iterator[Map]:
    """An array of four values with lists, trees and pointers."""
    with workshop.t.map() as map:
        yield map
