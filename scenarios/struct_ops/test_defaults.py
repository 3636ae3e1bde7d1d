# SPDX-License-Identifier: MIT
"""Who may choose an algorithm, and which one a socket has that nobody chose one for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from harness.guest import tcp
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.errnos import errno_of
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from harness.guest.privilege import CAP_NET_ADMIN, as_nobody, without
from harness.guest.waiting import wait_until
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, seen, tobefree
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps
from scenarios.struct_ops.connections import ALLOWED, DEFAULT, NON_RESTRICTED, connect_to
from scenarios.struct_ops.pausing import paused_in

pytestmark = [pytest.mark.requires("struct_ops")]

BYTES = 32 * 1024


@pytest.fixture
def initial() -> Iterator[NetNamespace]:
    """The initial network namespace, where the scenario's thread is; it gets back the settings that it had."""
    with NetNamespace.current() as namespace:
        settings = {name: namespace.sysctl(name) for name in (DEFAULT, ALLOWED)}
        yield namespace
        for name, value in settings.items():
            namespace.set_sysctl(name, value)


def refusal(name: str) -> int:
    """The errno by which a fresh socket is refused the algorithm; 0 if it gets it."""
    with socket.socket() as fresh:
        refused = errno_of(lambda: tcp.set_congestion(fresh, name))
        assert refused or tcp.congestion(fresh) == name
        return refused


