# SPDX-License-Identifier: MIT
"""Whole congestion controls of programs at work: what loss and marks do to the window, told by their own counters.

Nothing here looks at a clock: how fast a machine under emulation is says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.guest import qdisc, tcp, tools
from harness.guest.bpf import btf
from harness.guest.bpf.asm import Code, asm, exit_, ldxdw, mov, r0, r1, r2, stxdw, stxw
from harness.guest.bpf.object import Object
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm, inuse, seen
from scenarios.struct_ops.kernel_algorithms import NEEDS_ECN
from scenarios.struct_ops.wire import losing, marking

pytestmark = [pytest.mark.requires("struct_ops")]

DELAY_US = 3000
SEGMENT = 1448
SK_PACING_NEEDED = 1  # include/net/sock.h
DCTCP = ("init", "in_ack_event", "cwnd_event", "ssthresh", "cong_avoid", "undo_cwnd")
DCTCP_WORDS = (
    "init",
    "ssthresh",
    "undo_cwnd",
    "given_away",
    "rounds",
    "alpha",
    "marked",
    "unmarked",
    "early_acks",
)
CUBIC = ("init", "ssthresh", "cong_avoid", "undo_cwnd", "set_state", "pkts_acked")
CUBIC_WORDS = (
    "init",
    "ssthresh",
    "undo_cwnd",
    "set_state",
    "pkts_acked",
    "before_loss",
    "after_loss",
    "slow_start",
    "avoidance",
    "min_rtt_us",
)


@pytest.fixture(autouse=True)
def patience(veth: VethPair) -> None:
    """Clients send again what was lost, and not what a machine that stood still for a while did not acknowledge."""
    veth.ns_a.set_sysctl("net.ipv4.tcp_early_retrans", 0)
    with veth.ns_a.entered():
        tools.run("ip", "route", "add", f"{veth.b.address}/32", "dev", veth.a.name, "rto_min", "10s")


@contextmanager
def loaded(name: str, members: tuple[str, ...], words: tuple[str, ...]) -> Iterator[Algorithm]:
    with Object.open(Path(__file__).with_name(f"{name}.bpf.o")) as compiled:
        compiled.load()
        algorithm = Algorithm({each: compiled.prog(each) for each in members}, compiled.map(".bss"), words)
    try:
        yield algorithm
    finally:
        algorithm.close()


@pytest.fixture
def dctcp() -> Iterator[Algorithm]:
    with loaded("dctcp", DCTCP, DCTCP_WORDS) as algorithm:
        yield algorithm


@pytest.fixture
def cubic() -> Iterator[Algorithm]:
    with loaded("cubic", CUBIC, CUBIC_WORDS) as algorithm:
        yield algorithm


def upload(pair: tcp.TcpPair, segments: int) -> None:
    """Send so many full segments from client to server, and see them arrive as they were sent."""
    data = bytes(range(256)) * (segments * SEGMENT // 256 + 1)

    def receive() -> bytes:
        got = bytearray()
        while len(got) < len(data) and (part := pair.server.recv(1 << 16)):
            got += part
        return bytes(got)

    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        pair.client.sendall(data)
        assert received.result() == data


def alpha_after(rounds: int) -> int:
    """What is left of alpha after so many rounds without a mark."""
    alpha = 1024
    for _ in range(rounds):
        alpha -= alpha >> 4
    return alpha


@contextmanager
def ecn_connection(veth: VethPair, ops: StructOps, dctcp: Algorithm) -> Iterator[tcp.TcpPair]:
    """Both ends run the control, and the way back takes a while, so that windows are what limits the sender."""
    ops.update({**dctcp.members(), "flags": NEEDS_ECN})
    for namespace in (veth.ns_a, veth.ns_b):
        namespace.set_sysctl("net.ipv4.tcp_ecn", 1)
    qdisc.add_netem(veth.b, delay_us=DELAY_US)
    with tcp.connect(veth, congestion=NAME, server_congestion=NAME) as pair:
        assert seen(ops) == inuse(3)
        yield pair
    assert (dctcp.count("init"), dctcp.count("given_away")) == (2, 0)


def test_dctcp_forgets_its_caution_round_by_round_while_nothing_is_marked(
    veth: VethPair, dctcp: Algorithm, ops: StructOps
) -> None:
    """STOPS-UPD-017, STOPS-TCP-011, STOPS-PROG-030: no mark, no loss, no reduction."""
    with ecn_connection(veth, ops, dctcp) as pair:
        upload(pair, 100)
        info = pair.info
    assert (info.delivered_ce, info.total_retrans) == (0, 0)
    assert (dctcp.count("marked"), dctcp.count("ssthresh")) == (0, 0)
    assert dctcp.count("unmarked") > 0
    assert dctcp.count("alpha") == alpha_after(dctcp.count("rounds")) < 1024
    assert info.snd_cwnd >= 50


def test_dctcp_halves_its_window_while_everything_is_marked(
    veth: VethPair, dctcp: Algorithm, ops: StructOps
) -> None:
    """STOPS-PROG-030, STOPS-UPD-017: the receiver's program reflects each mark, the sender's believes them."""
    with marking(veth, every=1), ecn_connection(veth, ops, dctcp) as pair:
        upload(pair, 60)
        info = pair.info
    assert dctcp.count("marked") > 0 == dctcp.count("unmarked")
    assert dctcp.count("ssthresh") >= 3
    assert dctcp.count("alpha") > 1024 * 3 // 4
    assert info.delivered_ce > info.delivered * 3 // 4
    assert max(info.snd_cwnd, info.snd_ssthresh) <= 5
    assert dctcp.count("rounds") >= 60 // 5


def test_dctcp_reduces_its_window_by_the_share_of_marks(
    veth: VethPair, dctcp: Algorithm, ops: StructOps
) -> None:
    """STOPS-PROG-030, STOPS-UPD-017: some rounds with a mark in eight packets."""
    with marking(veth, every=8), ecn_connection(veth, ops, dctcp) as pair:
        upload(pair, 240)
        info = pair.info
    assert dctcp.count("unmarked") > 3 * dctcp.count("marked") > 0
    assert dctcp.count("early_acks") > 0
    assert 1024 // 16 < dctcp.count("alpha") < 1024 // 2
    assert 0 < info.delivered_ce < info.delivered // 2
    assert info.total_retrans == 0


def test_dctcp_leaves_connections_without_ecn_to_another_algorithm(
    veth: VethPair, dctcp: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-020, STOPS-LAW-003: init switches its own socket, which holds the map no longer."""
    ops.update({**dctcp.members(), "flags": NEEDS_ECN})
    with tcp.connect(veth, congestion=NAME) as pair:
        assert pair.congestion == "reno"
        assert (dctcp.count("init"), dctcp.count("given_away")) == (1, 1)
        assert seen(ops) == inuse(1)
        upload(pair, 50)
    assert (dctcp.count("rounds"), dctcp.count("unmarked")) == (0, 0)


