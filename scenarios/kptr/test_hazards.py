# SPDX-License-Identifier: MIT
"""Objects that are put where their element is already gone, and destructors in contexts that nobody chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    ld_map_fd,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r10,
    stdw,
    stw,
    stxdw,
)
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.tracing import load_tracing
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.kfuncs import exchange
from scenarios.kptr.owning_map import VALUE_SIZE
from scenarios.kptr.storage import EACH_TYPE, KINDS, Storage, some_owner

OBJECT = 1
ZEROS = bytes(VALUE_SIZE)
HASH, LRU_HASH = uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_LRU_HASH
PERCPU_HASH = uapi.BPF_MAP_TYPE_PERCPU_HASH
NO_PREALLOC = uapi.BPF_F_NO_PREALLOC
NOT_MENDED = pytest.mark.known_issue(
    "KPTR-FREE-015",
    reason="a hash frees an element with the object that was put into it after it was deleted",
    splat="kr_kptr: exit with",
    spared=("6.12.117", "7.2.12", "7.3-rc7"),
)


def once_at_the_end(kr_kptr: KrKptr, calls: int) -> None:
    """The destructor runs once more than it did, before maps and programs let go of the module whose code it is.

    So an object that is lost is known to be: nothing could release it later.
    """
    wait_until(lambda: kr_kptr.users() == 0, timeout=2, what="maps and programs to be freed")
    assert (kr_kptr.static_refs(OBJECT), kr_kptr.count("dtor_calls")) == (0, calls + 1)


@pytest.mark.parametrize(
    ("map_type", "flags"),
    [
        pytest.param(HASH, 0, id="hash"),
        pytest.param(HASH, NO_PREALLOC, id="hash_without_preallocation", marks=NOT_MENDED),
        pytest.param(LRU_HASH, 0, id="lru_hash"),
        pytest.param(PERCPU_HASH, 0, id="percpu_hash"),
        pytest.param(PERCPU_HASH, NO_PREALLOC, id="percpu_hash_without_preallocation"),
    ],
)
def test_object_put_into_deleted_element_is_not_lost(
    kr_kptr: KrKptr, make_slots: MakeSlots, map_type: int, flags: int
) -> None:
    """KPTR-FREE-015, KPTR-FIX-003, KPTR-HAZ-004: one program deletes and then puts, as two would that race."""
    slots = make_slots(map_type, flags=flags)
    slots.map.update(0, ZEROS)
    calls = kr_kptr.count("dtor_calls")

    def delete_and_put() -> Item:
        return [
            slots.delete_element(),
            slots.acquire("kr_obj_find"),
            exchange(mov(r2, r7)),
            slots.let_go(),
        ]

    assert slots.run(delete_and_put, id=OBJECT) == 0

    assert (slots.map.lookup(0), kr_kptr.static_refs(OBJECT)) == (None, 1)
    slots.close()
    once_at_the_end(kr_kptr, calls)


@pytest.mark.requires("storage_kptr")
@pytest.mark.known_issue(
    "KPTR-STORAGE-LOSES-OBJECT",
    reason="local storage frees an element with the object that was put into it after it was deleted",
    splat="kr_kptr: exit with",
    spared=("7.2.12", "7.3-rc7"),
)
@pytest.mark.parametrize("kind", EACH_TYPE)
def test_object_put_into_deleted_storage_is_not_lost(kr_kptr: KrKptr, kind: str, tmp_path: Path) -> None:
    """KPTR-FREE-015, KPTR-FIX-003, KPTR-HAZ-004: as above, for each kind of local storage."""
    with Storage(KINDS[kind]) as storage, some_owner(kind, tmp_path) as owner:
        storage.map.update(owner, ZEROS)
        calls = kr_kptr.count("dtor_calls")

        storage.run(
            owner,
            storage.value(),
            storage.delete(),
            storage.find(OBJECT),
            storage.exchange(mov(r2, r7)),
        )

        assert storage.map.lookup(owner) is None
        assert kr_kptr.count("released") == 0
        storage.map.close()
        once_at_the_end(kr_kptr, calls)


# what the programs below note, by offset
INSIDE, DELETED, DESTROYED_INSIDE = 0, 8, 16


@pytest.fixture
def notes() -> Map:
    return Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 24, 1)


def noted(notes: Map, offset: int) -> int:
    return int.from_bytes((notes.lookup(0) or b"")[offset : offset + 8], "little")


def test_destructor_runs_in_an_interrupt_by_the_older_rule_only(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, notes: Map
) -> None:
    """KPTR-HAZ-008, KPTR-FIX-004, KPTR-FREE-013: a program in the timer interrupt deletes the element.

    By the newer rule the destructor waits for a context that is known, here the end of the map.
    """
    slots = make_slots(HASH)
    slots.map.update(0, ZEROS)
    slots.put_static(OBJECT)
    calls = kr_kptr.count("dtor_calls")
    delete_key_0 = asm(
        ld_map_value(r6, notes),
        stdw(r6, INSIDE, 1),
        stw(r10, -4, 0),
        ld_map_fd(r1, slots.map),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_delete_elem),
        stdw(r6, INSIDE, 0),
        stdw(r6, DELETED, 1),
        mov(r0, 0),
        exit_(),
    )
    note_context = asm(
        ld_map_value(r6, notes),
        ldxdw(r8, r6, INSIDE),
        stxdw(r6, DESTROYED_INSIDE, r8),
        mov(r0, 0),
        exit_(),
    )
    with (
        load_tracing(
            "kr_obj_dtor", note_context, attach_type=uapi.BPF_TRACE_FENTRY, module="kr_kptr"
        ) as on_dtor,
        Prog.load(delete_key_0, uapi.BPF_PROG_TYPE_RAW_TRACEPOINT) as on_timer,
        Link.raw_tracepoint(on_dtor),
    ):
        with Link.raw_tracepoint(on_timer, "hrtimer_expire_entry"):
            wait_until(lambda: noted(notes, DELETED), timeout=2, what="a timer to expire")

        assert slots.map.lookup(0) is None
        assert (noted(notes, DESTROYED_INSIDE), kr_kptr.static_refs(OBJECT)) == (
            (1, 0) if updates_release else (0, 1)
        )
    slots.close()
    once_at_the_end(kr_kptr, calls)
    notes.close()
