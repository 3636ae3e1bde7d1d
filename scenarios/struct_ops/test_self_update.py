# SPDX-License-Identifier: MIT
"""A link that is given the map it has already stays as it is, whichever way the kernel answers."""

from __future__ import annotations

import errno

import pytest

from harness.guest import tcp
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError
from harness.guest.netns import NetNamespace
from scenarios.struct_ops.algorithms import NAME, Algorithm


@pytest.mark.known_issue(
    "STOPS-QUIRK-002",
    reason="what is on the list is put on it once more, and then taken off",
    splat="tcp_(update|unregister)_congestion_control|tcp_ca_find",
)
@pytest.mark.requires("struct_ops_link")
@pytest.mark.usefixtures("panic_on_oops")
def test_a_link_updated_to_its_own_map_keeps_it(link_ops: StructOps, idle: Algorithm) -> None:
    """STOPS-QUIRK-002, MODLIFE-RULE-007, STOPS-LAW-002."""
    link_ops.update(idle.members())
    with NetNamespace.current() as here, link_ops.link() as link:
        try:
            link.update(link_ops.map)
        except BpfError as refusal:
            assert refusal.errno == errno.EINVAL
        assert tcp.available(here).count(NAME) == 1
        assert link.info().map_id == link_ops.map.id
