# SPDX-License-Identifier: MIT
"""A type whose module has code of its own run in front of each program and behind it."""

from __future__ import annotations

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    call,
    exit_,
    ja,
    jeq,
    label,
    ld_map_fd,
    ldxdw,
    may_goto,
    mov,
    r0,
    r1,
    r2,
    r3,
    r10,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrTypes
from scenarios.module.module_type import ModuleType

pytestmark = pytest.mark.requires("struct_ops_epilogue")

BEFORE, BEHIND = 10, 100
"""What each run of the module's code adds to what KrTypes.call("wrapped") answers."""


@pytest.fixture
def wrapped(kr_types: KrTypes) -> ModuleType:
    return ModuleType("kr_types", "kr_wrapped")


# The context holds the only argument, a pointer, so it is never 0.
WAYS: dict[str, Item] = {
    "straight": mov(r0, 3),
    "with two exits": [ldxdw(r1, r1, 0), mov(r0, 3), jeq(r1, 0, "out"), exit_(), label("out"), mov(r0, 4)],
    "back to the first instruction": [label("first"), mov(r0, 3), may_goto("out"), ja("first"), label("out")],
    "with a stack": [stdw(r10, -8, 3), ldxdw(r0, r10, -8)],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_modules_code_runs_once_whatever_way_the_program_takes(
    wrapped: ModuleType, kr_types: KrTypes, way: Item
) -> None:
    """STOPS-PROG-015: and what the program returns is not changed by what runs behind it."""
    with wrapped.load("wrapped", way) as prog, wrapped.linked({"wrapped": prog}):
        assert kr_types.call("wrapped") == 3 + BEFORE + BEHIND


def test_program_called_in_place_of_another_has_both_beginnings_and_one_end(
    wrapped: ModuleType, kr_types: KrTypes
) -> None:
    """STOPS-PROG-015: a tail call does not come back to what stands behind the caller; one to nobody goes on there."""
    with Map.create(uapi.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1) as callees:
        calling: Item = [ld_map_fd(r2, callees), mov(r3, 0), call(uapi.BPF_FUNC_tail_call), mov(r0, 1)]
        with (
            wrapped.load("wrapped", calling) as caller,
            wrapped.returning("wrapped", 3) as callee,
            wrapped.linked({"wrapped": caller}),
        ):
            assert kr_types.call("wrapped") == 1 + BEFORE + BEHIND
            callees.update(0, callee.fd.to_bytes(4, "little"))
            assert kr_types.call("wrapped") == 3 + 2 * BEFORE + BEHIND
