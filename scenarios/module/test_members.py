# SPDX-License-Identifier: MIT
"""Members of a module's struct_ops type: which programs they take, with which arguments."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import pytest

from harness.guest.bpf import symbols, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call_label,
    exit_,
    jeq,
    label,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r10,
    stdw,
)
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import ENOTSUPP, BpfError, refused
from harness.guest.kr_modules import KrOps, KrTypes
from scenarios.module.module_type import ModuleType

ARGUMENT = ldxdw(r1, r1, 0)


@pytest.fixture
def ops_type(kr_ops: KrOps) -> ModuleType:
    return ModuleType("kr_ops", "kr_ops")


def test_member_without_a_stub_takes_no_program(ops_type: ModuleType) -> None:
    """STOPS-PROG-010, MODLIFE-MOD-002."""
    with refused(ENOTSUPP, log="unsupported member unsupported of struct kr_ops"):
        ops_type.load("unsupported", mov(r0, 0))


def test_nullable_argument_arrives_as_null_or_not(ops_type: ModuleType, kr_ops: KrOps) -> None:
    """STOPS-PROG-016: a program that tests it reads it when it is there."""
    tested: Item = [ARGUMENT, mov(r0, -1), jeq(r1, 0, "out"), ldxw(r0, r1, 0), label("out")]
    with (
        ops_type.returning("compute", 0) as compute,
        ops_type.load("observe", tested) as observe,
        ops_type.linked({"compute": compute, "observe": observe}),
    ):
        assert (kr_ops.call("observe", 0), kr_ops.call("observe", 0, 17)) == (-1, 17)


def test_nullable_argument_has_to_be_tested(ops_type: ModuleType) -> None:
    """STOPS-PROG-016: the same argument of another member may be used at once."""
    with refused(errno.EACCES, log="trusted_ptr_or_null_"):
        ops_type.load("observe", ARGUMENT, ldxw(r0, r1, 0))
    ops_type.load("inspect", ARGUMENT, ldxw(r0, r1, 0)).close()


def test_type_decides_which_programs_may_sleep(ops_type: ModuleType) -> None:
    """STOPS-PROG-011, -014: the module's check_member allows it for one member."""
    ops_type.load("inspect", mov(r0, 0), flags=uapi.BPF_F_SLEEPABLE).close()
    for member in ("compute", "observe"):
        with refused(errno.EINVAL, log=f"unsupported member {member}"):
            ops_type.load(member, mov(r0, 0), flags=uapi.BPF_F_SLEEPABLE)


def test_type_decides_what_programs_write(ops_type: ModuleType, kr_ops: KrOps) -> None:
    """MODLIFE-MOD-003: its verifier operations allow one field of an argument, which the module then sees."""
    argument = ops_type.btf.struct("kr_ops_arg")
    seen, sequence = (ops_type.btf.member(argument, name).offset for name in ("seen", "sequence"))
    with refused(errno.EACCES, log="only seen can be written"):
        ops_type.load("inspect", ARGUMENT, stdw(r1, sequence, 5), mov(r0, 0))
    with refused(errno.EACCES):
        ops_type.load("inspect", ARGUMENT, stdw(r1, seen + 4, 5), mov(r0, 0))
    with (
        ops_type.returning("compute", 0) as compute,
        ops_type.load("inspect", ARGUMENT, stdw(r1, seen, 5), mov(r0, 0)) as inspect,
        ops_type.linked({"compute": compute, "inspect": inspect}),
    ):
        assert kr_ops.seen("inspect", 0) == 5


def test_trampolines_of_many_members_fill_several_pages(kr_types: KrTypes) -> None:
    """STOPS-UPD-013, STOPS-REG-005: each of 50 members calls its own program."""
    many = ModuleType("kr_types", "kr_many")
    numbers = range(10, 60)
    with ExitStack() as stack:
        progs = {
            f"m{number}": stack.enter_context(many.returning(f"m{number}", number)) for number in numbers
        }
        stack.enter_context(many.linked(progs))

        assert [kr_types.call("many", at) for at in range(len(numbers))] == list(numbers)
        assert 2 <= len(pages_of_trampolines("kr_many")) <= 8


@pytest.mark.known_issue(
    "STRUCT-OPS-MEMBER-59", reason="numbers of members are taken for attach types", spared=("6.12.117",)
)
def test_each_of_64_members_takes_a_program(kr_types: KrTypes) -> None:
    """STOPS-PROG-008, -009, STOPS-REG-005: up to the number that types may have."""
    many = ModuleType("kr_types", "kr_many")
    answers = {}
    for member in many.btf.members(many.id):
        try:
            many.returning(member.name, 0).close()
        except BpfError as error:
            answers[member.index] = error.errno_name
    assert answers == {}


def two_frames(bytes_each: int) -> Item:
    """A program and a subprogram with a stack of so many bytes each, which are added up on the kernel's stack."""
    return [
        stdw(r10, -bytes_each, 0),
        call_label("inner"),
        exit_(),
        label("inner"),
        stdw(r10, -bytes_each, 0),
        mov(r0, 7),
    ]


@pytest.mark.requires("struct_ops_private_stack")
def test_private_stack_lets_programs_go_deeper(ops_type: ModuleType, kr_types: KrTypes) -> None:
    """STOPS-PROG-012: each function has 512 bytes, where the kernel's stack has 512 for all of them."""
    deep = ModuleType("kr_types", "kr_deep")
    with refused(errno.EACCES, log="combined stack size"):
        ops_type.load("compute", two_frames(400))
    with refused(errno.EACCES):
        deep.load("deep", two_frames(520))
    with deep.load("deep", two_frames(400)) as prog, deep.linked({"deep": prog}):
        assert kr_types.call("deep") == 7


def recurring(deep: ModuleType) -> Item:
    """A program that has the module call it again as often as its argument says, and returns how often it was."""
    return [
        stdw(r10, -128, 0),
        ldxdw(r1, r1, 0),
        mov(r0, 0),
        jeq(r1, 0, "out"),
        add(r1, -1),
        deep.kfunc("kr_deep_again"),
        add(r0, 1),
        label("out"),
    ]


def test_program_with_a_private_stack_is_not_entered_twice(kr_types: KrTypes) -> None:
    """STOPS-INFO-006: the nested call is skipped and counted; on the kernel's stack programs do recur."""
    deep = ModuleType("kr_types", "kr_deep")
    with deep.load("deep", recurring(deep)) as prog, deep.linked({"deep": prog}):
        skipped = has("struct_ops_private_stack")
        result = kr_types.call("deep", 3)
        assert prog.info().recursion_misses == kr_types.count("recursions") == (1 if skipped else 0)
        if not skipped:
            assert result == 3


@pytest.mark.known_issue(
    "STRUCT-OPS-SKIPPED-RETURN", reason="a skipped program's result is what was on the stack"
)
@pytest.mark.requires("struct_ops_private_stack")
def test_program_that_was_not_entered_returns_nothing(kr_types: KrTypes) -> None:
    """STOPS-INFO-006: the nested call's result is 0, to which the outer one adds 1."""
    deep = ModuleType("kr_types", "kr_deep")
    with deep.load("deep", recurring(deep)) as prog, deep.linked({"deep": prog}):
        assert kr_types.call("deep", 3) == 1


def pages_of_trampolines(type: str) -> set[int]:
    """The pages in which the type's trampolines are, by their symbols."""
    return {each.address >> 12 for each in symbols.matching(rf"bpf__{type}_\w+")}
