# SPDX-License-Identifier: MIT
"""The hooks of a module's struct_ops type decide what is registered; what they refuse leaves nothing behind."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import Filling
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrOps, KrOps2, KrTypes, missing
from scenarios.module.module_type import ModuleType

LINK = uapi.BPF_F_LINK


@pytest.fixture
def ops_type(kr_ops: KrOps) -> ModuleType:
    return ModuleType("kr_ops", "kr_ops")


@pytest.fixture
def compute(ops_type: ModuleType) -> Iterator[Prog]:
    with ops_type.returning("compute", 42) as prog:
        yield prog


def test_refused_value_leaves_the_map_to_a_corrected_one(
    kr_ops: KrOps, ops_type: ModuleType, compute: Prog
) -> None:
    """STOPS-UPD-008, -009, -014, -016, -018, STOPS-LAW-004, MODLIFE-RULE-006: a mandatory member is missing, data
    is unknown or out of range, validate or reg fail: the map is as before, and the subsystem has not got it.
    """
    good: dict[str, Filling] = {"compute": compute, "scale": -3}
    with ops_type.empty_table() as table:
        empty = table.lookup()

        def check(filling: dict[str, Filling], expected: int) -> None:
            with refused(expected):
                table.update(filling)
            assert (table.lookup(), kr_ops.tables()) == (empty, [])

        check({"scale": 1}, errno.EINVAL)
        check({**good, "reserved": 1}, errno.EINVAL)
        check({**good, "slot": 99}, errno.EINVAL)
        for hook in ("validate", "reg"):
            kr_ops.set_param(f"{hook}_error", errno.EXDEV)
            check(good, errno.EXDEV)
            kr_ops.set_param(f"{hook}_error", 0)

        table.update(good)
        assert "scale=-3 compute=1 inspect=0 observe=0" in kr_ops.tables()[0]
        assert kr_ops.call("compute", 0) == 42
        table.delete()
    assert {name: kr_ops.count(name) for name in ("reg", "reg_failed", "unreg")} == {
        "reg": 1,
        "reg_failed": 1,
        "unreg": 1,
    }


def test_optional_member_may_be_left_out(kr_ops: KrOps, ops_type: ModuleType, compute: Prog) -> None:
    """STOPS-UPD-010, MODLIFE-MOD-002: the module finds no function there."""
    with ops_type.linked({"compute": compute}):
        assert kr_ops.call("inspect", 0, 1) == -errno.EOPNOTSUPP


def test_link_that_reg_refuses_leaves_the_map_ready(
    kr_ops: KrOps, ops_type: ModuleType, compute: Prog
) -> None:
    """STOPS-LINK-003, -006: a failing reg, then a slot that is taken; afterwards it can be linked, twice in a row."""
    with ops_type.table({"compute": compute}, flags=LINK) as table:
        kr_ops.set_param("reg_error", errno.EXDEV)
        with refused(errno.EXDEV):
            table.link()
        kr_ops.set_param("reg_error", 0)
        for _ in range(2):
            with table.link():
                with refused(errno.EEXIST):
                    table.link()
                assert table.refcnt() == 1
            assert (table.state(), table.refcnt()) == (uapi.BPF_STRUCT_OPS_STATE_READY, 0)


def test_refused_update_leaves_the_link_on_its_old_table(
    kr_ops: KrOps, ops_type: ModuleType, compute: Prog
) -> None:
    """STOPS-LINK-015, -017: the type's update fails on request and for a table of another slot."""
    with (
        ops_type.returning("compute", 1) as other,
        ops_type.table({"compute": compute}, flags=LINK) as table,
        ops_type.table({"compute": other}, flags=LINK) as successor,
        ops_type.table({"compute": other, "slot": 1}, flags=LINK) as elsewhere,
        table.link() as link,
    ):
        kr_ops.set_param("update_error", errno.EXDEV)
        with refused(errno.EXDEV):
            link.update(successor.map)
        kr_ops.set_param("update_error", 0)
        with refused(errno.EINVAL):
            link.update(elsewhere.map)
        assert kr_ops.call("compute", 0) == 42
        assert link.info().map_id == table.map.id

        link.update(successor.map)
        assert kr_ops.call("compute", 0) == 1


def test_several_tables_of_a_type_are_registered_at_a_time(kr_types: KrTypes) -> None:
    """MODLIFE-MOD-007, STOPS-PROG-015, STOPS-LINK-006: one map by two links, one program in two maps."""
    first = ModuleType("kr_types", "kr_first")
    with (
        first.returning("two", 2) as two,
        first.returning("two", 22) as other,
        first.linked({"two": two}) as table,
        table.link(),
        first.linked({"two": other}),
        first.linked({"two": two}),
    ):
        assert [kr_types.call("first", number) for number in range(4)] == [2, 2, 22, 2]
        with refused(errno.EEXIST):
            table.link()


def test_type_without_update_refuses_it_before_types_are_compared(
    kr_types: KrTypes, ops_type: ModuleType, compute: Prog
) -> None:
    """STOPS-LINK-012, -013, -016, MODLIFE-MOD-003: link of kr_ops or of kr_first, new table of one or the other."""
    first = ModuleType("kr_types", "kr_first")
    with (
        first.table({}, flags=LINK) as plain,
        ops_type.table({"compute": compute}, flags=LINK) as table,
        ops_type.empty_table(flags=LINK) as unfinished,
        plain.link() as link_of_first,
        table.link() as link_of_ops,
    ):
        for link in (link_of_first, link_of_ops):
            with refused(errno.EOPNOTSUPP):
                link.update(plain.map)
            with refused(errno.EINVAL):
                link.update(unfinished.map)
        with refused(errno.EINVAL):
            link_of_first.update(table.map)


@pytest.mark.known_issue("STOPS-QUIRK-001", reason="a refused owner pointer is not reported")
@pytest.mark.parametrize(("module", "type"), [("kr_ops", "kr_ops"), ("kr_types", "kr_first")])
def test_owner_pointer_is_the_kernels_to_fill(request: pytest.FixtureRequest, module: str, type: str) -> None:
    """STOPS-UPD-007, STOPS-QUIRK-001, MODLIFE-MOD-002: wherever it stands in the structure, last or first."""
    request.getfixturevalue(module)
    own = ModuleType(module, type)
    with own.empty_table() as table, refused(errno.EINVAL):
        table.update({"owner": 1})


@pytest.fixture
def kr_ops2(kr_ops: KrOps) -> Iterator[KrOps2]:
    if reason := missing("kr_ops2"):
        pytest.skip(reason)
    with KrOps2() as module:
        yield module


def test_equal_type_of_another_module_is_another_type(
    kr_ops2: KrOps2, ops_type: ModuleType, compute: Prog
) -> None:
    """STOPS-LINK-016, MODLIFE-MOD-011: same name, same number."""
    twin = ModuleType("kr_ops2", "kr_ops")
    assert twin.id == ops_type.id
    with (
        twin.returning("compute", 1) as other,
        twin.table({"compute": other}, flags=LINK) as foreign,
        ops_type.table({"compute": compute}, flags=LINK) as table,
        table.link() as link,
        refused(errno.EINVAL),
    ):
        link.update(foreign.map)
