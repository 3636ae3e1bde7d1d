# SPDX-License-Identifier: MIT
"""A map lets go of its pointees' module as often as it took hold of it."""

from __future__ import annotations

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.kr_modules import KrKptr
from harness.guest.waiting import wait_until
from scenarios.kptr.owning_map import owning_map


def owner_before_viewer(pointee: str) -> Map:
    """One value: struct { T *owned; T *seen; }. Raises BpfError."""
    # 6.4 turned the tags round (kernel/bpf/btf.c:btf_find_kptr)
    owned_tag, seen_tag = ("kptr", "kptr_untrusted") if has("kptr_untrusted_tag") else ("kptr_ref", "kptr")
    b = BtfBuilder()
    u32, target = b.integer("u32", 4), b.struct(pointee, 0)
    owned, seen = (b.ptr(b.type_tag(tag, target)) for tag in (owned_tag, seen_tag))
    value = b.struct("value", 16, [("owned", owned, 0), ("seen", seen, 8)])
    with b.load() as types:
        return Map.create(
            uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1, btf=types, btf_key_type_id=u32, btf_value_type_id=value
        )


@pytest.mark.known_issue(
    "KPTR-MODULE-PUT-TWICE",
    reason="a pointer that owns nothing puts the module that the one before it got",
    spared=("6.12.117", "7.2.12", "7.3-rc7"),
)
@pytest.mark.usefixtures("panic_on_oops")
def test_a_map_that_goes_leaves_the_modules_other_holders_alone(kr_kptr: KrKptr) -> None:
    """MODLIFE-REF-012, -013, MODLIFE-LAW-001: else the module could be unloaded under the other map."""
    with owning_map("kr_obj"):
        before = kr_kptr.users()
        with owner_before_viewer("kr_obj"):
            assert kr_kptr.users() == 2 * before
        wait_until(lambda: kr_kptr.users() <= before, timeout=2, what="the map to be freed")
        assert kr_kptr.users() == before
