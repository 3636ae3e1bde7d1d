# SPDX-License-Identifier: MIT
"""Clients use a module on one CPU while it comes and goes on the other: each side wins or loses whole."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, call, exit_, jeq, label, ld_btf_id, ldxw, mov, r0, r1, r2
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import ENOTSUPP
from harness.guest.kr_modules import KrOps, KrTraced, missing
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.module.attaching import (
    Attach,
    fentry_program_holds,
    kprobe_multi,
    raw_tracepoint,
    reports,
    seen_map,
)
from scenarios.module.storm import ENOUGH, Bind, Storm
from scenarios.module.tables import Binder

pytestmark = pytest.mark.vm(cpus=2)

NewBind = Callable[[ExitStack], Bind]
"""Prepares a client while the module is there: numbers of types are the same in each instance."""


def maps(stack: ExitStack) -> Bind:
    types = btf.module("kr_ops")
    return lambda instance: Binder(types, instance).create_map()


def member_programs(stack: ExitStack) -> Bind:
    types = btf.module("kr_ops")
    return lambda instance: Binder(types, instance).load_program()


def registrations(stack: ExitStack) -> Bind:
    """The whole life of a table: what holds the map holds the module, so all that follows must succeed."""
    types = btf.module("kr_ops")

    @contextmanager
    def life(binder: Binder, map: Map) -> Iterator[None]:
        with map:
            with binder.load_program() as compute:
                binder.fill(map, compute)
            with Link.struct_ops(map):
                assert KrOps.loaded().call("compute", 0, 20, 22) == 42
                yield

    def bind(instance: BtfObject) -> AbstractContextManager[object]:
        binder = Binder(types, instance)
        return life(binder, binder.create_map(uapi.BPF_F_LINK))

    return bind


def kfunc_programs(stack: ExitStack) -> Bind:
    kfuncs = Kfuncs()
    code = asm(kfuncs.new(), kfuncs.release(), label("out"), mov(r0, 0), exit_())

    @contextmanager
    def run(program: Prog) -> Iterator[None]:
        with program:
            program.test_run(bytes(64))
            yield

    return lambda instance: run(Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, fd_array=[0, instance]))


def variable_programs(stack: ExitStack) -> Bind:
    variable = btf.module("kr_traced").id("kr_traced_answer", uapi.BTF_KIND_VAR)

    @contextmanager
    def run(program: Prog) -> Iterator[None]:
        with program:
            assert program.test_run(bytes(64)).retval == 42
            yield

    def bind(instance: BtfObject) -> AbstractContextManager[object]:
        code = asm(
            *(ld_btf_id(r1, variable, instance.fd), mov(r2, 0), call(uapi.BPF_FUNC_per_cpu_ptr)),
            *(jeq(r0, 0, "out"), ldxw(r0, r0, 0), label("out"), exit_()),
        )
        return run(Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS))

    return bind


def fentry_links(stack: ExitStack) -> Bind:
    function = btf.module("kr_traced").func("kr_traced_double")
    code = reports(stack.enter_context(seen_map()), 0)

    def bind(instance: BtfObject) -> AbstractContextManager[object]:
        with Prog.load(
            code,
            uapi.BPF_PROG_TYPE_TRACING,
            expected_attach_type=uapi.BPF_TRACE_FENTRY,
            attach_btf_id=function,
            attach_btf_obj_fd=instance.fd,
        ) as program:
            return Link.tracing(program, uapi.BPF_TRACE_FENTRY)

    return bind


CLIENTS: dict[str, tuple[str, NewBind, tuple[int, ...], bool]] = {
    "maps": ("kr_ops", maps, (errno.EINVAL,), True),
    "member_programs": ("kr_ops", member_programs, (ENOTSUPP,), False),
    "registrations": ("kr_ops", registrations, (errno.EINVAL,), True),
    "kfunc_programs": ("kr_kptr", kfunc_programs, (errno.ENXIO,), True),
    "variable_programs": ("kr_traced", variable_programs, (errno.ENXIO, errno.ENOENT), True),
    "fentry_links": ("kr_traced", fentry_links, (errno.ENOENT, errno.EINVAL), True),
}


# What hangs on a function's entry is let go after grace periods of tasks, a second each: one of these is enough.


@pytest.mark.parametrize("failing", [False, True], ids=["", "init_fails"])
@pytest.mark.parametrize(("name", "new_bind", "refusals", "lives"), CLIENTS.values(), ids=CLIENTS)
def test_use_and_unload_never_both_succeed(
    name: str, new_bind: NewBind, refusals: tuple[int, ...], lives: bool, failing: bool
) -> None:
    """MODLIFE-RACE-001 to -004, -012, -015, -016, MODLIFE-LAW-001, -003, STOPS-FIX-003.

    What was made keeps its module, or holds nothing and is clean to close; an unload that succeeded lets nothing
    more be made of what it removed, and an init that fails in the end nothing at all.
    """
    if name == "kr_ops":
        require("module_struct_ops")
    if reason := missing(name):
        pytest.skip(reason)
    if new_bind is fentry_links and not fentry_program_holds():
        pytest.skip("this kernel lacks tracing programs that hold their module from load on")
    modules.load_test_module(name)
    try:
        with ExitStack() as stack:
            bind = new_bind(stack)
            storm = Storm(name)
            storm.rage(
                lambda: storm.bind("bind", bind, *refusals, lives=lives),
                wanted=("bind accepted", "bind refused", "bind overlapped"),
                failing=failing,
                enough=1 if new_bind is fentry_links else ENOUGH,
            )
    finally:
        modules.unload_when_unused(name)


NAMED: dict[str, tuple[Attach, tuple[int, ...]]] = {
    "raw_tracepoint_links": (raw_tracepoint("kr_traced_event"), (errno.ENOENT,)),
    "kprobe_multi_links": (kprobe_multi, (errno.ESRCH, errno.EINVAL)),
}


@pytest.mark.parametrize(("attach", "refusals"), NAMED.values(), ids=NAMED)
def test_link_by_name_keeps_the_module_or_is_refused(
    kr_traced: KrTraced, attach: Attach, refusals: tuple[int, ...]
) -> None:
    """MODLIFE-RACE-012, MODLIFE-REF-009, -010, MODLIFE-LAW-001: the instance that is there when it is looked for.

    No init fails here: MODLIFE-LINK-IN-INIT would bring the machine down.
    """
    with seen_map() as seen:
        attach(seen).close()
        storm = Storm("kr_traced")
        storm.rage(
            lambda: storm.bind_by_name("bind", lambda: attach(seen), *refusals),
            wanted=("bind accepted", "bind refused", "bind overlapped"),
            enough=1 if attach is kprobe_multi else ENOUGH,
        )