def test_only_administrators_choose_a_restricted_algorithm(
    initial: NetNamespace, idle: Algorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-011: the flag NON_RESTRICTED, and the capability CAP_NET_ADMIN in its place."""
    new_ops().update(idle.members("kr_closed"))
    new_ops().update({**idle.members("kr_open"), "flags": NON_RESTRICTED})
    assert (refusal("kr_closed"), refusal("kr_open")) == (0, 0)
    assert as_nobody(refusal, "kr_open") == 0
    assert as_nobody(refusal, "kr_closed") == errno.EPERM
    assert without((CAP_NET_ADMIN,), refusal, "kr_closed") == errno.EPERM
    assert as_nobody(refusal, "kr_unknown") == errno.ENOENT
    allowed = initial.sysctl(ALLOWED).split()
    assert "kr_open" in allowed and "kr_closed" not in allowed


def test_administrator_opens_and_closes_an_algorithm_to_everybody(
    initial: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-018: a list with an unknown name changes nothing; who has the algorithm keeps it."""
    ops.update(idle.members())
    reserved = initial.sysctl(ALLOWED)
    with pytest.raises(FileNotFoundError):
        initial.set_sysctl(ALLOWED, f"{NAME} kr_unknown")
    assert initial.sysctl(ALLOWED) == reserved
    assert as_nobody(refusal, NAME) == errno.EPERM

    initial.set_sysctl(ALLOWED, f"{reserved} {NAME}")

    assert set(initial.sysctl(ALLOWED).split()) == {*reserved.split(), NAME}
    assert as_nobody(refusal, NAME) == 0
    with socket.socket() as before:
        tcp.set_congestion(before, NAME)

        initial.set_sysctl(ALLOWED, reserved)

        assert as_nobody(refusal, NAME) == errno.EPERM
        assert without((CAP_NET_ADMIN,), tcp.set_congestion, before, NAME) is None
        assert tcp.congestion(before) == NAME


def test_only_the_initial_namespace_says_who_may_choose(
    netns: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-018: root of another namespace reads the list and cannot write it."""
    ops.update({**idle.members(), "flags": NON_RESTRICTED})
    assert NAME in netns.sysctl(ALLOWED).split()
    with pytest.raises(PermissionError):
        netns.set_sysctl(ALLOWED, "reno")
    assert NAME in netns.sysctl(ALLOWED).split()


def test_default_of_the_initial_namespace_is_open_to_everybody_and_inherited(
    initial: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-016, -017, STOPS-CMD-004, STOPS-LAW-003: also once it is unregistered."""
    ops.update(idle.members())
    before = initial.sysctl(DEFAULT)
    assert as_nobody(refusal, NAME) == errno.EPERM

    initial.set_sysctl(DEFAULT, NAME)

    assert seen(ops) == inuse(2)
    assert as_nobody(refusal, NAME) == 0
    with socket.socket() as unasked, NetNamespace.create() as heir:
        assert tcp.congestion(unasked) == NAME
        assert heir.sysctl(DEFAULT) == NAME
        assert seen(ops) == inuse(4)

        ops.delete()

        assert seen(ops) == tobefree(3)
        with NetNamespace.create() as late_heir, late_heir.run(socket.socket) as other:
            assert (late_heir.sysctl(DEFAULT), tcp.congestion(other)) == (NAME, NAME)
            assert seen(ops) == tobefree(5)
        initial.set_sysctl(DEFAULT, before)
        assert tcp.congestion(unasked) == NAME
        with heir.run(socket.socket) as in_heir:
            assert tcp.congestion(in_heir) == NAME
    wait_until(lambda: seen(ops) == tobefree(0), timeout=5, what="the namespaces' defaults to go with them")
    with pytest.raises(FileNotFoundError):
        initial.set_sysctl(DEFAULT, NAME)


def test_other_namespace_makes_an_open_algorithm_its_default_and_no_unknown_one(
    idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-016, STOPS-CMD-004."""
    ops.update({**idle.members(), "flags": NON_RESTRICTED})
    with NetNamespace.create() as other:
        inherited = other.sysctl(DEFAULT)
        other.set_sysctl(DEFAULT, NAME)
        assert seen(ops) == inuse(2)
        other.set_sysctl(DEFAULT, inherited)
        assert seen(ops) == inuse(1)
        with pytest.raises(FileNotFoundError):
            other.set_sysctl(DEFAULT, "kr_unknown")
        assert other.sysctl(DEFAULT) == inherited


@pytest.mark.known_issue(
    "TCP-REFUSED-DEFAULT-LEAKS",
    reason="the refused namespace keeps a reference",
    spared=("6.12.117", "7.3.4"),
)
def test_refused_default_holds_nothing(netns: NetNamespace, idle: Algorithm, ops: StructOps) -> None:
    """STOPS-TCP-016, STOPS-LAW-003: EPERM for a restricted algorithm, and the map is held by nobody but the name."""
    ops.update(idle.members())
    inherited = netns.sysctl(DEFAULT)
    with pytest.raises(PermissionError):
        netns.set_sysctl(DEFAULT, NAME)
    assert netns.sysctl(DEFAULT) == inherited
    assert seen(ops) == inuse(1)


@pytest.mark.known_issue(
    "TCP-DEFAULT-READ-THRICE", reason="a namespace takes a reference of one algorithm and another"
)
@pytest.mark.vm(cpus=2)
@pytest.mark.requires("fentry:bpf_struct_ops_get")
def test_namespace_made_while_the_default_changes_holds_what_it_has(
    initial: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-016, -017, STOPS-LAW-003: the old or the new one, but one and the same."""
    ops.update(idle.members())
    before = initial.sysctl(DEFAULT)
    initial.set_sysctl(DEFAULT, NAME)
    assert seen(ops) == inuse(2)

    with paused_in("bpf_struct_ops_get", NetNamespace.create) as making:
        initial.set_sysctl(DEFAULT, before)
        assert seen(ops) == inuse(1)

    with making.result() as heir:
        assert seen(ops) == inuse(2 if heir.sysctl(DEFAULT) == NAME else 1)


def test_accepted_socket_has_its_listeners_choice_or_else_the_default_of_the_moment(
    veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-LAW-008, STOPS-TCP-015, -016: the listeners were there before the default changed."""
    chosen, default = new_idle(), new_idle()
    new_ops().update(chosen.members("kr_chosen"))
    new_ops().update({**default.members("kr_default"), "flags": NON_RESTRICTED})
    address = str(veth.b.address)
    inherited = veth.ns_b.sysctl(DEFAULT)
    with (
        tcp.listening(veth.ns_b, address, congestion="kr_chosen") as choosing,
        tcp.listening(veth.ns_b, address) as careless,
    ):
        veth.ns_b.set_sysctl(DEFAULT, "kr_default")
        for listener, name, running in (
            (choosing, "kr_chosen", chosen),
            (careless, "kr_default", default),
        ):
            listeners_own = tcp.congestion(listener)
            with connect_to(listener, veth.ns_a.run(socket.socket)) as pair:
                pair.transfer(BYTES)
                assert tcp.congestion(pair.server) == name
                assert running.count("init") == 1 and running.count("cong_avoid") > 0
                assert tcp.congestion(listener) == listeners_own
        assert tcp.congestion(careless) == inherited
        veth.ns_b.set_sysctl(DEFAULT, inherited)
