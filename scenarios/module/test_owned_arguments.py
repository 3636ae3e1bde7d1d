# SPDX-License-Identifier: MIT
"""Members whose programs own an argument, or return an object: nothing is lost, nothing strange is returned."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    call_kfunc,
    call_label,
    exit_,
    jeq,
    label,
    ld_map_fd,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
)
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrTypes
from scenarios.module.module_type import ModuleType

pytestmark = pytest.mark.requires("struct_ops_ref_argument")

# the arguments of "take" and "give": a number, a thing that the program owns, and another structure
THING, OTHER = 8, 16


@pytest.fixture
def refs(kr_types: KrTypes) -> ModuleType:
    return ModuleType("kr_types", "kr_refs")


def release(refs: ModuleType) -> Item:
    """Release the thing among the arguments in r1, if there is one."""
    return [ldxdw(r1, r1, THING), refs.kfunc("kr_thing_release")]


def test_program_releases_the_argument_it_owns(refs: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-PROG-017: the module gave its only reference, so the thing is gone."""
    with refs.load("take", release(refs), mov(r0, 3)) as take, refs.linked({"take": take}):
        assert (kr_types.call("take", 5), kr_types.count("things")) == (3, 0)


LEAKS: dict[str, Item] = {
    "never": [mov(r0, 0)],
    "on_one_path": [ldxdw(r2, r1, 0), mov(r0, 0), jeq(r2, 7, "out"), label("out")],
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_argument_that_is_not_released_is_a_leak(refs: ModuleType, leak: Item) -> None:
    """STOPS-PROG-017: refused, with a path on which it is still owned at the end."""
    with refused(errno.EINVAL, log="Unreleased reference"):
        refs.load("take", leak)


def test_argument_is_released_once(refs: ModuleType) -> None:
    """STOPS-PROG-017: it can neither be released nor read again."""
    again = [mov(r6, r1), release(refs), ldxdw(r1, r6, THING), refs.kfunc("kr_thing_release"), mov(r0, 0)]
    with refused(errno.EACCES, log="Reference may already be released"):
        refs.load("take", again)


@pytest.mark.parametrize(("offset", "accepted"), [(0, True), (THING, False)], ids=["number", "thing"])
def test_argument_is_not_there_for_a_global_subprogram(refs: ModuleType, offset: int, accepted: bool) -> None:
    """STOPS-PROG-017: it is verified by itself, with the same context but owning nothing of what is in that."""
    types = BtfBuilder()
    integer = types.integer("int", 4, encoding=1)
    context = types.ptr(types.integer("u64", 8))
    proto = types.func_proto(integer, [("ctx", context)])
    main, sub = (types.func(name, proto) for name in ("main", "reading"))
    types.decl_tag("arg:ctx", sub, 0)
    code = [
        *(mov(r6, r1), release(refs), mov(r1, r6), call_label("reading"), exit_()),
        *(label("reading"), ldxdw(r1, r1, offset), mov(r0, 0)),
    ]
    with types.load() as own, ExitStack() as stack:
        if not accepted:
            said = rf"(?s)Validating reading\(\).*access off={offset}. Reference may already be released"
            stack.enter_context(refused(errno.EACCES, log=said))
        refs.load("take", code, types=own, func_info=[(0, main), (6, sub)]).close()


def test_each_of_several_arguments_is_owned(refs: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-PROG-017: one of two that is kept is a leak, whichever it is."""

    def give_back(*offsets: int) -> Item:
        return [
            mov(r6, r1),
            [[ldxdw(r1, r6, at), refs.kfunc("kr_thing_release")] for at in offsets],
            mov(r0, 0),
        ]

    for kept in (0, 8):
        with refused(errno.EINVAL, log="Unreleased reference"):
            refs.load("both", give_back(8 - kept))
    with refs.load("both", give_back(8, 0)) as both, refs.linked({"both": both}):
        assert (kr_types.call("both"), kr_types.count("things")) == (0, 0)


def test_no_tail_call_with_an_owned_argument(refs: ModuleType) -> None:
    """STOPS-PROG-013: nobody knows what the other program does with it."""
    with Map.create(uapi.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1) as array:
        tail_call = [
            mov(r6, r1),
            release(refs),
            mov(r1, r6),
            ld_map_fd(r2, array),
            mov(r3, 0),
            call(uapi.BPF_FUNC_tail_call),
            mov(r0, 0),
        ]
        with refused(errno.EINVAL, log="cannot tail call"):
            refs.load("take", tail_call)


def test_object_is_returned_or_none(refs: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-PROG-018: the argument itself, a new object instead, or nothing; the module gets what the program owned."""
    ways: dict[str, tuple[Item, int]] = {
        "argument": ([ldxdw(r0, r1, THING)], 5),
        "new": ([release(refs), mov(r1, 9), refs.kfunc("kr_thing_new")], 9),
        "none": ([release(refs), mov(r0, 0)], 0),
    }
    for way, expected in ways.values():
        with refs.load("give", way) as give, refs.linked({"give": give}):
            assert (kr_types.call("give", 5), kr_types.count("things")) == (expected, 0)


def test_nothing_else_is_returned(refs: ModuleType) -> None:
    """STOPS-PROG-018: a number, a pointer to another structure, into the object, to the context, or a borrowed one."""
    free = [mov(r7, r1), release(refs)]
    unowned = "R0 is not a known value"
    wrong: dict[str, tuple[Item, str]] = {
        "number": ([free, mov(r0, 1)], r"R0 has .*=1 should have been in \[0, 0\]"),
        "other": ([free, ldxdw(r0, r7, OTHER)], unowned),
        "context": ([free, mov(r0, r7)], unowned),
        "shifted": ([ldxdw(r0, r1, THING), add(r0, 4)], "R0 .*disallowed"),
    }
    for way, reason in wrong.values():
        with refused(errno.EINVAL, errno.EACCES, log=reason):
            refs.load("give", way)


@pytest.mark.requires("local_kptr")
def test_local_object_is_not_returned_for_one_of_the_module(refs: ModuleType) -> None:
    """STOPS-PROG-018: although its type bears the same name, and the program owns it."""
    kernel = btf.vmlinux()
    new = "bpf_obj_new" if kernel.has_func("bpf_obj_new") else "bpf_obj_new_impl"
    types = BtfBuilder()
    integer = types.integer("int", 4, encoding=1)
    main = types.func("main", types.func_proto(integer, [("ctx", types.ptr(types.integer("u64", 8)))]))
    local = types.struct("kr_thing", 8, [("refs", integer, 0), ("id", integer, 4)])
    made = [release(refs), mov(r1, local), mov(r2, 0), call_kfunc(kernel.func(new), 0)]
    with types.load() as own:
        with refused(errno.EINVAL, log=r"R0 is not a known value \(ptr_"):
            refs.load("give", made, types=own, func_info=[(0, main)])
        nothing: list[Item] = [
            made,
            mov(r1, r0),
            mov(r0, 0),
            jeq(r1, 0, "out"),
            refs.kfunc("kr_thing_release"),
            label("out"),
        ]
        with refused(errno.EINVAL, log="expected pointer to STRUCT kr_thing but"):
            refs.load("give", *nothing, types=own, func_info=[(0, main)])
