# SPDX-License-Identifier: MIT
"""Programs that call functions of modules: of two at once, from a subprogram, only where they may."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    add,
    asm,
    call_kfunc,
    call_label,
    exit_,
    jeq,
    label,
    ldxw,
    mov,
    mul,
    r0,
    r1,
    r2,
    r6,
    r7,
)
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr, KrTraced, missing
from harness.guest.privilege import without
from harness.guest.waiting import wait_until

KPTR, TRACED = 1, 2
PLACES = {"kr_kptr": KPTR, "kr_traced": TRACED}
NUMBER, ID, DESTRUCTION = 7, 2, 13
CAP_SYS_BOOT = 22  # include/uapi/linux/capability.h


@pytest.fixture(params=[("kr_kptr", "kr_traced"), ("kr_traced", "kr_kptr")], ids=" then ".join)
def both(request: pytest.FixtureRequest) -> Iterator[None]:
    """kr_kptr and kr_traced, loaded in this order."""
    kinds = {"kr_kptr": KrKptr, "kr_traced": KrTraced}
    with ExitStack() as stack:
        for name in request.param:
            if reason := missing(name):
                pytest.skip(reason)
            stack.enter_context(kinds[name]())
        yield


def kfunc(module: str, name: str) -> Item:
    return call_kfunc(btf.module(module).func(name), PLACES[module])


def number() -> Item:
    """r7 = 10 * r7 + what kr_traced says."""
    return [kfunc("kr_traced", "kr_traced_number"), mul(r7, 10), add(r7, r0)]


def id_of_static() -> Item:
    """r7 = 10 * r7 + the id of an object of kr_kptr, which is released."""
    return [
        *(mov(r1, ID), kfunc("kr_kptr", "kr_obj_find"), jeq(r0, 0, "out"), mov(r6, r0)),
        *(ldxw(r1, r6, btf.module("kr_kptr").offset("kr_obj", "id")), mul(r7, 10), add(r7, r1)),
        *(mov(r1, r6), kfunc("kr_kptr", "kr_obj_release")),
    ]


def result(code: Code) -> int:
    """What a program that calls both modules returns."""
    fds: list[Descriptor | int] = [0, btf.module("kr_kptr").object, btf.module("kr_traced").object]
    with Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, fd_array=fds) as program:
        assert min(modules.refcount(name) for name in PLACES) > 0
        return program.test_run(bytes(64)).retval


@pytest.mark.usefixtures("both")
def test_each_call_reaches_the_module_that_is_meant() -> None:
    """MODLIFE-RACE-021, MODLIFE-REF-006: whichever was loaded first, and whichever is called first; a program holds
    both.
    """
    ends = (label("out"), mov(r0, r7), exit_())
    assert result(asm(mov(r7, 0), number(), id_of_static(), *ends)) == 10 * NUMBER + ID
    assert result(asm(mov(r7, 0), id_of_static(), number(), *ends)) == 10 * ID + NUMBER
    for name in PLACES:
        wait_until(partial(unused, name), timeout=2, what=f"{name} to be let go")


def unused(module: str) -> bool:
    return modules.refcount(module) == 0


def test_subprogram_may_call_a_module(kr_traced: KrTraced) -> None:
    """MODLIFE-REF-006: such a call needs no entry of its own; the program holds the module once."""
    types = BtfBuilder()
    proto = types.func_proto(types.integer("int", 4))
    main, sub = types.func("main", proto), types.func("sub", proto)
    function = btf.module("kr_traced").func("kr_traced_number")
    code = asm(
        *(call_label("sub"), mov(r7, r0), call_kfunc(function, 1), add(r0, r7), exit_()),
        *(label("sub"), call_kfunc(function, 1), exit_()),
    )
    with (
        types.load() as own,
        Prog.load(
            code,
            uapi.BPF_PROG_TYPE_SCHED_CLS,
            btf=own,
            func_info=[(0, main), (5, sub)],
            fd_array=[0, btf.module("kr_traced").object],
        ) as program,
    ):
        assert program.test_run(bytes(64)).retval == 2 * NUMBER
        assert kr_traced.users() == 1


@pytest.mark.parametrize(
    ("code", "place", "answer"),
    [
        (lambda id: asm(call_kfunc(id, 0), exit_()), "kr_traced", errno.EINVAL),
        (lambda id: asm(call_kfunc(id, 1), exit_()), "kr_kptr", errno.EINVAL),
        (lambda id: asm(call_kfunc(id, 1), exit_()), None, errno.EBADF),
    ],
    ids=["as one of the kernel's", "in another module", "in no BTF"],
)
def test_call_is_refused_where_no_such_function_is(
    kr_traced: KrTraced, kr_kptr: KrKptr, code: object, place: str | None, answer: int
) -> None:
    """MODLIFE-REF-006: the number says nothing without the right BTF; nothing is held afterwards."""
    assert callable(code)
    function = btf.module("kr_traced").func("kr_traced_number")
    fds = [0, btf.module(place).object if place else -1]
    with refused(answer, errno.EACCES):
        Prog.load(code(function), uapi.BPF_PROG_TYPE_SCHED_CLS, fd_array=fds)
    assert (kr_traced.users(), kr_kptr.users()) == (0, 0)


def test_program_type_must_be_one_the_function_is_for(kr_traced: KrTraced) -> None:
    """MODLIFE-REF-006: kr_traced's is for the traffic classifier and for syscall programs only."""
    function = btf.module("kr_traced").func("kr_traced_number")
    with refused(errno.EACCES, errno.EINVAL, log="not allowed"):
        Prog.load(
            asm(call_kfunc(function, 1), mov(r2, 0), mov(r0, 0), exit_()),
            uapi.BPF_PROG_TYPE_XDP,
            fd_array=[0, btf.module("kr_traced").object],
        )
    assert kr_traced.users() == 0


@pytest.mark.parametrize("name", ["kr_traced_destroy", "kr_traced_number"])
def test_only_who_may_reboot_calls_what_destroys(kr_traced: KrTraced, name: str) -> None:
    """MODLIFE-REF-006: the program is refused without it, and lets the module go; other functions need none."""
    code = asm(call_kfunc(btf.module("kr_traced").func(name), 1), exit_())
    module = btf.module("kr_traced").object

    def load() -> int:
        with Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, fd_array=[0, module]) as program:
            return program.test_run(bytes(64)).retval

    if name == "kr_traced_destroy":
        with refused(errno.EACCES, log="destructive kfunc calls require CAP_SYS_BOOT"):
            without((CAP_SYS_BOOT,), load)
        wait_until(lambda: kr_traced.users() == 0, timeout=2, what="the refused program to let go")
        assert load() == DESTRUCTION
    else:
        assert without((CAP_SYS_BOOT,), load) == NUMBER
