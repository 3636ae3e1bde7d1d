# SPDX-License-Identifier: MIT
"""Objects of a module, like a file system's inodes, that go on using a table beyond its registration.

Object 0 is bound to a registration and is refused once that has ended; object 1 owns a reference to the table.
"""

from __future__ import annotations

import errno

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.errnos import fails_with
from harness.guest.kr_modules import KrOps
from scenarios.module.tables import new_constant, new_table

BOUND, OWNING = 0, 1


def test_bound_object_is_refused_for_good_once_its_registration_ended(kr_ops: KrOps) -> None:
    """MODLIFE-RULE-002, STOPS-SEED-003: ENOTCONN from then on, although another table is in the same slot."""
    with new_table() as table:
        kr_ops.bind(BOUND, 0)
        assert kr_ops.call("compute", "@0", 20, 22) == 42
        table.delete()

    with new_table() as next:
        with fails_with(errno.ENOTCONN):
            kr_ops.call("compute", "@0", 20, 22)
        assert kr_ops.call("compute", 0, 20, 22) == 42
        next.delete()


def test_bound_object_keeps_neither_table_nor_module(kr_ops: KrOps) -> None:
    """MODLIFE-REF-003: only a reference counts, and this object has none."""
    with new_table() as table:
        kr_ops.bind(BOUND, 0)
        assert table.refcnt() == 1  # the registration's
        table.delete()
    modules.unload_when_unused("kr_ops")


def test_owning_object_keeps_table_and_module_until_it_goes(kr_ops: KrOps) -> None:
    """MODLIFE-REF-003, MODLIFE-SEED-003, STOPS-STATE-016, STOPS-CMD-004: unregistered, without a descriptor, and
    still at work for the last object.
    """
    with new_table() as table:
        kr_ops.own(OWNING, 0)
        assert table.refcnt() == 2
        table.delete()
        assert (table.state(), table.refcnt()) == (uapi.BPF_STRUCT_OPS_STATE_TOBEFREE, 1)
        id = table.map.id
    with pytest.raises(BlockingIOError):
        kr_ops.unload()
    with fails_with(errno.ENOTCONN):
        kr_ops.call("compute", 0, 20, 22)
    assert kr_ops.call("compute", "@1", 20, 22) == 42

    kr_ops.drop(OWNING)

    modules.unload_when_unused("kr_ops")
    with refused(errno.ENOENT):
        Map.from_id(id)


def test_update_of_the_link_reaches_bound_objects_and_not_owning_ones(kr_ops: KrOps) -> None:
    """STOPS-LINK-018, MODLIFE-RULE-007: one registration that changes its table."""
    with new_constant(1) as old, new_constant(2) as new, old.link() as link:
        kr_ops.bind(BOUND, 0)
        kr_ops.own(OWNING, 0)

        link.update(new.map)

        assert kr_ops.call("compute", "@0") == 2
        assert kr_ops.call("compute", "@1") == 1
        assert (old.state(), old.refcnt()) == (uapi.BPF_STRUCT_OPS_STATE_READY, 1)
        kr_ops.drop(OWNING)
        assert old.refcnt() == 0


def test_object_is_not_made_of_a_map_that_is_not_registered(kr_ops: KrOps) -> None:
    """MODLIFE-SEED-005: the id of a map of another type, of a table not yet and no longer registered."""
    with new_table() as once, new_constant(1) as ready, Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as array:
        kr_ops.own(OWNING, f"#{once.map.id}")
        once.delete()
        for map in (once.map, ready.map, array):
            for make in (kr_ops.bind, kr_ops.own):
                with fails_with(errno.ENOTCONN):
                    make(2, f"#{map.id}")
        kr_ops.drop(OWNING)
