# SPDX-License-Identifier: MIT
"""A program for several kernels names a kfunc by several prototypes, and calls it by the one that is there."""

from __future__ import annotations

from pathlib import Path
from threading import get_native_id

import pytest

from harness.guest.bpf.object import Object

OBJECT = Path(__file__).with_name("flavours.bpf.o")
PACKET = bytes(64)


@pytest.mark.requires("kptr_untrusted_tag", "kfunc:bpf_task_acquire")
def test_kfunc_is_called_by_the_prototype_that_the_kernel_has() -> None:
    """KPTR-TASK-001, -002: the calls by others are dead code, at which the verifier does not look."""
    with Object.open(OBJECT) as object:
        object.load()
        with object.prog("pid_by_the_right_one") as right, object.prog("how_many_wrong_ones") as wrong:
            assert right.test_run(PACKET).retval == get_native_id()
            assert wrong.test_run(PACKET).retval == 0
