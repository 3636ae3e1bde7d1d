# SPDX-License-Identifier: MIT
"""Pointers of a value are found whatever stands beside them."""

from __future__ import annotations

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.kr_modules import KrKptr


@pytest.mark.known_issue(
    "KPTR-UNALIGNED-NEIGHBOUR",
    reason="a member that is not aligned to 8 bytes ends the search, and the error is lost",
    spared=("6.12.117", "7.2.12", "7.3-rc7"),
)
def test_a_pointer_behind_two_small_members_owns(kr_kptr: KrKptr) -> None:
    """KPTR-TAG-001, -002, KPTR-MAP-013, -027: the map holds the module of its pointee."""
    # 6.4 turned the tags round (kernel/bpf/btf.c:btf_find_kptr)
    tag = "kptr" if has("kptr_untrusted_tag") else "kptr_ref"
    before = kr_kptr.users()
    b = BtfBuilder()
    u32, target = b.integer("u32", 4), b.struct("kr_obj", 0)
    members = [("small", u32, 0), ("other", u32, 4), ("owned", b.ptr(b.type_tag(tag, target)), 8)]
    value = b.struct("value", 16, members)
    with b.load() as types:
        map = Map.create(
            uapi.BPF_MAP_TYPE_ARRAY, 4, 16, 1, btf=types, btf_key_type_id=u32, btf_value_type_id=value
        )
    with map:
        assert kr_kptr.users() > before
