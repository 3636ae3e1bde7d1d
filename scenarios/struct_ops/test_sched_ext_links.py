# SPDX-License-Identifier: MIT
"""Two links of one scheduler's map, of which the first has lost its scheduler: each ends what it has made."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import BpfError
from harness.guest.waiting import wait_until

TYPE = "sched_ext_ops"
STATE = Path("/sys/kernel/sched_ext/state")


def disabled() -> bool:
    return STATE.read_text().strip() == "disabled"


@pytest.mark.known_issue(
    "SCX-SECOND-LINK",
    reason="the second scheduler takes the place of the first, and both links put what they find there",
    splat="bpf_struct_ops_map_link_dealloc|scx_",
    spared=("6.12.117", "7.2.12", "7.3-rc7"),
)
@pytest.mark.requires(f"struct_ops:{TYPE}")
@pytest.mark.usefixtures("panic_on_oops")
def test_a_link_whose_scheduler_failed_and_a_second_one_end_each_their_own() -> None:
    """STOPS-LINK-006, -022: whether the second link has to wait for the first one's end, or not."""
    starve = asm(mov(r0, 0), exit_())
    with (
        StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as ops,
        load_struct_ops_prog(TYPE, "enqueue", starve) as enqueue,
    ):
        ops.update({"enqueue": enqueue, "name": "kr_starves", "timeout_ms": 100})
        with ops.link() as first:
            wait_until(disabled, timeout=5, what="the kernel to take the tasks back")
            try:
                second = ops.link()
            except BpfError as refusal:
                assert refusal.errno == errno.EBUSY
                first.close()
                second = ops.link()
            with second:
                first.close()
        assert disabled()
