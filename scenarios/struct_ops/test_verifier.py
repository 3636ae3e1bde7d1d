# SPDX-License-Identifier: MIT
"""What the verifier lets the programs of a congestion control do to their socket."""

from __future__ import annotations

import errno
import socket

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Store,
    add,
    asm,
    call,
    exit_,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r10,
    stw,
    stxb,
    stxdw,
    stxw,
)
from harness.guest.bpf.btf import records
from harness.guest.bpf.probe import has
from harness.guest.bpf.struct_ops import load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from scenarios.struct_ops.algorithms import TYPE

pytestmark = [pytest.mark.requires("struct_ops")]

PACING = "inet_conn.icsk_inet.sk.sk_pacing_"
# and get_info, for which there are no programs
DATA_MEMBERS = ("name", "owner", "list", "key", "flags", "get_info")
CA_PRIV = "inet_conn.icsk_ca_priv"
SK_PROT = "inet_conn.icsk_inet.sk.__sk_common.skc_prot"


def storing(store: Store, path: str, *, past: int = 0) -> Code:
    """cong_avoid that stores 1 into a field of its tcp_sock, or `past` bytes behind the field's beginning."""
    offset = btf.vmlinux().offset("tcp_sock", path) + past
    return asm(ldxdw(r1, r1), mov(r2, 1), store(r1, offset, r2), mov(r0, 0), exit_())


@pytest.mark.parametrize(
    ("store", "path", "past"),
    [
        pytest.param(stxw, "snd_cwnd", 0, id="snd_cwnd"),
        pytest.param(stxb, "snd_cwnd", 0, id="first byte of snd_cwnd"),
        pytest.param(stxw, "snd_cwnd_cnt", 0, id="snd_cwnd_cnt"),
        pytest.param(stxw, "snd_ssthresh", 0, id="snd_ssthresh"),
        pytest.param(stxdw, CA_PRIV, 0, id="icsk_ca_priv"),
        pytest.param(stxdw, CA_PRIV, 96, id="end of icsk_ca_priv"),
    ],
)
def test_field_of_congestion_control_may_be_written(store: Store, path: str, past: int) -> None:
    """STOPS-PROG-030, -034: what belongs to the algorithm."""
    load_struct_ops_prog(TYPE, "cong_avoid", storing(store, path, past=past)).close()


@pytest.mark.parametrize(
    ("store", "path", "past", "log"),
    [
        pytest.param(stxw, "snd_nxt", 0, "no write support to tcp_sock", id="snd_nxt"),
        pytest.param(stxw, "snd_una", 0, "no write support to tcp_sock", id="snd_una"),
        pytest.param(stxdw, SK_PROT, 0, "no write support to tcp_sock", id="sk_prot"),
        pytest.param(stxb, "snd_cwnd", 1, "no write support to tcp_sock", id="inside snd_cwnd"),
        pytest.param(stxdw, "snd_cwnd", 0, "beyond the member", id="eight bytes at snd_cwnd"),
        pytest.param(stxdw, CA_PRIV, 100, "beyond the member", id="across the end of icsk_ca_priv"),
    ],
)
def test_other_field_of_the_socket_is_read_only(store: Store, path: str, past: int, log: str) -> None:
    """STOPS-PROG-030."""
    with refused(errno.EACCES, log=log):
        load_struct_ops_prog(TYPE, "cong_avoid", storing(store, path, past=past))


def test_structure_behind_the_socket_is_read_only() -> None:
    """STOPS-PROG-030: following a pointer out of the socket does not make its target writable."""
    protocol = btf.vmlinux().offset("tcp_sock", SK_PROT)
    code = asm(ldxdw(r1, r1), ldxdw(r1, r1, protocol), mov(r2, 1), stxdw(r1, 0, r2), mov(r0, 0), exit_())
    with refused(errno.EACCES, log="only read is supported"):
        load_struct_ops_prog(TYPE, "cong_avoid", code)


def further_fields() -> dict[str, Store]:
    """More fields, as far as this kernel has what came with them, and how to store all of each."""
    fields = {
        "inet_conn.icsk_ack.pending": stxb,
        "ecn_flags": stxb,
        PACING + "rate": stxdw,
        PACING + "status": stxw,
    }
    if has("struct_ops_link"):  # 6.4
        fields["app_limited"] = stxw
    if arguments_of_cong_control() == 4:  # 6.10
        fields["snd_cwnd_stamp"] = stxw
    return fields


def arguments_of_cong_control() -> int:
    """The number of arguments, of which there are more since 6.10."""
    kernel = btf.vmlinux()
    member = kernel.member(kernel.struct(TYPE), "cong_control")
    return len(records(kernel.strip(kernel.strip(member.type).type), 2))


def test_fields_may_be_written_up_to_their_ends() -> None:
    """STOPS-PROG-030: pacing, ECN, delayed acknowledgements, and what newer kernels added."""
    wider = {stxb: stxw, stxw: stxdw}
    for path, store in further_fields().items():
        load_struct_ops_prog(TYPE, "cong_avoid", storing(store, path)).close()
        if store in wider:
            with refused(errno.EACCES, log="beyond the member"):
                load_struct_ops_prog(TYPE, "cong_avoid", storing(wider[store], path))


def calling(helper: int) -> Code:
    """A program that asks for, or sets, the delay of its socket's packets: an option of four bytes."""
    return asm(
        ldxdw(r1, r1),
        mov(r2, socket.IPPROTO_TCP),
        mov(r3, socket.TCP_NODELAY),
        stw(r10, -4, 0),
        mov(r4, r10),
        add(r4, -4),
        mov(r5, 4),
        call(helper),
        mov(r0, 0),
        exit_(),
    )


def test_every_member_but_release_may_use_socket_options() -> None:
    """STOPS-PROG-031: release may be called with the socket's end already under way."""
    kernel = btf.vmlinux()
    members = [each.name for each in kernel.members(kernel.struct(TYPE))]
    functions = [name for name in members if name not in DATA_MEMBERS]
    assert {"ssthresh", "cong_control", "init", "release"} < set(functions)
    for helper, name in ((uapi.BPF_FUNC_setsockopt, "setsockopt"), (uapi.BPF_FUNC_getsockopt, "getsockopt")):
        for member in functions:
            if member == "release":
                with refused(errno.EINVAL, log=f"{name}#{helper}"):
                    load_struct_ops_prog(TYPE, member, calling(helper))
            else:
                load_struct_ops_prog(TYPE, member, calling(helper)).close()
