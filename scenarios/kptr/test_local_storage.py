# SPDX-License-Identifier: MIT
"""Objects in local storage go with the element, with its owner and with the map, whichever is first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, add, call, ld_map_fd, mov, r0, r1, r2, r3, r4, r7, r10, stw, stxdw
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.storage import EACH_OWNER, KINDS, VALUE, Storage, some_owner

pytestmark = pytest.mark.requires("storage_kptr")
OBJECT = 1


@pytest.fixture(params=EACH_OWNER)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def storage(kr_kptr: KrKptr, kind: str) -> Iterator[Storage]:
    with Storage(KINDS[kind]) as storage:
        yield storage


def released(kr_kptr: KrKptr, calls: int) -> None:
    """The destructor runs once more than it did."""
    wait_until(lambda: kr_kptr.static_refs(OBJECT) == 0, timeout=2, what="the object to be released")
    assert kr_kptr.count("dtor_calls") == calls + 1


Act = Callable[[Storage, int], None]


def update(storage: Storage, owner: int) -> None:
    storage.map.update(owner, VALUE, flags=uapi.BPF_EXIST)


def delete(storage: Storage, owner: int) -> None:
    storage.map.delete(owner)


def delete_by_program(storage: Storage, owner: int) -> None:
    storage.run(owner, storage.delete())


def test_element_that_goes_releases_its_object_once(
    kr_kptr: KrKptr, storage: Storage, kind: str, tmp_path: Path
) -> None:
    """KPTR-FREE-016, -013, KPTR-LAW-001, -003: while owner and map live on; an update puts a new element there."""
    with some_owner(kind, tmp_path) as owner:
        for act in (update, delete, delete_by_program):
            storage.put(owner, OBJECT)
            calls = kr_kptr.count("dtor_calls")
            assert kr_kptr.static_refs(OBJECT) == 1

            act(storage, owner)

            released(kr_kptr, calls)
            assert (storage.map.lookup(owner) is None) == (act is not update)


def test_map_that_goes_releases_its_object_once(
    kr_kptr: KrKptr, storage: Storage, kind: str, tmp_path: Path
) -> None:
    """KPTR-FREE-014, -016: the owner lives on."""
    with some_owner(kind, tmp_path) as owner:
        storage.put(owner, OBJECT)
        calls = kr_kptr.count("dtor_calls")

        storage.map.close()

        released(kr_kptr, calls)


def test_exchange_in_storage_returns_what_was_there(
    kr_kptr: KrKptr, storage: Storage, kind: str, tmp_path: Path
) -> None:
    """KPTR-XCHG-008, -009, KPTR-LAW-003: object after object, and out again; no destructor has a part in it."""
    with some_owner(kind, tmp_path) as owner:
        for id in (1, 2, 3):
            storage.put(owner, id)
            assert [kr_kptr.static_refs(each) for each in (1, 2, 3)] == [each == id for each in (1, 2, 3)]

        storage.run(owner, storage.value(), storage.exchange(mov(r2, 0)))

        assert kr_kptr.static_refs(3) == 0
        assert kr_kptr.counters() | {"dtor_calls": 0} == kr_kptr.counters()


def test_deletion_by_a_program_releases_by_the_rule(
    kr_kptr: KrKptr, storage: Storage, kind: str, tmp_path: Path, updates_release: bool
) -> None:
    """KPTR-FREE-016: seen from inside the program, whose RCU section holds up whatever comes later.

    With the newer rule later; with the older one it depends on the release and on the kind.
    """
    refs: Item = [
        mov(r1, r7),
        storage.kfuncs.call("kr_obj_refs"),
        stxdw(r10, -16, r0),
        mov(r1, r7),
        storage.kfuncs.call("kr_obj_release"),
        stw(r10, -4, 0),
        ld_map_fd(r1, storage.notes),
        mov(r2, r10),
        add(r2, -4),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, 0),
        call(uapi.BPF_FUNC_map_update_elem),
    ]
    with some_owner(kind, tmp_path) as owner:
        storage.put(owner, OBJECT)
        calls = kr_kptr.count("dtor_calls")

        storage.run(owner, storage.find(OBJECT), storage.delete(), refs)

        at_once, later = 2, 3  # the module's own reference, the program's, the element's
        assert storage.notes.number(0) in ((at_once, later) if updates_release else (later,))
        released(kr_kptr, calls)
