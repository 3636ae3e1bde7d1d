# SPDX-License-Identifier: MIT
"""A program gets its member's arguments and nothing behind them."""

from __future__ import annotations

import pytest

from harness.guest.bpf.asm import ldxdw, r0, r1
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrTypes
from scenarios.module.module_type import ModuleType


@pytest.mark.known_issue("STRUCT-OPS-EXTRA-ARGUMENT", reason="numbers of members are taken for attach types")
def test_no_member_has_an_argument_behind_its_last(kr_types: KrTypes) -> None:
    """STOPS-PROG-033: each of these members has one, so that there is no second for a program to read."""
    many = ModuleType("kr_types", "kr_many")
    accepted = []
    for member in many.btf.members(many.id):
        try:
            many.load(member.name, ldxdw(r0, r1, 8)).close()
        except BpfError as error:
            assert "doesn't have" in error.log or not error.log, error
        else:
            accepted.append(member.index)
    assert accepted == []
