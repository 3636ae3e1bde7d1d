# SPDX-License-Identifier: MIT
"""The kernel's functions that programs may call bear whatever a verified program passes."""

from __future__ import annotations

import pytest

from harness.guest import tcp
from harness.guest.bpf import btf
from harness.guest.bpf.asm import Item, asm, call_kfunc, exit_, ldxdw, mov, r0, r1, r2, r3
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm

pytestmark = [pytest.mark.requires("struct_ops", "kfunc:tcp_cong_avoid_ai")]

BYTES = 64 * 1024


def load_cong_avoid(*items: Item) -> Prog:
    """A program for member cong_avoid: these instructions, with r1 the socket."""
    return load_struct_ops_prog(TYPE, "cong_avoid", asm(ldxdw(r1, r1), *items, mov(r0, 0), exit_()))


def kfunc(name: str) -> Item:
    return call_kfunc(btf.vmlinux().func(name))


@pytest.mark.known_issue(
    "TCP-CONG-AVOID-AI-ZERO", reason="the kernel divides by the argument", splat="tcp_cong_avoid_ai"
)
@pytest.mark.usefixtures("panic_on_oops")
def test_a_window_of_zero_is_borne_by_additive_increase(
    veth: VethPair, ops: StructOps, idle: Algorithm
) -> None:
    """STOPS-PROG-032: what a program may call does not end the machine."""
    with load_cong_avoid(mov(r2, 0), mov(r3, 1), kfunc("tcp_cong_avoid_ai")) as increase:
        ops.update({**idle.members(), "cong_avoid": increase})
    with tcp.connect(veth, congestion=NAME) as pair:
        pair.transfer(BYTES)
