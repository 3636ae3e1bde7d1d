# SPDX-License-Identifier: MIT
"""Programs at a module's tracepoints and functions: they run, they hold the module, and stop when their link goes."""

from __future__ import annotations

import errno

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.tracing import attach_tracing, load_tracing
from harness.guest.kr_modules import KrTraced
from scenarios.module.attaching import (
    ATTACHMENTS,
    MODULE,
    REFUSAL,
    WRITTEN,
    Attach,
    reports,
    seen_map,
)

NOTHING = 0


@pytest.mark.parametrize(("attach", "report"), ATTACHMENTS.values(), ids=ATTACHMENTS)
def test_program_runs_and_holds_the_module_until_its_link_goes(
    kr_traced: KrTraced, request: pytest.FixtureRequest, attach: Attach, report: int
) -> None:
    """MODLIFE-REF-008 to -010, MODLIFE-LAW-003: it runs also after an unload that failed; without it the module does
    what it did before, and goes at once.
    """
    name = request.node.callspec.id
    with seen_map() as seen:
        with attach(seen):
            answer = kr_traced.call(21)
            assert seen[0] == report
            assert answer == (
                REFUSAL if name == "fmod_ret" else 42,
                WRITTEN if name == "raw_tp_writable" else 0,
            )
            with pytest.raises(BlockingIOError):
                kr_traced.unload()
            seen[0] = NOTHING
            kr_traced.call(21)
            assert seen[0] == report
        seen[0] = NOTHING
        assert kr_traced.call(21) == (42, 0)
        assert seen[0] == NOTHING
    modules.unload_when_unused(MODULE)


def test_function_of_two_names_is_traced_where_its_btf_says(kr_traced: KrTraced) -> None:
    """MODLIFE-REF-008: the kernel has a function of the same name; each program sees calls of its own one only."""
    function = "bpf_fentry_shadow_test"
    if not has(f"fentry:{function}"):
        pytest.skip(f"this kernel lacks {function}")

    def traced(module: str | None) -> Link:
        code = reports(in_module if module else in_kernel, 1)
        with load_tracing(function, code, attach_type=uapi.BPF_TRACE_FEXIT, module=module) as prog:
            return attach_tracing(prog, uapi.BPF_TRACE_FEXIT)

    with seen_map() as in_module, seen_map() as in_kernel:
        with traced(None):
            kr_traced.call(21)
            assert kr_traced.users() == 0
            with traced(MODULE):
                assert kr_traced.users() > 0
                kr_traced.call(21)
        assert (in_module[0], in_kernel[0]) == (1, NOTHING)


def test_program_for_a_function_holds_the_module_or_cannot_be_attached_without_it(
    kr_traced: KrTraced,
) -> None:
    """MODLIFE-REF-008: since 6.4 the loaded program holds it; before, its link does, and without the module the program
    is good for nothing.
    """
    with seen_map() as seen:
        code = reports(seen, 0)
        with load_tracing("kr_traced_double", code, attach_type=uapi.BPF_TRACE_FENTRY, module=MODULE) as prog:
            if kr_traced.users():
                with pytest.raises(BlockingIOError):
                    kr_traced.unload()
                with attach_tracing(prog, uapi.BPF_TRACE_FENTRY):
                    kr_traced.call(21)
                assert seen[0] == 21
            else:
                kr_traced.unload()
                with refused(errno.ENOENT, errno.EINVAL, errno.EBUSY):
                    attach_tracing(prog, uapi.BPF_TRACE_FENTRY)


@pytest.mark.parametrize(("attach", "report"), ATTACHMENTS.values(), ids=ATTACHMENTS)
def test_nothing_can_be_attached_to_a_module_that_is_gone(
    kr_traced: KrTraced, attach: Attach, report: int
) -> None:
    """MODLIFE-REF-008 to -010, MODLIFE-EDGE-004: refused, with whatever remains of it gone as well."""
    with seen_map() as seen, attach(seen):
        pass
    types = btf.module(MODULE)
    modules.unload_when_unused(MODULE)
    with seen_map() as seen, types.object, pytest.MonkeyPatch.context() as patch:
        patch.setattr(btf, "module", lambda name: types)  # numbers from before, as a slow client would have
        with pytest.raises((BpfError, AssertionError)) as refusal:
            attach(seen)
        if isinstance(refusal.value, BpfError):
            assert refusal.value.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL)
