# SPDX-License-Identifier: MIT
"""A struct_ops type that a module provides: its members are called, its hooks decide, its links can be detached."""

from __future__ import annotations

import errno
import select
from pathlib import Path

import pytest

from harness.guest.bpf.syscall import refused
from harness.guest.errnos import fails_with
from harness.guest.kr_modules import KrOps
from scenarios.module.tables import new_constant, new_table


@pytest.mark.parametrize("context", ["process", "kthread", "timer"])
def test_members_are_called_from_any_context(kr_ops: KrOps, context: str) -> None:
    """MODLIFE-MOD-005, STOPS-UPD-017: as often as asked, by the id of the table's map."""
    with new_table() as table:
        assert kr_ops.call("compute", f"#{table.map.id}", 20, 22, context=context, times=3) == 42
        assert kr_ops.count("calls") == 3
        table.delete()


def test_each_table_is_found_by_the_id_of_its_map(kr_ops: KrOps) -> None:
    """MODLIFE-MOD-005, -007: the module asks the kernel for the map of a table, where the kernel tells it."""
    with (
        new_constant(1, slot=0) as one,
        new_constant(2, slot=1) as two,
        one.link(),
        two.link(),
    ):
        for context in ("process", "timer"):
            found = [kr_ops.call("compute", f"#{table.map.id}", context=context) for table in (two, one)]
            assert found == [2, 1]
        with fails_with(errno.ENOTCONN):
            kr_ops.call("compute", f"#{two.map.id + 1}")


@pytest.mark.requires("struct_ops_link_detach")
def test_link_detached_by_the_module_looks_detached_to_its_owner(kr_ops: KrOps) -> None:
    """STOPS-LINK-014, -021, -023, -025, MODLIFE-MOD-009: unregistered, without a map, and who polls it wakes up."""
    with new_constant(1) as table, new_constant(2) as other, table.link() as link, select.epoll() as poll:
        poll.register(link.fd, 0)
        assert poll.poll(0) == []

        kr_ops.detach_link(0)

        assert poll.poll(0) == [(link.fd, select.EPOLLHUP)]
        assert (kr_ops.tables(), kr_ops.count("unreg"), table.refcnt()) == ([], 1, 0)
        assert "map_id" not in Path(f"/proc/self/fdinfo/{link.fd}").read_text()
        with refused(errno.ENOLINK):
            link.update(other.map)
        with other.link():
            assert kr_ops.call("compute", 0) == 2
    assert kr_ops.count("unreg") == 2
