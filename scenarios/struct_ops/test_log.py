# SPDX-License-Identifier: MIT
"""What the kernel's log says of refused congestion controls."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.syscall import refused
from harness.guest.kmsg import Mark
from scenarios.struct_ops.algorithms import Algorithm
from scenarios.struct_ops.conftest import NewOps


@pytest.mark.requires("struct_ops_link")
def test_log_tells_why_a_name_is_refused(new_ops: NewOps, idle: Algorithm) -> None:
    """STOPS-TCP-005, STOPS-TCP-003, -004, STOPS-LINK-017: one line for each refusal, and none for what is accepted."""
    first, second, other = (new_ops(uapi.BPF_F_LINK) for _ in range(3))
    first.update(idle.members("kr_first"))
    second.update(idle.members("kr_first"))
    other.update(idle.members("kr_other"))
    with Mark.now() as mark, first.link() as link:
        assert [each.text for each in mark.read() if "TCP:" in each.text] == []
        with refused(errno.EEXIST):
            second.link()
        with refused(errno.EINVAL):
            link.update(other.map)
        incomplete = {name: prog for name, prog in idle.members("kr_bare").items() if name != "ssthresh"}
        with refused(errno.EINVAL):
            new_ops().update(incomplete)
        told = [each.text for each in mark.read() if "TCP:" in each.text]
    assert [text.removeprefix("TCP: ") for text in told] == [
        "kr_first already registered or non-unique key",
        "kr_other not registered or non-unique key",
        "kr_bare does not implement required ops",
    ]
