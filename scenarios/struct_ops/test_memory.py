# SPDX-License-Identifier: MIT
"""Lives of registrations, one after the other: the kernel's memory does not fill up with what they leave."""

from __future__ import annotations

import pytest

from harness.guest import slabs, tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.probe import has
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm

pytestmark = [pytest.mark.requires("struct_ops")]


def test_lives_of_a_table_leave_no_objects(veth: VethPair, idle: Algorithm) -> None:
    """STOPS-LAW-007, -004: registered, refused, used, unregistered while it is, by hand or by a link: in no cache as
    much as an object each time.
    """
    if not slabs.counted():
        pytest.skip("this kernel lacks CONFIG_SLUB_DEBUG")

    def plain() -> None:
        with StructOps.create(TYPE) as ops, StructOps.create(TYPE) as namesake:
            ops.update(idle.members())
            with pytest.raises(BpfError):
                namesake.update(idle.members())
            with tcp.connect(veth, congestion=NAME):
                ops.delete()

    def linked() -> None:
        with StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as ops:
            ops.update(idle.members())
            with ops.link(), tcp.connect(veth, congestion=NAME):
                pass

    assert slabs.growth(plain) == {}
    if has("struct_ops_link"):
        assert slabs.growth(linked) == {}
