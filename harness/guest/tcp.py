# SPDX-License-Identifier: MIT
"""Live TCP connections across two network namespaces, with a chosen congestion control."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from harness.errors import KernrigError
from harness.guest.waiting import WaitTimeout, slow_factor

if TYPE_CHECKING:
    from harness.guest.net import VethPair
    from harness.guest.netns import NetNamespace

CA_NAME_MAX = 16
LINGER_ABORT = struct.pack("=ii", 1, 0)

# include/net/tcp_states.h
STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)

# struct tcp_info of include/uapi/linux/tcp.h, up to tcpi_bytes_retrans (4.19).
TCP_INFO = struct.Struct("=8B24I4Q6I4Q2I2Q")

# A prime length: a stream that lost or repeated a power of two of bytes does not look right by accident.
_PERIOD = 4093
_CHUNK = 65536
# Long enough for a chunk that begins anywhere in the first period.
_PATTERN = bytes((7 * i * i + i + (i >> 3)) & 0xFF for i in range(_PERIOD)) * (_CHUNK // _PERIOD + 2)


@dataclass(frozen=True)
class TcpInfo:
    """A part of TCP_INFO (net/ipv4/tcp.c:tcp_get_info); times are microseconds, windows count segments."""

    state: str
    ca_state: int
    retransmits: int
    snd_mss: int
    unacked: int
    lost: int
    retrans: int
    rtt_us: int
    rttvar_us: int
    snd_ssthresh: int
    snd_cwnd: int
    total_retrans: int
    pacing_rate: int
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    min_rtt_us: int
    delivered: int
    delivered_ce: int
    bytes_sent: int
    bytes_retrans: int


@dataclass(frozen=True)
class Transfer:
    """What one `TcpPair.transfer` moved and verified, per direction and in all."""

    bytes_forth: int
    bytes_back: int
    seconds: float

    @property
    def bytes_moved(self) -> int:
        """Both directions together."""
        return self.bytes_forth + self.bytes_back


def parse_tcp_info(raw: bytes) -> TcpInfo:
    """The fields of a `struct tcp_info`; what an older kernel doesn't fill in is 0."""
    f = TCP_INFO.unpack(raw[: TCP_INFO.size].ljust(TCP_INFO.size, b"\0"))
    return TcpInfo(
        state=STATES[f[0]] if f[0] < len(STATES) else str(f[0]),
        ca_state=f[1],
        retransmits=f[2],
        snd_mss=f[10],
        unacked=f[12],
        lost=f[14],
        retrans=f[15],
        rtt_us=f[23],
        rttvar_us=f[24],
        snd_ssthresh=f[25],
        snd_cwnd=f[26],
        total_retrans=f[31],
        pacing_rate=f[32],
        bytes_acked=f[34],
        bytes_received=f[35],
        segs_out=f[36],
        segs_in=f[37],
        min_rtt_us=f[39],
        delivered=f[46],
        delivered_ce=f[47],
        bytes_sent=f[48],
        bytes_retrans=f[49],
    )


def info(sock: socket.socket) -> TcpInfo:
    """TCP_INFO of a socket."""
    return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size))


def congestion(sock: socket.socket) -> str:
    """The name of the socket's congestion control."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CA_NAME_MAX)
    return name.partition(b"\0")[0].decode()


def set_congestion(sock: socket.socket, name: str) -> None:
    """Choose the socket's congestion control.

    Raises OSError: ENOENT for an unknown name, EPERM for one that is locked by the route or restricted, EBUSY
    when its module or map is going away (net/ipv4/tcp_cong.c:tcp_set_congestion_control).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def available(ns: NetNamespace) -> list[str]:
    """The registered congestion controls, as net.ipv4.tcp_available_congestion_control lists them."""
    return ns.sysctl("net.ipv4.tcp_available_congestion_control").split()


def abort(sock: socket.socket) -> None:
    """Close with a reset: no FIN handshake, no TIME_WAIT socket; harmless on a closed socket."""
    if sock.fileno() < 0:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ABORT)
    sock.close()


