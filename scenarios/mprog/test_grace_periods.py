# SPDX-License-Identifier: MIT
"""Which changes of a list wait until no packet can meet the old one any more."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import (
    asm,
    atomic_add,
    call,
    exit_,
    jne,
    label,
    ld_map_value,
    mov,
    r0,
    r1,
    r2,
    rsh,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls

WAIT = "synchronize_rcu"

Waits = Callable[[Callable[[], object]], int]


@pytest.fixture
def waits() -> Iterator[Waits]:
    """How many RCU grace periods this process waits for while it carries something out."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as count:
        code = asm(
            call(uapi.BPF_FUNC_get_current_pid_tgid),
            rsh(r0, 32),
            jne(r0, os.getpid(), "out"),
            ld_map_value(r1, count),
            mov(r2, 1),
            atomic_add(r1, 0, r2),
            label("out"),
            mov(r0, 0),
            exit_(),
        )

        def during(act: Callable[[], object]) -> int:
            before = count.number(0)
            act()
            return count.number(0) - before

        with (
            load_tracing(WAIT, code, attach_type=uapi.BPF_TRACE_FENTRY) as prog,
            attach_tracing(prog, uapi.BPF_TRACE_FENTRY),
        ):
            yield during


@pytest.mark.requires(f"fentry:{WAIT}")
def test_a_list_that_grows_or_shrinks_waits_and_one_that_changes_in_place_does_not(
    dev: Device, sched_cls: LoadSchedCls, waits: Waits
) -> None:
    """MPROG-LIFE-009, MPROG-ATTACH-037, MPROG-DETACH-018."""
    a, b, c, d = (sched_cls() for _ in range(4))
    tcx.attach(dev, a)

    def refused_attach() -> None:
        with refused(errno.EEXIST):
            tcx.attach(dev, a)

    assert waits(lambda: tcx.attach(dev, b)) == 1
    assert waits(lambda: tcx.attach(dev, c, replace=b)) == 0
    assert waits(refused_attach) == 0
    assert waits(lambda: tcx.query(dev)) == 0
    made = []
    assert waits(lambda: made.append(tcx.link(dev, b))) == 1
    (link,) = made
    assert waits(lambda: link.update(d)) == 0
    assert waits(link.detach) == 1
    assert waits(link.close) == 0
    assert waits(lambda: tcx.detach(dev, c)) == 1
    # The list itself goes in the background.
    assert waits(lambda: tcx.detach(dev, a)) == 1
