# SPDX-License-Identifier: MIT
"""What sequences about owned objects are made of, beside the calls: kinds of maps, objects, what programs do.

An object is a number: STATIC are those that kr_kptr has from the start, others are made by programs.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.guest.bpf import uapi

STATIC = range(4)
FIELDS = range(2)  # the pointers of a value that own their object


@dataclass(frozen=True)
class Kind:
    """A sort of map. `locked`: its values have a spin lock; `outer`: its values are maps."""

    type: int
    entries: int
    flags: int = 0
    locked: bool = False
    outer: bool = False


# An LRU map takes a new element before it frees the old one, and hands them out in an order that is known as long as
# half of them suffice (kernel/bpf/bpf_lru_list.c:bpf_lru_list_pop_free_to_local). A per-CPU hash map without
# preallocation has so small a stock of memory that it is refilled and emptied all the time (kernel/bpf/memalloc.c).
KINDS_OF_MAPS = {
    "array": Kind(uapi.BPF_MAP_TYPE_ARRAY, 3),
    "locked_array": Kind(uapi.BPF_MAP_TYPE_ARRAY, 3, locked=True),
    "hash": Kind(uapi.BPF_MAP_TYPE_HASH, 4),
    "locked_hash": Kind(uapi.BPF_MAP_TYPE_HASH, 4, locked=True),
    "lazy_hash": Kind(uapi.BPF_MAP_TYPE_HASH, 4, uapi.BPF_F_NO_PREALLOC),
    "lru_hash": Kind(uapi.BPF_MAP_TYPE_LRU_HASH, 24),
    "percpu_array": Kind(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, 3),
    "percpu_hash": Kind(uapi.BPF_MAP_TYPE_PERCPU_HASH, 4),
    "task_storage": Kind(uapi.BPF_MAP_TYPE_TASK_STORAGE, 0, uapi.BPF_F_NO_PREALLOC),
    "array_of_maps": Kind(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 2, outer=True),
    "hash_of_maps": Kind(uapi.BPF_MAP_TYPE_HASH_OF_MAPS, 2, outer=True),
}
KEYS = range(6)  # that sequences use

# What a run of a program does with its two places, each a field of an element of a map.
PUT_NEW, PUT_STATIC, TAKE, MOVE, SWAP, SHARE, COUNT, WRITE, REMOVE, PEEK = range(1, 11)
