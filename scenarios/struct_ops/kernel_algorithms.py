# SPDX-License-Identifier: MIT
"""The kernel's own algorithms: which functions they have, and programs that do nothing but call these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, call_kfunc, exit_, ldxdw, mov, r0, r1, r2, r3, r4, r5, r6
from harness.guest.bpf.btf import Btf
from harness.guest.bpf.libbpf import libbpf
from harness.guest.bpf.prog import Prog
from scenarios.struct_ops.algorithms import TYPE

NEEDS_ECN = 2  # TCP_CONG_NEEDS_ECN, include/net/tcp.h


@dataclass(frozen=True)
class Kernels:
    """An algorithm of the kernel's: the module it may be in, its functions by member. Not each kernel has all."""

    module: str
    functions: Mapping[str, str]
    flags: int = 0


CUBIC = Kernels(
    "tcp_cubic",
    {
        "init": "cubictcp_init",
        "ssthresh": "cubictcp_recalc_ssthresh",
        "cong_avoid": "cubictcp_cong_avoid",
        "set_state": "cubictcp_state",
        "undo_cwnd": "tcp_reno_undo_cwnd",
        "cwnd_event": "cubictcp_cwnd_event",
        "cwnd_event_tx_start": "cubictcp_cwnd_event_tx_start",
        "pkts_acked": "cubictcp_acked",
    },
)
DCTCP = Kernels(
    "tcp_dctcp",
    {
        "init": "dctcp_init",
        "in_ack_event": "dctcp_update_alpha",
        "cwnd_event": "dctcp_cwnd_event",
        "cwnd_event_tx_start": "dctcp_cwnd_event_tx_start",
        "ssthresh": "dctcp_ssthresh",
        "cong_avoid": "tcp_reno_cong_avoid",
        "undo_cwnd": "dctcp_cwnd_undo",
        "set_state": "dctcp_state",
    },
    NEEDS_ECN,
)
BBR = Kernels(
    "tcp_bbr",
    {
        "init": "bbr_init",
        "cong_control": "bbr_main",
        "sndbuf_expand": "bbr_sndbuf_expand",
        "undo_cwnd": "bbr_undo_cwnd",
        "cwnd_event": "bbr_cwnd_event",
        "cwnd_event_tx_start": "bbr_cwnd_event_tx_start",
        "ssthresh": "bbr_ssthresh",
        "min_tso_segs": "bbr_min_tso_segs",
        "set_state": "bbr_set_state",
    },
)
RENO = Kernels(
    "",
    {
        "ssthresh": "tcp_reno_ssthresh",
        "cong_avoid": "tcp_reno_cong_avoid",
        "undo_cwnd": "tcp_reno_undo_cwnd",
    },
)


def source_of(function: str, module: str) -> Btf | None:
    """The types that have the function: vmlinux', or the module's, which is loaded for that; None: nowhere.

    Skips where the module's BTF has a struct sock of its own, which no program has a pointer to.
    """
    if btf.vmlinux().has_func(function):
        return btf.vmlinux()
    if not module or not module_files(module):
        return None
    modules.modprobe(module)
    source = btf.module(module)
    if not source.has_func(function):
        return None
    pointee = source.strip(source.strip(source.parameters(function)[0].type).type)
    if pointee.id >= libbpf().btf__type_cnt(btf.vmlinux().handle):
        pytest.skip(f"BTF of {module} has a struct {pointee.name} of its own, not the kernel's")
    return source


def module_files(module: str) -> list[Path]:
    """The module's file in the kernel's tree, or nothing."""
    return list(Path("/lib/modules", os.uname().release).rglob(f"{module}.ko*"))


def load_calling(function: str, member: str, source: Btf) -> Prog:
    """A program for `member` that passes its arguments on to a kernel function. Raises BpfError, LookupError."""
    types = btf.vmlinux()
    type_id = types.struct(TYPE)
    kernels = len(source.parameters(function))
    own = source is not types
    code = asm(
        mov(r6, r1),
        *(ldxdw(reg, r6, 8 * i) for i, reg in enumerate((r1, r2, r3, r4, r5)[:kernels])),
        call_kfunc(source.func(function), 1 if own else 0),
        *(() if member in ("ssthresh", "undo_cwnd", "min_tso_segs", "sndbuf_expand") else (mov(r0, 0),)),
        exit_(),
    )
    return Prog.load(
        code,
        uapi.BPF_PROG_TYPE_STRUCT_OPS,
        expected_attach_type=types.member(type_id, member).index,
        attach_btf_id=type_id,
        fd_array=[source.object, source.object] if own else (),
    )


def load_all(kernels: Kernels, stack: ExitStack) -> dict[str, Prog]:
    """Programs for all members of the kernel's algorithm; skips where this kernel lacks it."""
    members = {member.name for member in btf.vmlinux().members(btf.vmlinux().struct(TYPE))}
    progs = {}
    for member, function in kernels.functions.items():
        source = source_of(function, kernels.module)
        if source is not None and member in members:
            progs[member] = stack.enter_context(load_calling(function, member, source))
    if len(progs) < 3:
        pytest.skip(f"this kernel has no {kernels.module} whose functions programs may call")
    return progs


def users_of_module(kernels: Kernels) -> int:
    """How many hold the module; 0 if its code is built in."""
    return modules.refcount(kernels.module) if modules.state(kernels.module) is not None else 0
