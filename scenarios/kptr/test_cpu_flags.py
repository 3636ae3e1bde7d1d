# SPDX-License-Identifier: MIT
"""One CPU's value, or all CPUs' by one value: looks and updates of per-CPU maps by flag, with and without pointers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from harness.guest.bpf import cgroup, uapi
from harness.guest.bpf.asm import asm, call, exit_, ld_map_fd, mov, r0, r1, r2
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import OWNED, SEEN, VALUE_SIZE
from scenarios.kptr.storage import own_cgroup

pytestmark = pytest.mark.vm(cpus=2)
ALL = uapi.BPF_F_ALL_CPUS
FIRST, SECOND = (uapi.BPF_F_CPU | cpu << 32 for cpu in (0, 1))


@pytest.fixture(autouse=True)
def _needs_the_flags() -> None:
    with Map.create(uapi.BPF_MAP_TYPE_PERCPU_ARRAY) as map:
        try:
            map.lookup(0, flags=FIRST)
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("this kernel lacks BPF_F_CPU")


def shown(byte: int) -> bytes:
    """A value of this byte repeated, as user space sees it."""
    value = bytearray([byte]) * VALUE_SIZE
    value[SEEN : SEEN + 8] = value[OWNED : OWNED + 8] = bytes(8)
    return bytes(value)


@pytest.mark.parametrize(
    "map_type",
    [
        pytest.param(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, id="percpu_array"),
        pytest.param(uapi.BPF_MAP_TYPE_PERCPU_HASH, id="percpu_hash"),
        pytest.param(uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH, id="lru_percpu_hash"),
    ],
)
def test_flag_says_whose_value_is_meant(
    kr_kptr: KrKptr, make_slots: MakeSlots, updates_release: bool, map_type: int
) -> None:
    """KPTR-USER-001 to -003, KPTR-LAW-004, KPTR-FREE-009, -010: pointers are zeros for it, and released as ever."""
    # a full LRU would evict the element that it is to update
    slots = make_slots(map_type, max_entries=1 if map_type == uapi.BPF_MAP_TYPE_PERCPU_ARRAY else 4)
    map = slots.map
    map.update(0, [b"\x11" * VALUE_SIZE], flags=ALL)
    assert map.lookup(0) == shown(0x11) * possible_cpus()
    os.sched_setaffinity(0, {0})
    slots.put(7)
    calls = kr_kptr.count("dtor_calls")

    map.update(0, [b"\x22" * VALUE_SIZE], flags=SECOND)

    assert [one_value(map, cpu) for cpu in (FIRST, SECOND)] == [shown(0x11), shown(0x22)]
    assert (slots.peek(), kr_kptr.count("dtor_calls")) == (7, calls)
    map.update(0, [b"\x33" * VALUE_SIZE], flags=FIRST)
    assert [one_value(map, cpu) for cpu in (FIRST, SECOND)] == [shown(0x33), shown(0x22)]
    assert kr_kptr.count("dtor_calls") == calls + (1 if updates_release else 0)
    [(_, value)], _ = map.lookup_batch(4, flags=SECOND)
    assert value[:VALUE_SIZE] == shown(0x22)


def one_value(map: Map, flags: int) -> bytes:
    """What the look-up writes: one value, and nothing behind it."""
    found = map.lookup(0, flags=flags) or b""
    assert not any(found[VALUE_SIZE:])
    return found[:VALUE_SIZE]


@pytest.fixture
def cgroup_storage() -> Iterator[Map]:
    """The per-CPU storage of this process's cgroup for a program; one u64 per CPU."""
    with Map.create(uapi.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE, 8, 8, 0) as map:
        code = asm(ld_map_fd(r1, map), mov(r2, 0), call(uapi.BPF_FUNC_get_local_storage), mov(r0, 1), exit_())
        directory = os.open(own_cgroup(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            with Prog.load(code, uapi.BPF_PROG_TYPE_CGROUP_SKB) as prog:
                cgroup.attach(directory, prog, flags=uapi.BPF_F_ALLOW_MULTI)
                yield map
                cgroup.detach(directory, prog)
        finally:
            os.close(directory)


def test_flag_is_for_storage_of_cgroups_too(cgroup_storage: Map) -> None:
    """KPTR-USER-003."""
    map = cgroup_storage
    key = next(iter(map.keys()))
    map.update(key, [5], flags=ALL | uapi.BPF_EXIST)
    map.update(key, [6], flags=SECOND | uapi.BPF_EXIST)

    assert map[key] == [5, 6]
    assert [(map.lookup(key, flags=cpu) or b"")[0] for cpu in (FIRST, SECOND)] == [5, 6]


def test_flags_that_mean_nothing_are_refused() -> None:
    """KPTR-USER-003: both at once, a CPU that there is not, a CPU without the flag, all CPUs of a look, plain maps."""
    beyond = uapi.BPF_F_CPU | possible_cpus() << 32
    with Map.create(uapi.BPF_MAP_TYPE_PERCPU_ARRAY) as map:
        for flags, error in (
            (FIRST | ALL, errno.EINVAL),
            (beyond, errno.ERANGE),
            (1 << 32, errno.EINVAL),
        ):
            with refused(error):
                map.update(0, [1], flags=flags)
            with refused(error):
                map.lookup(0, flags=flags)
        with refused(errno.EINVAL):
            map.lookup(0, flags=ALL)
        assert map[0] == [0] * possible_cpus()
    for plain in (uapi.BPF_MAP_TYPE_ARRAY, uapi.BPF_MAP_TYPE_HASH):
        with Map.create(plain) as map:
            map.update(0, 1)
            for flags in (FIRST, ALL):
                with refused(errno.EINVAL):
                    map.update(0, 2, flags=flags)
                with refused(errno.EINVAL):
                    map.lookup(0, flags=flags)
            assert map[0] == 1
