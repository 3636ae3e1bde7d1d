# SPDX-License-Identifier: MIT
"""There may be more algorithms than fit in the file that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.struct_ops.algorithms import Algorithm
from scenarios.struct_ops.conftest import NewOps

pytestmark = [pytest.mark.requires("struct_ops")]

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
# include/net/tcp.h: TCP_CA_BUF_MAX, with names of TCP_CA_NAME_MAX with a space instead of the end
BUFFER, NAME_WITH_SPACE = 2048, 16


@pytest.mark.known_issue(
    "TCP-LIST-TOO-LONG",
    reason="a full buffer is taken for something that cannot be",
    splat="tcp_get_available_congestion_control",
)
def test_a_list_of_names_that_is_too_long_ends_early(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-TCP-010: bpf(2) registers as many as there is memory for."""
    names = [f"kr_algorithm{n:03}" for n in range(BUFFER // NAME_WITH_SPACE)]
    assert {len(name) for name in names} == {NAME_WITH_SPACE - 1}
    for name in names:
        new_ops().update(idle.members(name))
    shown = AVAILABLE.read_text().split()
    assert set(names[:100]) <= set(shown)
