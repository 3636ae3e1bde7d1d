# SPDX-License-Identifier: MIT
"""Many connections outlive a registration, whatever ends it, and let go of the map one by one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.probe import require
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, seen, seen_by_id
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps
from scenarios.struct_ops.connections import DEFAULT, NON_RESTRICTED, assert_unknown, wait_until_freed

pytestmark = [pytest.mark.requires("struct_ops")]

CONNECTIONS = 5
BYTES = 32 * 1024
PIN = Path("/sys/fs/bpf/kernrig-struct-ops-link")


@dataclass(frozen=True)
class Registration:
    """A registered map, and what ends its registration."""

    ops: StructOps
    end: Callable[[], None]


Way = Callable[[NewOps, Algorithm], AbstractContextManager[Registration]]


@contextmanager
def plain(new_ops: NewOps, algorithm: Algorithm) -> Iterator[Registration]:
    """A plain map that is deleted."""
    ops = new_ops()
    ops.update(algorithm.members())
    yield Registration(ops, ops.delete)


@contextmanager
def linked(new_ops: NewOps, algorithm: Algorithm) -> Iterator[tuple[StructOps, Link]]:
    require("struct_ops_link")
    ops = new_ops(flags=uapi.BPF_F_LINK)
    ops.update(algorithm.members())
    with ops.link() as link:
        yield ops, link


@contextmanager
def closed(new_ops: NewOps, algorithm: Algorithm) -> Iterator[Registration]:
    """A link whose only descriptor is closed."""
    with linked(new_ops, algorithm) as (ops, link):
        yield Registration(ops, link.close)


@contextmanager
def detached(new_ops: NewOps, algorithm: Algorithm) -> Iterator[Registration]:
    """A link that is detached and stays open."""
    require("struct_ops_link_detach")
    with linked(new_ops, algorithm) as (ops, link):
        yield Registration(ops, link.detach)


@contextmanager
def unpinned(new_ops: NewOps, algorithm: Algorithm) -> Iterator[Registration]:
    """A link that nothing but a pin holds."""
    with linked(new_ops, algorithm) as (ops, link):
        link.pin(PIN)
        try:
            link.close()
            yield Registration(ops, PIN.unlink)
        finally:
            PIN.unlink(missing_ok=True)


def of_a_process(fatal: int) -> Way:
    """A link that nothing but a process holds, which ends by the signal `fatal`, or by itself (0)."""

    @contextmanager
    def of_this_process(new_ops: NewOps, algorithm: Algorithm) -> Iterator[Registration]:
        with linked(new_ops, algorithm) as (ops, link):
            staying, leaving = os.pipe()
            holder = os.fork()
            if holder == 0:
                os.close(leaving)
                os.read(staying, 1)
                os._exit(0)
            os.close(staying)
            ends = [leaving]

            def end() -> None:
                if fatal:
                    os.kill(holder, fatal)
                os.close(ends.pop())
                os.waitpid(holder, 0)

            try:
                link.close()
                yield Registration(ops, end)
            finally:
                if ends:
                    end()

    return of_this_process


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(plain, id="deleted"),
        pytest.param(closed, id="link closed"),
        pytest.param(detached, id="link detached"),
        pytest.param(unpinned, id="link unpinned"),
        pytest.param(of_a_process(0), id="link of a process that exits"),
        pytest.param(of_a_process(signal.SIGKILL), id="link of a process that is killed"),
    ],
)
def test_connections_outlive_the_registration_and_free_the_map_when_the_last_one_closes(
    way: Way, veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-012, -014, -019, STOPS-CMD-004, STOPS-STATE-015, -016, STOPS-LINK-005, -020, -022, STOPS-LAW-002, -003,
    -006, -007, STOPS-SEED-001, MODLIFE-REF-020.
    """
    old, new = new_idle(), new_idle()
    with ExitStack() as connections, way(new_ops, old) as registration:
        ops = registration.ops
        map_id, prog_ids = ops.map.id, set(ops.prog_ids().values())
        pairs = [connections.enter_context(tcp.connect(veth, congestion=NAME)) for _ in range(CONNECTIONS)]
        assert ops.refcnt() == 1 + CONNECTIONS

        registration.end()

        wait_until(
            lambda: ops.refcnt() == CONNECTIONS, timeout=2, what="the registration to let go of the map"
        )
        assert NAME not in tcp.available(veth.ns_a)
        assert_unknown(NAME)
        assert old.count("init") == CONNECTIONS

        successor = new_ops()
        successor.update(new.members())
        with tcp.connect(veth, congestion=NAME) as recruit:
            recruit.transfer(BYTES)
            assert seen(successor) == inuse(2)
            calls_of_new = new.count("cong_avoid")
            for pair in pairs:
                before = old.count("cong_avoid")
                pair.transfer(BYTES)
                assert old.count("cong_avoid") > before
            assert new.count("cong_avoid") == calls_of_new > 0
        successor.delete()

        ops.close()
        old.close_programs()
        for left in reversed(range(CONNECTIONS)):
            assert seen_by_id(map_id).refcnt == left + 1
            pairs[left].close()
    wait_until_freed(map_id, prog_ids)
    assert new.count("init") == 1


def test_connection_that_only_waits_for_late_segments_holds_no_map(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-012: a closed connection in TIME_WAIT has no congestion control any more."""
    ops.update(idle.members())
    with tcp.connect(veth, congestion=NAME) as pair:
        pair.transfer(1)
        assert seen(ops) == inuse(2)

        pair.client.close()
        assert pair.server.recv(1) == b""
        pair.server.close()

        wait_until(lambda: seen(ops) == inuse(1), timeout=2, what="the connection to let go of the map")
        assert "06" in states(veth.ns_a)


def states(ns: NetNamespace) -> set[str]:
    """The TCP states of the namespace's sockets as net/ipv4/tcp_ipv4.c:tcp4_seq_show writes them; 06 is TIME_WAIT."""
    with ns.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return {line.split()[3] for line in lines}


def test_removed_namespace_lets_go_of_its_default_and_the_map_goes_with_it(
    idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-016, -017, STOPS-LAW-003, -007: an unregistered algorithm that only a namespace held."""
    ops.update({**idle.members(), "flags": NON_RESTRICTED})
    map_id, prog_ids = ops.map.id, set(ops.prog_ids().values())
    with NetNamespace.create() as namespace:
        namespace.set_sysctl(DEFAULT, NAME)
        assert seen(ops) == inuse(2)
        ops.delete()
        ops.close()
        idle.close_programs()
        assert seen_by_id(map_id).refcnt == 1
    wait_until_freed(map_id, prog_ids)
