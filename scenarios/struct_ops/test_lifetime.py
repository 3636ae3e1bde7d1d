# SPDX-License-Identifier: MIT
"""A congestion control leaves its name at once, and its connections when they close."""

from __future__ import annotations

import socket

import pytest

from harness.guest import tcp
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from scenarios.struct_ops.algorithms import (
    NAME,
    TYPE,
    Algorithm,
    inuse,
    seen,
    seen_by_id,
    switching_to,
    tobefree,
)
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps
from scenarios.struct_ops.connections import (
    DEFAULT,
    NON_RESTRICTED,
    assert_unknown,
    connect_to,
    wait_until_freed,
)

pytestmark = [pytest.mark.requires("struct_ops")]

BYTES = 256 * 1024


def test_unregistered_algorithm_serves_its_connections_until_the_last_one_closes(
    veth: VethPair, reno: Algorithm, ops: StructOps
) -> None:
    """STOPS-STATE-002, -003, -016, STOPS-CMD-003, -004, STOPS-FIX-001, STOPS-TCP-010, -012, -014, STOPS-LAW-006,
    -007.
    """
    ops.update(reno.members())
    map_id, prog_ids = ops.map.id, ops.prog_ids()
    assert prog_ids == {name: prog.id for name, prog in reno.progs.items()}
    with tcp.connect(veth, congestion=NAME) as last, tcp.connect(veth, congestion=NAME) as first:
        last.transfer(BYTES)
        assert seen(ops) == inuse(3)
        assert NAME in tcp.available(veth.ns_a)

        ops.delete()

        assert seen(ops) == tobefree(2)
        assert NAME not in tcp.available(veth.ns_a)
        assert_unknown(NAME)
        ops.close()
        reno.close_programs()
        first.close()
        assert seen_by_id(map_id) == tobefree(1)
        before = reno.count("cong_avoid")
        last.transfer(BYTES)
        assert last.congestion == NAME
        assert reno.count("cong_avoid") > before
        assert map_id in Map.ids()
        assert set(prog_ids.values()) <= set(Prog.ids())
        segments = last.info.bytes_acked // last.info.snd_mss
    wait_until_freed(map_id, set(prog_ids.values()))
    assert (reno.count("init"), reno.count("strangers")) == (2, 0)
    # what is acknowledged during loss recovery is not told to cong_avoid
    assert reno.count("acked") >= segments // 2


