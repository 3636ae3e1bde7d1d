# SPDX-License-Identifier: MIT
"""Who may make a map with special fields, of which type, with which flags; and what such a map is not good for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EACCES, EINVAL, EOPNOTSUPP, EPERM
from typing import Any

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import ENOTSUPP, BpfError, refused
from harness.guest.kr_modules import KrKptr
from harness.guest.privilege import CAP_BPF, CAP_PERFMON, unprivileged_bpf, with_only
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import owning_map
from scenarios.kptr.pointers import owning_tag, pointer_map, viewing_tag
from scenarios.kptr.special import Types

ARRAY, HASH, LRU_HASH = uapi.BPF_MAP_TYPE_ARRAY, uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_LRU_HASH
STORAGE = (
    uapi.BPF_MAP_TYPE_SK_STORAGE,
    uapi.BPF_MAP_TYPE_INODE_STORAGE,
    uapi.BPF_MAP_TYPE_TASK_STORAGE,
    uapi.BPF_MAP_TYPE_CGRP_STORAGE,
)
PERCPU = (
    uapi.BPF_MAP_TYPE_PERCPU_ARRAY,
    uapi.BPF_MAP_TYPE_PERCPU_HASH,
    uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH,
)
OF_MAPS = (uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, uapi.BPF_MAP_TYPE_HASH_OF_MAPS)
RESIZABLE = uapi.BPF_MAP_TYPE_RHASH
MAP_TYPES = sorted(
    {getattr(uapi, name) for name in dir(uapi) if name.startswith("BPF_MAP_TYPE_")}
    - {uapi.BPF_MAP_TYPE_UNSPEC}
)


@dataclass(frozen=True)
class Desk:
    """Takes requests for a map, with types for its value: "plain" and "wide" of data, "seen" of a pointer that owns
    nothing, "list" of a root and its lock.
    """

    types: BtfObject
    key: int
    values: dict[str, int]
    sizes: dict[str, int]

    def make(
        self, what: str, map_type: int = ARRAY, *, held: tuple[int, ...] | None = None, **more: Any
    ) -> Map:
        """Make a map by one who has the capabilities `held` (None: all). Raises BpfError."""
        request: dict[str, Any] = {
            "key_size": 4,
            "value_size": self.sizes[what],
            "max_entries": 1,
            "btf": self.types,
            "btf_key_type_id": self.key,
            "btf_value_type_id": self.values[what],
        }
        request |= more
        if held is None:
            return Map.create(map_type, **request)
        return with_only(held, Map.create, map_type, **request)

    @property
    def trie(self) -> dict[str, int]:
        """What a request for an LPM trie has of its own: a key that is a structure."""
        flags = uapi.BPF_F_NO_PREALLOC
        return {"key_size": 8, "btf_key_type_id": self.values["plain"], "flags": flags}

    def answer(self, what: str, map_type: int = ARRAY, **more: Any) -> int:
        """0 if the map is made, else the errno."""
        try:
            self.make(what, map_type, **more).close()
        except BpfError as error:
            return error.errno or 0
        return 0


@pytest.fixture
def desk() -> Iterator[Desk]:
    b = Types()
    values = {
        "plain": b.object("plain", ("data", "u64")),
        "wide": b.object("wide", ("data", "u64"), ("more", "u64"), ("most", "u64")),
        "seen": b.object("seen", ("pointer", f"{viewing_tag()} *task_struct")),
    }
    if has("local_kptr"):
        b.object("item", ("node", "list_node"))
        values["list"] = b.object("list", ("lock", "lock"), ("root", "list_head of item:node"))
    with b.load() as types:
        yield Desk(types, b.u32, values, b.sizes)


def test_value_has_the_size_of_its_type(desk: Desk) -> None:
    """KPTR-MAP-001: and so has the key."""
    assert desk.answer("seen") == 0
    for wrong in (
        {"value_size": 16},
        {"value_size": 4},
        {"key_size": 8, "map_type": HASH},
        {"btf_key_type_id": 0},
        {"btf_key_type_id": 999},
        {"btf_value_type_id": 999},
        {"btf_value_type_id": 0},
    ):
        assert desk.answer("seen", **wrong) == EINVAL, wrong


def test_map_with_pointers_is_made_by_who_has_cap_bpf(desk: Desk) -> None:
    """KPTR-MAP-019."""
    with unprivileged_bpf(allowed=True):
        desk.make("plain", held=()).close()
        desk.make("seen", held=(CAP_BPF,)).close()
        for held in ((), (CAP_PERFMON,)):
            with refused(EPERM):
                desk.make("seen", held=held)


def test_programs_can_read_and_write_a_map_with_pointers(desk: Desk) -> None:
    """KPTR-MAP-020: or it is not made; for user space it may be one or the other."""
    for flag in (uapi.BPF_F_RDONLY_PROG, uapi.BPF_F_WRONLY_PROG):
        assert (desk.answer("plain", flags=flag), desk.answer("seen", flags=flag)) == (0, EACCES)
    for flag in (uapi.BPF_F_RDONLY, uapi.BPF_F_WRONLY):
        assert desk.answer("seen", flags=flag) == 0


def test_request_is_checked_in_order(desk: Desk) -> None:
    """KPTR-MAP-001, -019 to -021: the size, who asks, the flags, the map's type."""
    flags = {"flags": uapi.BPF_F_RDONLY_PROG}
    with unprivileged_bpf(allowed=True):
        with refused(EINVAL):
            desk.make("seen", held=(), value_size=16, **flags)
        with refused(EPERM):
            desk.make("seen", held=(), **flags)
    trie = desk.trie
    assert desk.answer("plain", uapi.BPF_MAP_TYPE_LPM_TRIE, **trie) in (0, EINVAL)
    assert desk.answer("seen", uapi.BPF_MAP_TYPE_LPM_TRIE, **trie) == EOPNOTSUPP
    trie["flags"] |= uapi.BPF_F_RDONLY_PROG
    assert desk.answer("seen", uapi.BPF_MAP_TYPE_LPM_TRIE, **trie) == EACCES


