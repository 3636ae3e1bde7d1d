# SPDX-License-Identifier: MIT
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from harness.guest import netns_census, objects
from harness.guest.netns import NetNamespace
from harness.guest.netns_census import Scale
from harness.verdict.inventory import Inventory, Item
from harness.verdict.leaks import Leak

PROG = Item.make(7, "kr_prog", type="sched_cls")


class Guest:
    """A guest whose lists are given: each entry is what one look at it shows, the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: dict[str, list[tuple[Item, ...]]] = {kind: [()] for kind in objects.LISTERS}
        self.looks: list[str] = []
        monkeypatch.setattr(objects, "LISTERS", {kind: self._lister(kind) for kind in objects.LISTERS})

    def _lister(self, kind: str) -> Callable[[], tuple[Item, ...]]:
        def look() -> tuple[Item, ...]:
            self.looks.append(kind)
            queue = self.shown[kind]
            return queue.pop(0) if len(queue) > 1 else queue[0]

        return look


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(monkeypatch)


def test_every_kind_of_an_inventory_is_listed_and_every_leak_can_be_looked_at_again() -> None:
    kinds = [field.name for field in fields(Inventory)]
    assert list(objects.LISTERS) == kinds
    assert {kind for again in objects.KINDS_OF_LEAK.values() for kind in again} == set(kinds)


def test_a_guest_that_is_as_before_is_looked_at_once(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("slept"))
    before = Inventory()
    assert objects.settle(before, 1) is before
    assert len(guest.looks) == len(objects.LISTERS)


def test_settle_waits_for_what_goes_in_the_background_and_looks_at_nothing_else(guest: Guest) -> None:
    guest.shown["progs"] = [(PROG,), (PROG,), (PROG,), ()]
    before = Inventory()
    assert objects.settle(before, 5) is before
    once = len(objects.LISTERS)
    assert set(guest.looks[once:-once]) == {"progs"}


def test_settle_returns_what_stays_when_time_is_up(guest: Guest) -> None:
    guest.shown["progs"] = [(PROG,)]
    start = time.monotonic()
    assert objects.settle(Inventory(), 0.02).progs == (PROG,)
    assert time.monotonic() - start < 1


def test_settle_does_not_wait_for_a_module_that_the_kernel_loaded_on_demand(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("slept"))
    veth = Item.make("veth", "veth", refcount=0, state="Live", taint="")
    guest.shown["modules"] = [(veth,)]
    assert objects.settle(Inventory(), 1).modules == (veth,)


def test_every_kind_of_leak_is_waited_for(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in objects.KINDS_OF_LEAK:
        found = iter([(Leak(kind, 1, "x"),), ()])
        monkeypatch.setattr(objects, "leaks", lambda before, now, found=found: next(found))
        guest.shown["pins"] = [(Item(1),), ()]
        objects.settle(Inventory(), 1)


@pytest.mark.parametrize(("sockets", "namespaces"), [(6, 0), (10, 1), (14, 2), (9, 1), (13, 2), (5, 0)])
def test_a_namespace_that_is_half_gone_still_counts(sockets: int, namespaces: int) -> None:
    assert Scale(base=6, step=4).namespaces(sockets) == namespaces


def census(monkeypatch: pytest.MonkeyPatch, sockets: int | None, visible: dict[int, str]) -> list[Item]:
    monkeypatch.setattr(netns_census, "_scale", None if sockets is None else Scale(base=6, step=4))
    monkeypatch.setattr(netns_census, "_no_scale", sockets is None)
    monkeypatch.setattr(netns_census, "_sockets", lambda: sockets)
    monkeypatch.setattr(netns_census, "_visible", lambda: visible)
    return list(netns_census.network_namespaces())


def test_a_namespace_that_only_the_kernel_knows_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.id for item in census(monkeypatch, 14, {4026532113: "blue"})] == [4026532113, "unseen-1"]


def test_without_the_kernels_count_the_visible_ones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.name for item in census(monkeypatch, None, {2: "two", 1: "one"})] == ["one", "two"]


def test_no_process_is_looked_at_when_the_kernel_has_no_further_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netns_census, "_visible", lambda: pytest.fail("looked"))
    monkeypatch.setattr(netns_census, "_scale", Scale(base=6, step=4))
    monkeypatch.setattr(netns_census, "_sockets", lambda: 6)
    assert netns_census.network_namespaces() == ()


def test_the_scale_is_learnt_again_while_other_namespaces_are_on_their_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Made:
        def __enter__(self) -> None:
            counts.append("made")

        def __exit__(self, *_: object) -> None:
            counts.append("closed")

    counts: list[str] = []
    # before, with ours, (until gone:) gone, after; first while an older namespace (4 more) is still going
    readings = iter([10, 14, 14, 6, 6, 6, 10, 6, 6])
    monkeypatch.setattr(netns_census, "_sockets", lambda: next(readings))
    monkeypatch.setattr(netns_census, "_visible", dict)
    monkeypatch.setattr(NetNamespace, "create", Made)
    assert netns_census._measure() == Scale(base=6, step=4)
    assert counts == ["made", "closed"] * 2


def test_pins_are_found_in_all_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/prog").touch()
    (tmp_path / "map").touch()
    monkeypatch.setattr(objects, "BPFFS", str(tmp_path))
    pins = objects.LISTERS["pins"]()
    assert [(str(p.id), p.get("kind")) for p in pins] == [
        (f"{tmp_path}/deep/er/prog", "unknown"),
        (f"{tmp_path}/map", "unknown"),
    ]