def pacing(pace: int) -> dict[str, Code]:
    """Programs that ask for pacing and say how fast: whole bytes a second, from the first acknowledgement on."""
    sock = "inet_conn.icsk_inet.sk.sk_pacing_"
    rate, status = (btf.vmlinux().offset("tcp_sock", sock + field) for field in ("rate", "status"))
    return {
        "init": asm(ldxdw(r1, r1), mov(r2, SK_PACING_NEEDED), stxw(r1, status, r2), mov(r0, 0), exit_()),
        "cong_control": asm(ldxdw(r1, r1), mov(r2, pace), stxdw(r1, rate, r2), mov(r0, 0), exit_()),
    }


def test_socket_sends_at_the_pace_that_a_program_wrote(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-PROG-030, STOPS-UPD-017: the kernel tells that rate, and works out no other."""
    pace = 123_456_789
    with ExitStack() as stack:
        progs = {
            name: stack.enter_context(load_struct_ops_prog(TYPE, name, code))
            for name, code in pacing(pace).items()
        }
        ops.update({**idle.members(), **progs})
    with tcp.connect(veth, congestion=NAME) as pair, tcp.connect(veth, congestion="reno") as other:
        for each in (pair, other):
            each.transfer(64 * 1024)
        assert pair.info.pacing_rate == pace != other.info.pacing_rate


def test_cubic_gives_up_three_tenths_of_its_window_for_a_loss(
    veth: VethPair, cubic: Algorithm, ops: StructOps
) -> None:
    """STOPS-UPD-017, STOPS-PROG-030, -034: and learns the delay of the way from the acknowledgements."""
    ops.update(cubic.members())
    qdisc.add_netem(veth.b, delay_us=DELAY_US)
    with losing(veth, every=64) as wire, tcp.connect(veth, congestion=NAME) as pair:
        upload(pair, 30)
        assert (cubic.count("ssthresh"), cubic.count("avoidance")) == (0, 0)
        assert cubic.count("slow_start") > 0

        upload(pair, 170)

        info = pair.info
        lost = wire.hit
        assert pair.congestion == NAME
    before, after = cubic.count("before_loss"), cubic.count("after_loss")
    assert 1 <= cubic.count("ssthresh") <= lost <= info.total_retrans
    assert after == max(before * 7 // 10, 2)
    assert info.snd_ssthresh == after or cubic.count("undo_cwnd") > 0
    assert cubic.count("avoidance") > 0
    assert cubic.count("set_state") >= 2
    assert cubic.count("min_rtt_us") >= DELAY_US
