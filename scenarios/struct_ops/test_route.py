# SPDX-License-Identifier: MIT
"""A route names the algorithm of the connections that it carries."""

from __future__ import annotations

import socket

import pytest

from harness.guest import tcp, tools
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.net import VethPair
from harness.guest.tools import ToolError
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, seen, tobefree
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps
from scenarios.struct_ops.connections import connect_to

pytestmark = [pytest.mark.requires("struct_ops")]

BYTES = 32 * 1024


def add_route(veth: VethPair, *congctl: str) -> None:
    """A route from `veth.a` to the host `veth.b` with metric congctl. Raises ToolError."""
    with veth.ns_a.entered():
        tools.run("ip", "route", "add", f"{veth.b.address}/32", "dev", veth.a.name, "congctl", *congctl)


def congctl_of_route(veth: VethPair) -> list[str]:
    """What the route to `veth.b` shows behind the word congctl; nothing where the word is missing."""
    with veth.ns_a.entered():
        words = tools.run("ip", "route", "show", f"{veth.b.address}/32").split()
    return words[words.index("congctl") + 1 :] if "congctl" in words else []


def test_route_chooses_by_name_whatever_is_registered_at_the_time(
    veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-022, -014, -019: over its own choice, too; without such an algorithm the socket keeps what it has."""
    old, new = new_idle(), new_idle()
    old_map, new_map = new_ops(), new_ops()
    old_map.update(old.members())
    add_route(veth, NAME)
    assert congctl_of_route(veth) == [NAME]
    assert seen(old_map) == inuse(1)
    with tcp.connect(veth, congestion="reno") as veteran:
        assert veteran.congestion == NAME
        assert seen(old_map) == inuse(2)

        old_map.delete()

        assert congctl_of_route(veth) == []
        with tcp.connect(veth, congestion="reno") as between:
            assert between.congestion == "reno"

        new_map.update(new.members())

        assert congctl_of_route(veth) == [NAME]
        with tcp.connect(veth) as recruit:
            assert recruit.congestion == NAME
            assert (seen(old_map), seen(new_map)) == (tobefree(1), inuse(2))
            recruit.transfer(BYTES)
            assert old.count("cong_avoid") == 0 and new.count("cong_avoid") > 0
            veteran.transfer(BYTES)
            assert old.count("cong_avoid") > 0
    assert old.count("init") == new.count("init") == 1


def test_locked_route_takes_the_choice_from_its_sockets(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-011, -022: EPERM, for the name that the socket has as well."""
    ops.update(idle.members())
    add_route(veth, "lock", NAME)
    with tcp.connect(veth, congestion="reno") as pair:
        assert pair.congestion == NAME
        for name in ("reno", NAME, "kr_unknown"):
            with pytest.raises(PermissionError):
                tcp.set_congestion(pair.client, name)
        assert pair.congestion == NAME
        pair.transfer(BYTES)
        assert idle.count("cong_avoid") > 0


def test_route_without_a_lock_leaves_the_last_word_to_the_socket(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-022."""
    ops.update(idle.members())
    add_route(veth, NAME)
    with tcp.connect(veth) as pair:
        assert pair.congestion == NAME
        tcp.set_congestion(pair.client, "reno")
        assert pair.congestion == "reno"
        assert seen(ops) == inuse(1)


def test_route_to_the_client_chooses_for_the_accepted_socket(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-015, -022: before the listener's own choice."""
    ops.update(idle.members())
    add_route(veth.flipped, NAME)
    with (
        tcp.listening(veth.ns_b, str(veth.b.address), congestion="reno") as listener,
        connect_to(listener, veth.ns_a.run(socket.socket)) as pair,
    ):
        assert tcp.congestion(pair.server) == NAME != pair.congestion
        pair.transfer(BYTES)
        assert idle.count("init") == 1 and idle.count("cong_avoid") > 0


def test_route_cannot_name_an_algorithm_that_nobody_registered(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-022: EINVAL from rtnetlink (net/ipv4/metrics.c:ip_metrics_convert)."""
    ops.update(idle.members())
    ops.delete()
    with pytest.raises(ToolError) as refusal:
        add_route(veth, NAME)
    assert "congestion algorithm" in refusal.value.stderr
    assert congctl_of_route(veth) == []
