# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from harness.errors import KernrigError
from harness.guest import tcp
from harness.guest.waiting import WaitTimeout


@pytest.fixture
def pair() -> Iterator[tcp.TcpPair]:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    with tcp.TcpPair(client, server, listener) as made:
        yield made


@pytest.mark.parametrize("nbytes", [0, 1, 4093, 1_000_000])
def test_a_transfer_moves_all_bytes_both_ways(pair: tcp.TcpPair, nbytes: int) -> None:
    moved = pair.transfer(nbytes)
    assert (moved.bytes_forth, moved.bytes_back, moved.bytes_moved) == (nbytes, nbytes, 2 * nbytes)
    assert moved.seconds >= 0


def test_a_second_transfer_goes_on_over_the_same_connection(pair: tcp.TcpPair) -> None:
    pair.transfer(1000)
    pair.transfer(1000)
    assert pair.info.bytes_received == 2000


@pytest.mark.parametrize("earlier", [0, 4046, 4092])
def test_as_much_as_one_read_can_bring_is_known_wherever_it_begins(earlier: int) -> None:
    source, sink = socket.socketpair()
    with source, sink:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        flow = tcp._Flow(source, sink, earlier + (1 << 16), 0)
        source.sendall(bytes(flow.expected(0, earlier)) + bytes(flow.expected(earlier, 1 << 16)))
        flow.sent = flow.nbytes
        flow.received = len(sink.recv(earlier, socket.MSG_WAITALL)) if earlier else 0
        sink.setblocking(False)
        while not flow.done:
            assert flow.step() > 0


def test_a_byte_too_many_on_the_wire_is_noticed(pair: tcp.TcpPair) -> None:
    pair.client.send(b"x")
    with pytest.raises(KernrigError, match="other bytes than were sent"):
        pair.transfer(5000)


def test_a_connection_that_ends_is_an_error(pair: tcp.TcpPair) -> None:
    tcp.abort(pair.server)
    with pytest.raises(OSError, match=r"connection|Connection|descriptor"):
        pair.transfer(5000)


def test_a_transfer_that_stalls_tells_how_far_it_came(pair: tcp.TcpPair) -> None:
    assert pair.listener
    stranger = socket.create_connection(pair.listener.getsockname())
    with stranger, tcp.TcpPair(pair.client, stranger, None) as mismatched:
        with pytest.raises(WaitTimeout, match="of 5000 bytes 0 reached the server, 0 the client"):
            mismatched.transfer(5000, timeout=0.05)
        assert mismatched.client.gettimeout() is None


def test_after_close_nothing_is_left_in_time_wait(pair: tcp.TcpPair) -> None:
    port = pair.client.getsockname()[1]
    pair.close()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_closing_twice_is_harmless(pair: tcp.TcpPair) -> None:
    pair.close()
    pair.close()
    assert pair.listener is None


def test_the_congestion_control_can_be_read_and_set(pair: tcp.TcpPair) -> None:
    tcp.set_congestion(pair.client, "reno")
    assert pair.congestion == "reno"
    with pytest.raises(OSError, match="No such file") as caught:
        tcp.set_congestion(pair.client, "no_such_algo")
    assert caught.value.errno == errno.ENOENT


def test_tcp_info_knows_a_living_connection(pair: tcp.TcpPair) -> None:
    pair.transfer(100)
    info = pair.info
    assert info.state == "ESTABLISHED"
    assert info.snd_cwnd > 0
    assert (info.bytes_sent, info.bytes_received) == (100, 100)


def test_tcp_info_reads_each_field_at_its_place() -> None:
    fields = list(range(8, 8 + 24 + 4 + 6 + 4 + 2 + 2))
    raw = struct.pack("=8B", 10, *range(1, 8)) + struct.pack("=24I4Q6I4Q2I2Q", *fields)
    info = tcp.parse_tcp_info(raw)
    assert info.state == "LISTEN"
    # offsets of include/uapi/linux/tcp.h, by hand: u32 number 18 after the first 8 bytes is tcpi_snd_cwnd
    assert struct.unpack_from("=I", raw, 8 + 18 * 4) == (info.snd_cwnd,)
    assert struct.unpack_from("=I", raw, 100) == (info.total_retrans,)
    assert struct.unpack_from("=Q", raw, 120) == (info.bytes_acked,)
    assert struct.unpack_from("=I", raw, 148) == (info.min_rtt_us,)
    assert struct.unpack_from("=I", raw, 192) == (info.delivered,)
    assert struct.unpack_from("=Q", raw, 208) == (info.bytes_retrans,)


def test_an_older_kernels_shorter_tcp_info_is_accepted() -> None:
    assert tcp.parse_tcp_info(b"\x01" + bytes(103)) == tcp.parse_tcp_info(b"\x01" + bytes(223))
