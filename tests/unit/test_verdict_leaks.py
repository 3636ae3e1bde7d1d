# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.verdict import Inventory, Item, Leak, leaks

PROG = Item.make(12, "sched_cls", type="sched_cls")
MODULE = Item.make("tcp_test", "tcp_test", refcount=0, state="Live", taint="OE")
AUTOLOADED = Item.make("tcp_bbr", "tcp_bbr", refcount=1, state="Live", taint="")


def test_nothing_new_is_no_leak() -> None:
    before = Inventory.make(progs=[PROG], modules=[MODULE])
    assert leaks(before, before) == ()


def test_objects_that_went_away_are_no_leak() -> None:
    assert leaks(Inventory.make(progs=[PROG], maps=[Item(3)]), Inventory()) == ()


@pytest.mark.parametrize(
    ("field", "kind", "item"),
    [
        ("progs", "prog", PROG),
        ("maps", "map", Item.make(3, "counters", type="hash")),
        ("links", "link", Item.make(4, "tcx on device 2", prog_id=12)),
        ("btfs", "btf", Item.make(9, "", kernel=0)),
        ("netns", "netns", Item.make(4026532300, "client")),
        ("pins", "pin", Item.make("/sys/fs/bpf/x", "sched_cls", kind="prog")),
        ("modules", "module", MODULE),
    ],
)
def test_a_new_object_is_a_leak_with_id_and_name(field: str, kind: str, item: Item) -> None:
    (leak,) = leaks(Inventory(), Inventory.make(**{field: [item]}))
    assert (leak.kind, leak.id, leak.name) == (kind, item.id, item.name)
    assert str(item.id) in str(leak)


def test_a_module_of_the_kernels_own_that_was_loaded_on_demand_is_no_leak_nor_is_its_btf() -> None:
    after = Inventory.make(modules=[AUTOLOADED], btfs=[Item.make(70, "tcp_bbr", kernel=1)])
    assert leaks(Inventory(), after) == ()


def test_btf_of_a_module_that_is_gone_is_a_leak() -> None:
    (leak,) = leaks(Inventory(), Inventory.make(btfs=[Item.make(70, "tcp_test", kernel=1)]))
    assert leak.kind == "btf"


def test_a_test_module_inside_the_tree_is_a_leak() -> None:
    item = Item.make("bpf_testmod", refcount=0, state="Live", taint="N")
    assert [leak.id for leak in leaks(Inventory(), Inventory.make(modules=[item]))] == ["bpf_testmod"]


def test_more_references_to_a_test_module_are_a_leak() -> None:
    held = Item.make("tcp_test", "tcp_test", refcount=2, state="Live", taint="OE")
    (leak,) = leaks(Inventory.make(modules=[MODULE]), Inventory.make(modules=[held]))
    assert leak == Leak("module-reference", "tcp_test", "tcp_test", "0 references before, 2 after")
    assert leaks(Inventory.make(modules=[held]), Inventory.make(modules=[MODULE])) == ()


def test_a_module_stuck_in_unloading_is_a_leak_whosever_it_is() -> None:
    stuck = Item.make("tcp_bbr", refcount=0, state="Unloading", taint="")
    (leak,) = leaks(Inventory.make(modules=[AUTOLOADED]), Inventory.make(modules=[stuck]))
    assert leak.kind == "module"
    assert "Unloading" in leak.detail


ITEMS = st.builds(
    Item.make,
    st.integers(0, 2**32) | st.text(),
    st.text(),
    type=st.text() | st.integers(),
)


@given(st.builds(Inventory.make, progs=st.lists(ITEMS), maps=st.lists(ITEMS), modules=st.lists(ITEMS)))
def test_an_inventory_survives_json(inventory: Inventory) -> None:
    assert Inventory.from_json(json.loads(json.dumps(inventory.to_json()))) == inventory


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"programs": []},
        {"progs": {}},
        {"progs": [7]},
        {"progs": [{"name": "x"}]},
        {"progs": [{"id": 1, "name": 2}]},
        {"progs": [{"id": True}]},
        {"progs": [{"id": 1, "extra": {"type": None}}]},
    ],
)
def test_other_data_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="inventory"):
        Inventory.from_json(data)
