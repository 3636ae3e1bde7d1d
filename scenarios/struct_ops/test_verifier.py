# SPDX-License-Identifier: MIT
"""What the verifier lets the programs of a congestion control do to their socket."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf import btf
from harness.guest.bpf.asm import Code, Store, asm, exit_, ldxdw, mov, r0, r1, r2, stxb, stxdw, stxw
from harness.guest.bpf.struct_ops import load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from scenarios.struct_ops.algorithms import TYPE, switching_to

pytestmark = [pytest.mark.requires("struct_ops")]

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


def test_every_member_but_release_may_set_socket_options() -> None:
    """STOPS-PROG-031: release may be called with the socket's end already under way."""
    load_struct_ops_prog(TYPE, "init", switching_to("reno")).close()
    with refused(errno.EINVAL, log="setsockopt#49"):
        load_struct_ops_prog(TYPE, "release", switching_to("reno"))