def test_two_generations_of_a_name_serve_side_by_side(
    veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-019, STOPS-LAW-002, -006: old connections run the old programs, new ones the new."""
    old, new = new_idle(), new_idle()
    old_map, new_map = new_ops(), new_ops()
    old_map.update(old.members())
    with tcp.connect(veth, congestion=NAME) as veteran:
        old_map.delete()
        new_map.update(new.members())
        with tcp.connect(veth, congestion=NAME) as recruit:
            assert (seen(old_map), seen(new_map)) == (tobefree(1), inuse(2))

            veteran.transfer(BYTES)
            assert old.count("cong_avoid") > 0 and new.count("cong_avoid") == 0
            veterans_calls = old.count("cong_avoid")
            recruit.transfer(BYTES)
            assert old.count("cong_avoid") == veterans_calls and new.count("cong_avoid") > 0
    assert old.count("init") == new.count("init") == 1
    assert old.count("release") > 0 and new.count("release") > 0
    assert (seen(old_map), seen(new_map)) == (tobefree(0), inuse(1))


def test_listener_hands_an_unregistered_algorithm_to_the_sockets_it_accepts(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-015, STOPS-LAW-008: the listener's reference keeps the programs for its children."""
    ops.update(idle.members())
    with tcp.listening(veth.ns_b, str(veth.b.address), congestion=NAME) as listener:
        ops.delete()
        assert seen(ops) == tobefree(1)
        assert idle.count("init") == 0
        with connect_to(listener, veth.ns_a.run(socket.socket)) as pair:
            assert tcp.congestion(pair.server) == NAME
            assert tcp.congestion(pair.client) != NAME
            assert seen(ops) == tobefree(2)
            pair.transfer(BYTES)
            assert idle.count("init") == 1
            assert idle.count("cong_avoid") > 0
    assert seen(ops) == tobefree(0)


def test_program_may_give_up_the_last_reference_to_its_own_map(
    veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-020, -021, STOPS-FIX-002: init switches its socket away from an unregistered algorithm."""
    with load_struct_ops_prog(TYPE, "init", switching_to("reno")) as leaving:
        ops.update({**idle.members(), "init": leaving})
    map_id, prog_ids = ops.map.id, set(ops.prog_ids().values())
    with tcp.listening(veth.ns_b, str(veth.b.address)) as listener:
        client = veth.ns_a.run(socket.socket)
        tcp.set_congestion(client, NAME)
        ops.delete()
        assert seen(ops) == tobefree(1)
        ops.close()
        idle.close_programs()
        assert map_id in Map.ids()

        with connect_to(listener, client) as pair:
            assert pair.congestion == "reno"
            wait_until_freed(map_id, prog_ids)
            pair.transfer(BYTES)
    assert idle.count("cong_avoid") == 0


def test_namespace_default_outlives_its_registration(veth: VethPair, idle: Algorithm, ops: StructOps) -> None:
    """STOPS-TCP-016, STOPS-CMD-004: the namespace holds the algorithm until its default changes."""
    ops.update({**idle.members(), "flags": NON_RESTRICTED})
    inherited = veth.ns_a.sysctl(DEFAULT)
    veth.ns_a.set_sysctl(DEFAULT, NAME)
    assert seen(ops) == inuse(2)

    ops.delete()

    with tcp.connect(veth) as pair:
        assert pair.congestion == NAME
        pair.transfer(BYTES)
        assert idle.count("cong_avoid") > 0
        assert seen(ops) == tobefree(2)
    veth.ns_a.set_sysctl(DEFAULT, inherited)
    assert seen(ops) == tobefree(0)
    with pytest.raises(FileNotFoundError):
        veth.ns_a.set_sysctl(DEFAULT, NAME)


def test_switching_a_connection_releases_the_old_algorithm_before_it_starts_the_new(
    veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-TCP-011, -012, -013: setsockopt to and fro on a live connection."""
    here, there = new_idle(), new_idle()
    here_ops, there_ops = new_ops(), new_ops()
    here_ops.update(here.members("kr_here"))
    there_ops.update(there.members("kr_there"))
    with tcp.connect(veth, congestion="kr_here") as pair:
        for algorithm, name, refcnts, runs in (
            (there, "kr_there", (1, 2), (1, 1)),
            (here, "kr_here", (2, 1), (2, 1)),
        ):
            other = here if algorithm is there else there

            tcp.set_congestion(pair.client, name)
            tcp.set_congestion(pair.client, name)

            assert (algorithm.count("init"), other.count("release")) == runs
            assert other.count("release_ticket") < algorithm.count("init_ticket")
            assert (here_ops.refcnt(), there_ops.refcnt()) == refcnts
            idle_calls, calls = other.count("cong_avoid"), algorithm.count("cong_avoid")
            pair.transfer(BYTES)
            assert other.count("cong_avoid") == idle_calls
            assert algorithm.count("cong_avoid") > calls


def test_choosing_an_algorithm_does_not_start_it_before_the_connection(
    netns: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-013, -023: an unconnected socket holds the algorithm but does not run it."""
    ops.update(idle.members())
    with socket.socket() as unconnected:
        tcp.set_congestion(unconnected, NAME)
        assert tcp.congestion(unconnected) == NAME
        assert seen(ops) == inuse(2)
    assert seen(ops) == inuse(1)
    assert idle.count("init") == 0


@pytest.mark.known_issue(
    "TCP-RELEASE-WITHOUT-INIT",
    reason="release runs on sockets that init never saw",
    spared=("7.2.12", "7.3-rc7"),
)
def test_a_socket_that_never_connected_is_not_released(
    netns: NetNamespace, idle: Algorithm, ops: StructOps
) -> None:
    """STOPS-TCP-013: release is the counterpart of init."""
    ops.update(idle.members())
    with socket.socket() as unconnected:
        tcp.set_congestion(unconnected, NAME)
    assert (idle.count("init"), idle.count("release")) == (0, 0)
