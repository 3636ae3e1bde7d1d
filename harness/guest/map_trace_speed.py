# SPDX-License-Identifier: MIT
"""What map tracing costs the traced program: updates of a hash map per second, as a program makes them."""

from __future__ import annotations

from contextlib import ExitStack

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import add, asm, call, exit_, ld_map_fd, mov, r0, r1, r2, r3, r4, r10, stdw, stw
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace import Tracer
from harness.guest.bpf.prog import Prog


def rates(repeat: int) -> dict[str, float]:
    """Updates per second of a map that nobody traces ("untraced"), while another of its type is traced ("passed by"),
    and traced itself ("traced"); each is the mean of `repeat` in a row by one program. Raises BpfError, LookupError.
    """
    with ExitStack() as stack:
        map, other = (stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_HASH, 4, 8, 16)) for _ in range(2))
        code = asm(
            stw(r10, -4, 5),
            stdw(r10, -16, 7),
            ld_map_fd(r1, map),
            mov(r2, r10),
            add(r2, -4),
            mov(r3, r10),
            add(r3, -16),
            mov(r4, uapi.BPF_ANY),
            call(uapi.BPF_FUNC_map_update_elem),
            mov(r0, 0),
            exit_(),
        )
        prog = stack.enter_context(Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, name="updates"))
        found = {"untraced": _rate(prog, repeat)}
        for name, traced in (("passed by", other), ("traced", map)):
            with Tracer.attach(traced, capacity=repeat):
                found[name] = _rate(prog, repeat)
        return found


def _rate(prog: Prog, repeat: int) -> float:
    return 1e9 / prog.test_run(bytes(14), repeat=repeat).duration_ns
