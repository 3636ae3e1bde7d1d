# SPDX-License-Identifier: MIT
"""A map that is freed slowly while the BTF that describes its lists loses its last other holder."""

from __future__ import annotations

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import mov, r7
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.workshop import Workshop

ELEMENTS = 32


@pytest.mark.requires("local_kptr")
def test_lists_are_freed_by_the_book_although_the_btf_goes(kr_kptr: KrKptr, workshop: Workshop) -> None:
    """KPTR-FIX-007, KPTR-FREE-014, -017, KPTR-LAW-001, -005: each object in the lists goes with what it owns, although
    that takes many grace periods, and BTF and programs are closed first.
    """
    w, elem = workshop, workshop.t.elem
    known = {each.id for each in btf.objects()}
    store = w.t.map(uapi.BPF_MAP_TYPE_ARRAY, 4)
    for key in range(4):
        push = w.load(
            w.value(store, key),
            w.counted(elem, 1),
            w.lock(),
            w.push(r7, "elems", elem.at["node"]),
            w.unlock(),
            mov(r7, 0),
        )
        with push:
            push.test_run(bytes(64), repeat=ELEMENTS // 4)
    assert (kr_kptr.count("live"), kr_kptr.count("dtor_calls")) == (ELEMENTS, 0)
    kr_kptr.set_param("dtor_delay_us", 1000)

    w.t.btf.close()
    store.close()

    wait_until(lambda: kr_kptr.count("live") == 0, timeout=5, what="the map to be freed")
    assert kr_kptr.count("dtor_calls") == ELEMENTS
    wait_until(lambda: {each.id for each in btf.objects()} < known, timeout=5, what="the BTF to go")
