# SPDX-License-Identifier: MIT
"""The kernel's own algorithms: called by programs, and their holders."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import pytest

from harness.guest import tcp
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, call_kfunc, exit_, mov, r0
from harness.guest.bpf.prog import Prog, enable_stats
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import refused
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, inuse, seen
from scenarios.struct_ops.kernel_algorithms import (
    BBR,
    CUBIC,
    DCTCP,
    RENO,
    Kernels,
    load_all,
    load_calling,
    users_of_module,
)
from scenarios.struct_ops.wire import losing

pytestmark = [pytest.mark.requires("struct_ops")]

ARITHMETIC = ("tcp_slow_start", "tcp_cong_avoid_ai")
BYTES = 192 * 1024


@pytest.mark.parametrize(
    ("kernels", "bound_to_run"),
    [
        pytest.param(RENO, {"ssthresh", "cong_avoid"}, id="reno"),
        pytest.param(CUBIC, {"init", "ssthresh", "cong_avoid", "set_state", "pkts_acked"}, id="cubic"),
        pytest.param(DCTCP, {"init", "ssthresh", "cong_avoid", "in_ack_event"}, id="dctcp"),
        pytest.param(BBR, {"init", "cong_control", "ssthresh", "set_state"}, id="bbr"),
    ],
)
def test_kernels_algorithm_carries_data_when_programs_call_it(
    kernels: Kernels, bound_to_run: set[str], unloading: None, veth: VethPair, ops: StructOps
) -> None:
    """STOPS-PROG-032, -033: its functions take a program's arguments as they are, cong_control's of any kernel."""
    for namespace in (veth.ns_a, veth.ns_b):
        namespace.set_sysctl("net.ipv4.tcp_ecn", 1)
    with ExitStack() as stack:
        progs = load_all(kernels, stack)
        ops.update({**progs, "name": NAME, "flags": kernels.flags})
        stack.enter_context(enable_stats())
        wire = stack.enter_context(losing(veth, every=32))
        with tcp.connect(veth, congestion=NAME, server_congestion=NAME) as pair:
            assert seen(ops) == inuse(3)
            pair.transfer(BYTES)
            assert pair.congestion == NAME
            assert wire.hit > 0 and pair.info.total_retrans > 0
        assert seen(ops) == inuse(1)
        ran = {member for member, prog in progs.items() if prog.info().run_cnt > 0}
        assert bound_to_run <= ran


@pytest.mark.known_issue("DCTCP-INIT-FROM-PROGRAM", reason="dctcp_init swaps the table behind the map's back")
def test_kernels_dctcp_called_by_a_program_leaves_the_holders_alone_when_the_peer_does_no_ecn(
    veth: VethPair, ops: StructOps
) -> None:
    """STOPS-PROG-032, STOPS-LAW-003, MODLIFE-LAW-001: the connection holds the map till its end, and no module."""
    with ExitStack() as stack:
        progs = load_all(DCTCP, stack)
        ops.update({**progs, "name": NAME, "flags": DCTCP.flags})
        users = users_of_module(DCTCP)
        with tcp.connect(veth, congestion=NAME) as pair:
            pair.transfer(1024)
        assert (seen(ops), users_of_module(DCTCP)) == (inuse(1), users)


@pytest.mark.parametrize("function", ARITHMETIC)
def test_kernels_arithmetic_may_be_called(function: str) -> None:
    """STOPS-PROG-032, -034: the socket that a program is given is a TCP socket."""
    load_calling(function, "cong_avoid", btf.vmlinux()).close()


def test_other_programs_may_not_call_the_kernels_algorithms() -> None:
    """STOPS-PROG-032: the functions are there for congestion controls only."""
    for function in (*RENO.functions.values(), *ARITHMETIC):
        code = asm(call_kfunc(btf.vmlinux().func(function)), mov(r0, 0), exit_())
        with refused(errno.EACCES, log=f"{function} is not allowed"):
            Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)
