# SPDX-License-Identifier: MIT
"""Who keeps the objects of a map: not the programs that put them there, but whatever holds the map; and the map holds
the module whose objects they are.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, atomic_add, exit_, jeq, label, ld_map_value, ldxdw, mov, r0, r1, r2, r3
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.tracing import load_tracing
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.conftest import MakeSlots
from scenarios.kptr.owning_map import VALUE_SIZE
from scenarios.kptr.slots import Slots

ZEROS = bytes(VALUE_SIZE)


def test_objects_outlive_the_programs_that_stored_them(kr_kptr: KrKptr, make_slots: MakeSlots) -> None:
    """KPTR-FREE-014, KPTR-LAW-001, KPTR-SEED-001: the next program finds them."""
    slots = make_slots()
    slots.put(7)

    slots.close_programs()

    assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (1, 0)
    assert slots.take() == 7
    assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (0, 0)


@contextmanager
def descriptor(slots: Slots) -> Iterator[None]:
    with slots.map.dup():
        slots.close()
        yield


@contextmanager
def pin(slots: Slots) -> Iterator[None]:
    path = Path(f"/sys/fs/bpf/kr_end_{os.getpid()}")
    slots.map.pin(str(path))
    try:
        slots.close()
        yield
    finally:
        path.unlink()


@contextmanager
def program(slots: Slots) -> Iterator[None]:
    with slots.kfuncs.load(slots.value_of_key()):
        slots.close()
        yield


@contextmanager
def link(slots: Slots) -> Iterator[None]:
    code = asm(ld_map_value(r1, slots.map), mov(r0, 0), exit_())
    with load_tracing("bpf_fentry_test1", code, attach_type=uapi.BPF_TRACE_FENTRY) as prog:
        attached = Link.raw_tracepoint(prog)
    with attached:
        slots.close()
        yield


@contextmanager
def outer_map(slots: Slots) -> Iterator[None]:
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, inner_map=slots.map) as outer:
        outer.update(0, slots.map.fd)
        slots.close()
        yield


@pytest.mark.parametrize("holder", [descriptor, pin, program, link, outer_map])
def test_last_holder_of_the_map_keeps_its_objects(
    kr_kptr: KrKptr, make_slots: MakeSlots, holder: Callable[[Slots], AbstractContextManager[None]]
) -> None:
    """KPTR-FREE-014, KPTR-LAW-001, -005: they are released when it goes, and the module with them."""
    slots = make_slots(max_entries=1)
    slots.put(7)
    # what other scenarios' maps left is freed in the background: an empty map shows when that has been
    with holder(slots):
        make_slots().close()
        assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (1, 0)
        assert kr_kptr.users() > 0

    wait_until(lambda: kr_kptr.count("live") == 0, timeout=2, what="the map to be freed")
    assert kr_kptr.count("dtor_calls") == 1
    wait_until(lambda: kr_kptr.users() == 0, timeout=2, what="the module to be let go")


def test_module_cannot_go_before_the_map_that_owns_its_objects(
    kr_kptr: KrKptr, make_slots: MakeSlots
) -> None:
    """KPTR-SEED-004, KPTR-MAP-027, KPTR-FREE-014, KPTR-LAW-005: it warns of live objects when it goes, and has none.

    Neither programs nor BTF are left of it by then.
    """
    known = {each.id for each in btf.objects()}
    slots = make_slots()
    slots.put(7)
    slots.close_programs()

    with pytest.raises(OSError) as refusal:
        kr_kptr.unload()
    assert (refusal.value.errno, kr_kptr.count("live")) == (errno.EAGAIN, 1)

    slots.close()
    slots.kfuncs.btf.object.close()
    modules.unload_when_unused("kr_kptr")
    wait_until(
        lambda: {each.id for each in btf.objects()} < known,
        timeout=2,
        what="the module's BTF and the map's to go",
    )


KFUNCS = {"kr_obj_new": 1, "kr_obj_find": 1, "kr_obj_release": -1, "kr_obj_dtor": -1}


def test_calls_that_acquire_and_release_balance(kr_kptr: KrKptr, make_slots: MakeSlots) -> None:
    """KPTR-LAW-002, KPTR-FREE-018: counted from outside, by programs on the kfuncs and the destructor."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as balance:

        def counted(kfunc: str) -> Link:
            # The first argument is an id, or an object: before 6.4 the destructor is called for empty pointers, too.
            code = asm(
                ldxdw(r3, r1, 0),
                jeq(r3, 0, "out"),
                ld_map_value(r1, balance),
                mov(r2, KFUNCS[kfunc]),
                atomic_add(r1, 0, r2),
                label("out"),
                mov(r0, 0),
                exit_(),
            )
            with load_tracing(kfunc, code, attach_type=uapi.BPF_TRACE_FENTRY, module="kr_kptr") as prog:
                return Link.raw_tracepoint(prog)

        links = [counted(kfunc) for kfunc in KFUNCS]
        slots = make_slots(uapi.BPF_MAP_TYPE_HASH)
        for key in range(4):
            slots.map.update(key, ZEROS)
            slots.put(key + 1, key)
            slots.put_static(1, key)
        assert balance.number(0) == 4
        assert slots.take(0) == 1
        slots.map.update(1, ZEROS)
        slots.map.delete(2)
        assert balance.number(0) == kr_kptr.static_refs(1) < 4

        slots.close()

        wait_until(lambda: balance.number(0) == 0, timeout=2, what="as many releases as objects")
        assert (kr_kptr.count("live"), kr_kptr.static_refs(1)) == (0, 0)
        for each in links:
            each.close()
