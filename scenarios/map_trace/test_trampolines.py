# SPDX-License-Identifier: MIT
"""What fentry, fexit and modify-return programs are given and can do, on functions that the kernel keeps for that; and
what it costs a program that its map is traced.
"""

from __future__ import annotations

import errno
import struct
from contextlib import ExitStack

import pytest

from harness.guest import map_trace_speed
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Code, Item, asm, exit_, ld_map_value, ldxdw, mov, r0, r1, r2, r3, stxdw
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace_hooks import CHANGES, HOOKS
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.tracing import attach_tracing, load_tracing

FUNCTION = "bpf_modify_return_test"
FENTRY, FEXIT = uapi.BPF_TRACE_FENTRY, uapi.BPF_TRACE_FEXIT
# net/bpf/test_run.c:bpf_prog_test_run_tracing calls them with these arguments, for this result.
CALLS = {
    "bpf_fentry_test1": ((1,), 2),
    "bpf_fentry_test2": ((2, 3), 5),
    "bpf_fentry_test3": ((4, 5, 6), 15),
    "bpf_fentry_test4": ((7, 8, 9, 10), 34),
    "bpf_fentry_test5": ((11, 12, 13, 14, 15), 65),
    "bpf_fentry_test6": ((16, 17, 18, 19, 20, 21), 111),
}


def copying(words: int, into: Map) -> Code:
    """Code that copies so many words of its context into the only value of an array."""
    copies: list[Item] = [(ldxdw(r3, r1, 8 * at), stxdw(r2, 8 * at, r3)) for at in range(words)]
    return asm(ld_map_value(r2, into), copies, mov(r0, 0), exit_())


def test_a_tracer_gets_arguments_of_all_widths_and_the_result() -> None:
    """MTRACE-HOOK-022, upstream prog_tests/fentry_test.c, fexit_test.c, fentry_fexit.c: both at once."""
    with ExitStack() as stack:
        notes: dict[tuple[str, int], tuple[int, Map]] = {}
        prog: Prog | None = None
        for function, (arguments, _) in CALLS.items():
            for kind in (FENTRY, FEXIT):
                words = len(arguments) + (kind == FEXIT)
                note = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 64, 1))
                prog = stack.enter_context(load_tracing(function, copying(words, note), attach_type=kind))
                stack.enter_context(attach_tracing(prog, kind))
                notes[function, kind] = words, note
        assert prog is not None
        prog.test_run()
        for (function, kind), (words, note) in notes.items():
            found = struct.unpack_from(f"={words}Q", note.lookup(0) or b"")
            # what is above a narrow argument or result is nobody's business
            low = tuple(word & 0xFF for word in found)
            arguments, result = CALLS[function]
            assert low == (arguments if kind == FENTRY else (*arguments, result)), function


def modifiable(function: str) -> bool:
    """Whether a modify-return program for the function loads; otherwise it must be for this reason."""
    try:
        load_tracing(function, asm(mov(r0, 0), exit_()), attach_type=uapi.BPF_MODIFY_RETURN).close()
    except LookupError:
        return False  # not of this kernel
    except BpfError as error:
        assert (error.errno, "is not modifiable" in error.log) == (errno.EINVAL, True), error
        return False
    return True


def test_no_maps_function_lets_its_result_be_changed() -> None:
    """MTRACE-HOOK-025, MTRACE-RFC-012, upstream prog_tests/modify_return.c: they are not on the allow list."""
    functions = sorted(
        {
            hook.function
            for hooks in HOOKS.values()
            for hook in hooks
            if hook.operation in CHANGES and not hook.optional
        }
    )
    assert [function for function in functions if modifiable(function)] == []


def modified(result: int) -> tuple[int, int]:
    """Side effects and result of the functions that may be modified, with a program that returns `result` attached."""
    kind = uapi.BPF_MODIFY_RETURN
    with (
        load_tracing(FUNCTION, asm(mov(r0, result), exit_()), attach_type=kind) as prog,
        Link.tracing(prog, kind),
    ):
        retval = prog.test_run().retval
    return retval >> 16, retval & 0xFFFF


def test_a_modified_result_takes_the_functions_place() -> None:
    """MTRACE-HOOK-025, upstream prog_tests/modify_return.c: with 0 the function runs, else it does not."""
    if not modifiable(FUNCTION):
        pytest.skip(f"this kernel lets nobody modify {FUNCTION}")
    effects, result = modified(0)
    assert modified(9) == (effects - 1, result - 4 + 9)


def test_the_cost_of_tracing_is_measured_and_gone_afterwards() -> None:
    """MTRACE-SCN-007: `python -m harness.bench updates-traced` tells; here just that there is something to tell."""
    rates = map_trace_speed.rates(300)
    assert sorted(rates) == ["passed by", "traced", "untraced"]
    assert min(rates.values()) > 0