def listening(
    ns: NetNamespace, address: str, port: int = 0, *, congestion: str | None = None
) -> socket.socket:
    """A listening socket in `ns`; port 0 lets the kernel choose.

    Accepted sockets inherit its congestion control. Raises OSError, for the address as for the congestion
    control (see `set_congestion`).
    """
    sock = ns.run(socket.socket, _family(address), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if congestion is not None:
            set_congestion(sock, congestion)
        sock.bind((address, port))
        sock.listen(16)
    except BaseException:
        sock.close()
        raise
    return sock


class TcpPair:
    """Both ends of one established connection, and the listener if it was kept.

    A context manager; it ends with an abortive close of both ends, so that the connection's sockets, and with
    them their hold on a congestion control, are gone when the block is left.
    """

    def __init__(self, client: socket.socket, server: socket.socket, listener: socket.socket | None) -> None:
        self.client = client
        self.server = server
        self.listener = listener

    @property
    def congestion(self) -> str:
        """The client's congestion control."""
        return congestion(self.client)

    @property
    def info(self) -> TcpInfo:
        """The client's TCP_INFO."""
        return info(self.client)

    def transfer(self, nbytes: int, *, timeout: float = 5.0) -> Transfer:
        """Move `nbytes` from client to server and as many back at the same time, checking each byte.

        `timeout` is in native seconds. Raises `WaitTimeout` when the data has not all arrived by then,
        `KernrigError` for data that differs from what was sent, OSError when the connection breaks.
        """
        earlier = [(sock, sock.gettimeout()) for sock in (self.client, self.server)]
        try:
            for sock, _ in earlier:
                sock.setblocking(False)
            return self._transfer(nbytes, timeout * slow_factor())
        finally:
            for sock, had in earlier:
                if sock.fileno() >= 0:
                    sock.settimeout(had)

    def _transfer(self, nbytes: int, seconds: float) -> Transfer:
        start = time.monotonic()
        deadline = start + seconds
        flows = [_Flow(self.client, self.server, nbytes, 0), _Flow(self.server, self.client, nbytes, 1021)]
        poll = select.poll()
        wanted: dict[int, int] = {}
        while not all(flow.done for flow in flows):
            progress = [flow.step() for flow in flows]
            if any(progress):
                continue
            for sock, mask in (
                (self.client, _mask(flows[0], flows[1])),
                (self.server, _mask(flows[1], flows[0])),
            ):
                if wanted.get(sock.fileno()) != mask:
                    wanted[sock.fileno()] = mask
                    poll.register(sock, mask)
            left = deadline - time.monotonic()
            if left <= 0:
                forth, back = (flow.received for flow in flows)
                got = f"of {nbytes} bytes {forth} reached the server, {back} the client"
                raise WaitTimeout(
                    f"TCP transfer not over after {time.monotonic() - start:.3g} s: {got}",
                    last=(info(self.client), info(self.server)),
                    hint=f"client: {info(self.client)}; server: {info(self.server)}",
                )
            poll.poll(left * 1000)
        return Transfer(flows[0].received, flows[1].received, time.monotonic() - start)

    def close_listener(self) -> None:
        """Close the listener; it holds a reference to its congestion control as any socket does."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def close(self) -> None:
        """Abort both ends and close the listener."""
        abort(self.client)
        abort(self.server)
        self.close_listener()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    veth: VethPair,
    *,
    congestion: str | None = None,
    server_congestion: str | None = None,
    port: int = 0,
    keep_listener: bool = False,
    ipv6: bool = False,
    timeout: float = 5.0,
) -> TcpPair:
    """A connection from `veth.a` (client) to `veth.b` (server), established.

    `congestion` is set on the client before it connects, `server_congestion` on the listener; without them
    the namespaces' defaults hold. Raises OSError (see `set_congestion`; ETIMEDOUT, ECONNREFUSED),
    TimeoutError after `timeout` native seconds.
    """
    address = veth.b.address6 if ipv6 else veth.b.address
    if address is None:
        raise KernrigError(
            f"{veth.b.name} has no {'IPv6' if ipv6 else 'IPv4'} address", hint="veth_pair(ipv6=True)"
        )
    listener = listening(veth.ns_b, address, port, congestion=server_congestion)
    client: socket.socket | None = None
    try:
        client = veth.ns_a.run(socket.socket, listener.family, socket.SOCK_STREAM)
        client.settimeout(timeout * slow_factor())
        listener.settimeout(timeout * slow_factor())
        if congestion is not None:
            set_congestion(client, congestion)
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        server.settimeout(timeout * slow_factor())
    except BaseException:
        if client is not None:
            abort(client)
        listener.close()
        raise
    if not keep_listener:
        listener.close()
    return TcpPair(client, server, listener if keep_listener else None)


@contextmanager
def connected(veth: VethPair, *, congestion: str | None = None, port: int = 0) -> Iterator[TcpPair]:
    """`connect`, and move a first byte, so that both ends have seen each other's data."""
    with connect(veth, congestion=congestion, port=port) as pair:
        pair.transfer(1)
        yield pair


class _Flow:
    """One direction of a transfer: what was sent, what arrived; byte number n is a function of n."""

    def __init__(self, source: socket.socket, sink: socket.socket, nbytes: int, phase: int) -> None:
        self.source = source
        self.sink = sink
        self.nbytes = nbytes
        self.phase = phase
        self.sent = 0
        self.received = 0

    @property
    def done(self) -> bool:
        return self.received == self.nbytes

    def expected(self, offset: int, length: int) -> memoryview:
        start = (offset + self.phase) % _PERIOD
        return memoryview(_PATTERN)[start : start + length]

    def step(self) -> int:
        moved = 0
        if self.sent < self.nbytes:
            try:
                n = self.source.send(self.expected(self.sent, min(_CHUNK, self.nbytes - self.sent)))
                self.sent += n
                moved += n
            except BlockingIOError:
                pass
        if self.received < self.nbytes:
            try:
                data = self.sink.recv(min(_CHUNK, self.nbytes - self.received))
            except BlockingIOError:
                return moved
            if not data:
                raise OSError(
                    errno.ECONNRESET, f"the connection ended after {self.received} of {self.nbytes} bytes"
                )
            if data != self.expected(self.received, len(data)):
                raise KernrigError(
                    f"TCP delivered other bytes than were sent, between {self.received} and "
                    f"{self.received + len(data)} of {self.nbytes}"
                )
            self.received += len(data)
            moved += len(data)
        return moved


def _mask(outgoing: _Flow, incoming: _Flow) -> int:
    return (select.POLLOUT if outgoing.sent < outgoing.nbytes else 0) | (
        0 if incoming.done else select.POLLIN
    )


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
