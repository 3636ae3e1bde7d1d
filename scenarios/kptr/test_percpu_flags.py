# SPDX-License-Identifier: MIT
"""User space writes to per-CPU maps as it says: only what is there, only what is not, never both."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import BpfError, refused

ARRAY, HASH = uapi.BPF_MAP_TYPE_PERCPU_ARRAY, uapi.BPF_MAP_TYPE_PERCPU_HASH
LRU_HASH = uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH
THERE, ABSENT = 0, 1
TYPES = {"array": ARRAY, "hash": HASH, "lru_hash": LRU_HASH}


def map_with_one_element(map_type: int) -> Map:
    map = Map.create(map_type, 4, 8, 1 if map_type == ARRAY else 4)
    map.update(THERE, 1)
    return map


@pytest.mark.known_issue(
    "PERCPU-EXISTENCE-FLAGS",
    reason="any flags up to BPF_F_ALL_CPUS are taken, and only one alone is looked at",
    spared=("6.1.192", "6.12.117"),
)
@pytest.mark.parametrize("map_type", TYPES.values(), ids=TYPES)
def test_an_element_cannot_be_wanted_both_there_and_absent(map_type: int) -> None:
    """KPTR-FREE-009, -010: as in any other map."""
    with map_with_one_element(map_type) as map, refused(errno.EINVAL):
        map.update(THERE, 2, flags=uapi.BPF_NOEXIST | uapi.BPF_EXIST)


@pytest.mark.known_issue(
    "PERCPU-EXISTENCE-FLAGS",
    reason="BPF_NOEXIST and BPF_EXIST mean nothing beside BPF_F_CPU",
    spared=("6.1.192", "6.12.117"),
)
@pytest.mark.parametrize(
    ("map_type", "key", "flag", "errors"),
    [
        (ARRAY, THERE, uapi.BPF_NOEXIST, (errno.EEXIST, errno.EINVAL)),
        (HASH, THERE, uapi.BPF_NOEXIST, (errno.EEXIST, errno.EINVAL)),
        (HASH, ABSENT, uapi.BPF_EXIST, (errno.ENOENT, errno.EINVAL)),
        (LRU_HASH, THERE, uapi.BPF_NOEXIST, (errno.EEXIST, errno.EINVAL)),
        (LRU_HASH, ABSENT, uapi.BPF_EXIST, (errno.ENOENT, errno.EINVAL)),
    ],
    ids=["array_there", "hash_there", "hash_absent", "lru_hash_there", "lru_hash_absent"],
)
def test_a_write_to_one_cpu_minds_whether_the_element_is_there(
    map_type: int, key: int, flag: int, errors: tuple[int, ...]
) -> None:
    """KPTR-FREE-009, -010: or is refused as a whole. With BPF_F_ALL_CPUS it is."""
    with map_with_one_element(map_type) as map:
        try:
            map.update(THERE, 3, flags=uapi.BPF_F_ALL_CPUS)
        except BpfError:
            pytest.skip("this kernel lacks flags for CPUs in updates")
        with refused(errno.EINVAL):
            map.update(key, 2, flags=uapi.BPF_F_ALL_CPUS | flag)
        with refused(*errors):
            map.update(key, 2, flags=uapi.BPF_F_CPU | flag)