def answers(desk: Desk, what: str) -> dict[str, int]:
    """What a request for a map of each type is answered; left out are types that this kernel lacks, and those whose
    values are of another size.
    """
    told = {}
    for kind in MAP_TYPES:
        more: dict[str, int] = {}
        if kind in STORAGE:
            more = {"flags": uapi.BPF_F_NO_PREALLOC, "max_entries": 0}
        elif kind == RESIZABLE:
            more = {"flags": uapi.BPF_F_NO_PREALLOC}
        elif kind == uapi.BPF_MAP_TYPE_LPM_TRIE:
            more = desk.trie
        plain = desk.answer("plain" if what == "seen" else "wide", kind, **more)
        # some refuse types, whatever they are; LPM tries want a key of which more is known
        if plain in (0, ENOTSUPP) or kind == uapi.BPF_MAP_TYPE_LPM_TRIE:
            told[uapi.name_of("map_type", kind) or str(kind)] = desk.answer(what, kind, **more)
    return told


def named(*kinds: int) -> set[str]:
    """Their names."""
    return {uapi.name_of("map_type", kind) or str(kind) for kind in kinds}


def test_maps_of_some_types_have_pointers(desk: Desk) -> None:
    """KPTR-MAP-021: hashes, arrays and the storage of objects; no other type that has values of its own."""
    told = answers(desk, "seen")
    taken = {name for name, answer in told.items() if answer == 0}
    always = named(ARRAY, HASH, LRU_HASH, uapi.BPF_MAP_TYPE_PERCPU_ARRAY)
    if has("kptr_untrusted_tag"):
        always |= named(*PERCPU, *STORAGE)
    resizable = named(RESIZABLE)
    assert always <= taken <= always | resizable
    others = {name: answer for name, answer in told.items() if name not in taken}
    # which no program may write
    read_only = named(uapi.BPF_MAP_TYPE_DEVMAP, uapi.BPF_MAP_TYPE_DEVMAP_HASH)
    assert others == {name: EACCES if name in read_only else EOPNOTSUPP for name in others}
    assert len(others) >= 6


