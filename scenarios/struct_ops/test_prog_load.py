# SPDX-License-Identifier: MIT
"""What the kernel checks before it takes a program for a member of a type, and in which order."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import Code, asm, exit_, ldxdw, mov, r0, r1, r2
from harness.guest.bpf.btf import BtfObject, records
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog, user_btf
from harness.guest.bpf.syscall import ENOTSUPP, refused
from harness.guest.privilege import CAP_BPF, CAP_PERFMON, with_only
from scenarios.struct_ops.algorithms import TYPE, Algorithm
from scenarios.struct_ops.mistakes import check, mistake

pytestmark = [pytest.mark.requires("struct_ops")]

CLOSED = 999
BTF_MAX_TYPE = 0xFFFFF  # include/uapi/linux/btf.h
RIGHT = asm(mov(r0, 0), exit_())
WRONG = asm(mov(r0, r2), exit_())


@dataclass(frozen=True)
class Desk:
    """Takes requests to load a program for member `init` of the congestion controls."""

    type_id: int
    init: int

    def send(
        self,
        *,
        held: tuple[int, ...] | None = None,
        code: Code = RIGHT,
        license: str = "GPL",
        type_id: int = -1,
        member: int = -1,
        btf_fd: int = 0,
        flags: int = 0,
    ) -> Prog:
        """Load a program by one who has the capabilities `held` (None: all)."""

        def load() -> Prog:
            return Prog.load(
                code,
                uapi.BPF_PROG_TYPE_STRUCT_OPS,
                license=license,
                attach_btf_id=self.type_id if type_id < 0 else type_id,
                expected_attach_type=self.init if member < 0 else member,
                attach_btf_obj_fd=btf_fd,
                flags=flags,
            )

        return load() if held is None else with_only(held, load)


@pytest.fixture
def desk() -> Desk:
    type_id = btf.vmlinux().struct(TYPE)
    return Desk(type_id, btf.vmlinux().member(type_id, "init").index)


def index(name: str, type_name: str = TYPE) -> int:
    """The number of a member."""
    return btf.vmlinux().member(btf.vmlinux().struct(type_name), name).index


def test_request_for_a_program_is_checked_in_order(desk: Desk, idle: Algorithm) -> None:
    """STOPS-PROG-001 to -005, -007 to -011: no refusal leaves a program."""
    kernel = btf.vmlinux()
    members = kernel.members(desk.type_id)
    with user_btf() as types, BtfObject.from_id(kernel.object.id) as kernels:
        check(
            desk.send,
            [
                mistake("STOPS-PROG-001", errno.EPERM, held=()),
                mistake("STOPS-PROG-001", errno.EPERM, held=(CAP_BPF,)),
                mistake("STOPS-PROG-001", errno.EPERM, held=(CAP_PERFMON,)),
                mistake("STOPS-PROG-002", errno.EINVAL, btf_fd=CLOSED),
                mistake("STOPS-PROG-002", errno.EINVAL, btf_fd=idle.memory.fd),
                mistake("STOPS-PROG-002", ENOTSUPP, btf_fd=types.fd),
                mistake("STOPS-PROG-002", errno.EINVAL, btf_fd=kernels.fd, type_id=0),
                mistake("STOPS-PROG-002", errno.EINVAL, type_id=BTF_MAX_TYPE + 1),
                mistake("STOPS-PROG-003", errno.EINVAL, btf_fd=idle.progs["init"].fd),
                mistake("STOPS-PROG-004", errno.EINVAL, log="GPL compatible", license="BSD"),
                mistake("STOPS-PROG-005", ENOTSUPP, type_id=0),
                mistake(
                    "STOPS-PROG-007", ENOTSUPP, log="not a supported struct", type_id=kernel.struct("sk_buff")
                ),
                mistake("STOPS-PROG-008", errno.EINVAL, log="invalid member idx", member=len(members)),
                mistake("STOPS-PROG-008", errno.EINVAL, log="invalid member idx", member=(1 << 32) - 1),
                mistake("STOPS-PROG-009", errno.EINVAL, log="invalid member name", member=index("name")),
                mistake("STOPS-PROG-009", errno.EINVAL, log="invalid member owner", member=index("owner")),
                mistake(
                    "STOPS-PROG-010", ENOTSUPP, log="unsupported member get_info", member=index("get_info")
                ),
                mistake("the program itself", errno.EACCES, log="R2 !read_ok", code=WRONG),
            ],
            lambda: list(Prog.ids()),
        )
        with desk.send(held=(CAP_BPF, CAP_PERFMON)) as plain, desk.send(btf_fd=kernels.fd) as by_descriptor:
            assert plain.info().type == by_descriptor.info().type == uapi.BPF_PROG_TYPE_STRUCT_OPS


@pytest.mark.parametrize("member", ["test_1", "test_2", "test_sleepable"])
@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops")
def test_type_decides_which_member_may_sleep(member: str) -> None:
    """STOPS-PROG-011, -014: the dummy type has one such member since there are any; before, no member had."""
    dummy = btf.vmlinux().struct("bpf_dummy_ops")
    if member not in {each.name for each in btf.vmlinux().members(dummy)}:
        pytest.skip(f"the dummy type has no {member}")
    if member == "test_sleepable":
        load_struct_ops_prog("bpf_dummy_ops", member, RIGHT, flags=uapi.BPF_F_SLEEPABLE).close()
    else:
        with refused(errno.EINVAL, log="unsupported member|can be sleepable"):
            load_struct_ops_prog("bpf_dummy_ops", member, RIGHT, flags=uapi.BPF_F_SLEEPABLE)
    load_struct_ops_prog("bpf_dummy_ops", member, RIGHT).close()


def test_program_sees_as_many_arguments_as_its_member_has() -> None:
    """STOPS-PROG-033, -034: of cong_control that is four since 6.10, two before."""
    kernel = btf.vmlinux()
    with StructOps.create(TYPE) as ops:
        for name in ops.functions:
            if name == "get_info":
                continue
            proto = kernel.strip(kernel.strip(ops.members[name].type).type)
            count = len(records(proto, 2))
            for number in range(count):
                load_struct_ops_prog(TYPE, name, reading(number)).close()
            with refused(errno.EACCES, log="doesn't have .*-th argument"):
                load_struct_ops_prog(TYPE, name, reading(count))


def reading(argument: int) -> Code:
    """A program that loads one of its arguments."""
    return asm(ldxdw(r1, r1, 8 * argument), mov(r0, 0), exit_())


def test_program_is_for_one_member_of_one_type(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-PROG-015, STOPS-UPD-012: neither a member with the same arguments nor the same number in another type
    will do; and a member takes a program that another map has already."""
    with load_struct_ops_prog("bpf_dummy_ops", "test_1", RIGHT) as other_type:
        assert other_type.info().attach_btf_id != idle.progs["ssthresh"].info().attach_btf_id
        for member, prog in (
            ("ssthresh", idle.progs["undo_cwnd"]),
            ("undo_cwnd", idle.progs["ssthresh"]),
            ("ssthresh", other_type),
        ):
            with refused(errno.EINVAL):
                ops.update({**idle.members(), member: prog})
    ops.update(idle.members())
