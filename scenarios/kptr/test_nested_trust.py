# SPDX-License-Identifier: MIT
"""What a program reads out of the kernel's objects at a tracepoint, and whether it may hand that on.

An event shows objects that can be relied on; their members are as good where the kernel says so, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    ld_map_fd,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
)
from harness.guest.bpf.btf_builder import BTF_INT_SIGNED, BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.kptr.bench import kfunc


def load(event: str, argument: Item, *items: Item) -> Prog:
    """Load a program for a tracepoint of the kernel, which does this with an argument in r2. Raises BpfError."""
    return Prog.load(
        asm(argument, *items, mov(r0, 0), exit_()),
        uapi.BPF_PROG_TYPE_TRACING,
        expected_attach_type=uapi.BPF_TRACE_RAW_TP,
        attach_btf_id=btf.vmlinux().id(f"btf_trace_{event}", uapi.BTF_KIND_TYPEDEF),
    )


def walk(number: int, structure: str, *members: str) -> Item:
    """r2 = an argument of the event, or what stands in its member, or in that one's, which is alike."""
    return [
        ldxdw(r2, r1, 8 * number),
        *(ldxdw(r2, r2, btf.vmlinux().offset(structure, member)) for member in members),
    ]


def knows_trust() -> bool:
    """Whether the verifier tells what can be relied on from what cannot (6.2): it names the event's task so."""
    try:
        load("task_newtask", walk(0, "task_struct"), mov(r1, r2), call(uapi.BPF_FUNC_this_cpu_ptr)).close()
    except BpfError as error:
        return "R1 type=trusted_ptr_" in error.log
    return False


@pytest.fixture
def of_sockets() -> Iterator[Map]:
    """A storage map of sockets."""
    if not knows_trust():
        pytest.skip("this kernel lacks trusted pointers")
    b = BtfBuilder()
    key, value = b.integer("int", 4, encoding=BTF_INT_SIGNED), b.integer("long", 8)
    with (
        b.load() as types,
        Map.create(
            uapi.BPF_MAP_TYPE_SK_STORAGE,
            4,
            8,
            0,
            flags=uapi.BPF_F_NO_PREALLOC,
            btf=types,
            btf_key_type_id=key,
            btf_value_type_id=value,
        ) as map,
    ):
        yield map


def test_packet_vouches_for_its_socket_and_for_no_packet(of_sockets: Map) -> None:
    """KPTR-ACC-003, -019, upstream prog_tests/nested_trust.c: test_skb_field, test_invalid_skb_field.

    `next` stands in a union, whose members are nobody's, nor is what is read out of them
    (kernel/bpf/btf.c:btf_struct_walk); `sk` is on the kernel's list (kernel/bpf/verifier.c:type_is_rcu_or_null).
    """
    get: Item = [
        ld_map_fd(r1, of_sockets),
        mov(r3, 0),
        mov(r4, 0),
        call(uapi.BPF_FUNC_sk_storage_get),
    ]
    load("tcp_probe", walk(0, "sock"), get).close()
    load("tcp_probe", walk(1, "sk_buff", "sk"), get).close()
    with refused(EACCES, log="R2 is of type sk_buff but sock_common is expected"):
        load("tcp_probe", walk(1, "sk_buff"), get).close()
    for members in (["next"], ["next", "sk"]):
        with refused(EACCES, log="R2 type=untrusted_ptr_ expected=ptr_, trusted_ptr_, rcu_ptr_"):
            load("tcp_probe", walk(1, "sk_buff", *members), get).close()


@pytest.mark.requires("kfunc:bpf_cpumask_test_cpu")
def test_task_vouches_for_the_cpus_that_it_may_run_on() -> None:
    """KPTR-MASK-001, KPTR-ACC-003, upstream prog_tests/nested_trust.c: test_read_cpumask, test_nested_offset,
    test_invalid_nested_user_cpus: for those in use, not for those that user space asked for.
    """
    ask: Item = [mov(r1, 0), kfunc("bpf_cpumask_test_cpu")]
    load("task_newtask", walk(0, "task_struct", "cpus_ptr"), ask).close()
    inside = add(r2, btf.vmlinux().offset("task_struct", "cpus_mask"))
    load("task_newtask", walk(0, "task_struct"), inside, ask).close()
    with refused(EINVAL, log="R2 must be"):
        load("task_newtask", walk(0, "task_struct", "user_cpus_ptr"), ask).close()