@pytest.mark.requires("local_kptr")
def test_maps_of_few_types_have_roots(desk: Desk) -> None:
    """KPTR-MAP-022: arrays and hashes; an LRU hash would, if it could have the lock."""
    told = answers(desk, "list")
    taken = {name for name, answer in told.items() if answer == 0}
    assert named(ARRAY, HASH) <= taken <= named(ARRAY, HASH, RESIZABLE)
    others = {name: answer for name, answer in told.items() if name not in taken}
    assert others == dict.fromkeys(others, EOPNOTSUPP)
    assert named(LRU_HASH, uapi.BPF_MAP_TYPE_PERCPU_HASH, uapi.BPF_MAP_TYPE_TASK_STORAGE) <= set(others)


def test_map_with_pointers_is_not_frozen(desk: Desk) -> None:
    """KPTR-MAP-024."""
    with desk.make("plain") as plain:
        plain.freeze()
    with desk.make("seen") as seen, refused(ENOTSUPP):
        seen.freeze()


def test_map_with_pointers_is_not_mapped_into_memory(desk: Desk) -> None:
    """KPTR-MAP-025: though it is made with the flag that says it may be."""
    with desk.make("plain", flags=uapi.BPF_F_MMAPABLE) as plain:
        mmap.mmap(plain.fd, mmap.PAGESIZE).close()
    with desk.make("seen", flags=uapi.BPF_F_MMAPABLE) as seen:
        with pytest.raises(OSError) as error:
            mmap.mmap(seen.fd, mmap.PAGESIZE)
        assert error.value.errno == ENOTSUPP


@pytest.mark.parametrize("outer_type", OF_MAPS, ids=["array", "hash"])
def test_inner_maps_have_the_same_fields(kr_kptr: KrKptr, outer_type: int) -> None:
    """KPTR-MAP-026: of the same types at the same offsets, whose BTF does not matter."""
    owning, viewing = owning_tag(), viewing_tag()
    others = [
        pointer_map(owning, "kr_obj", "kr_obj"),
        pointer_map(viewing, "kr_obj"),
        pointer_map(viewing, "task_struct"),
        Map.create(ARRAY, value_size=8),
    ]
    with pointer_map(owning, "kr_obj") as first, pointer_map(owning, "kr_obj") as like_it:
        with Map.create(outer_type, value_size=4, inner_map=first) as outer:
            outer.update(0, like_it.fd)
            outer.update(0, first.fd)
            for other in others:
                with refused(EINVAL):
                    outer.update(0, other.fd)
        with Map.create(outer_type, value_size=4, inner_map=others[-1]) as outer:
            outer.update(0, others[-1].fd)
            with refused(EINVAL):
                outer.update(0, first.fd)
    for other in others:
        other.close()


def test_map_of_maps_holds_what_the_maps_in_it_hold(kr_kptr: KrKptr) -> None:
    """KPTR-MAP-026, -027: a map that owns objects holds their module, so does one that can hold such a map, even empty;
    one that looks does not.
    """
    with pointer_map(viewing_tag(), "kr_obj"):
        wait_until(lambda: kr_kptr.users() == 0, timeout=2, what="the types to be all that is held")
    with owning_map("kr_obj") as inner:
        alone, id = kr_kptr.users(), inner.id
        outer = Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, value_size=4, inner_map=inner)
        assert kr_kptr.users() > alone > 0
    with outer:
        wait_until(lambda: id not in Map.ids(), timeout=2, what="the inner map to be freed")
        with pytest.raises(BlockingIOError):
            kr_kptr.unload()
    wait_until(lambda: kr_kptr.users() == 0, timeout=2, what="the outer map to be freed")
