# SPDX-License-Identifier: MIT
"""The reference model of struct_ops: the spec's tables of states, who holds what, and laws over random sequences."""

from __future__ import annotations

import ast
import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from harness.guest.bpf.uapi import BPF_F_LINK, BPF_F_REPLACE
from harness.modelcheck.facility import from_json
from harness.modelcheck.struct_ops import StructOps
from harness.modelcheck.struct_ops_comparison import compare, request
from harness.oracle.calls import Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.refusal import UNTRIED
from harness.oracle.struct_ops import (
    INIT,
    INUSE,
    NON_RESTRICTED,
    READY,
    RETURNED_ONE,
    TOBEFREE,
    Features,
    Outcome,
    World,
)
from harness.oracle.struct_ops_calls import (
    Choose,
    Connect,
    Create,
    Default,
    Detach,
    Link,
    Listen,
    Lookup,
    LookupAndDelete,
    NextKey,
    Relink,
    Talk,
    Update,
)

FACILITY = StructOps(Features())
SEQUENCES = settings(max_examples=25)
BEFORE_LINKS = Features(struct_ops_link=False, struct_ops_link_detach=False)
LINK = BPF_F_LINK


def fill(map: str, name: str = "kr_x", **odd: Any) -> Update:
    """A value that is accepted, unless something odd is in it."""
    usual = Update(map, name, "ssthresh_a", "cong_avoid_a", undo_cwnd="undo_cwnd_a")
    return replace(usual, **odd)


def play(*calls: Call, features: Features = FACILITY.features) -> World:
    """A world in which all these calls have succeeded."""
    world = World(features)
    for call in calls:
        assert world.do(call) == Outcome(), call
    return world


def answer(world: World, call: Call) -> str:
    outcome = world.do(call)
    return errno.errorcode.get(outcome.errno, str(outcome.errno)) if outcome.errno else "0"


STATES = {
    "plain INIT": (Create("m"),),
    "plain INUSE": (Create("m"), fill("m")),
    "plain TOBEFREE": (Create("m"), fill("m"), Delete("m")),
    "link INIT": (Create("m", LINK),),
    "link READY": (Create("m", LINK), fill("m")),
}


@pytest.mark.parametrize(
    ("state", "update", "delete", "link", "shown"),
    [
        ("plain INIT", "0", "ENOENT", "EINVAL", (INIT, 0)),
        ("plain INUSE", "EBUSY", "0", "EINVAL", (INUSE, 1)),
        ("plain TOBEFREE", "EBUSY", "EINPROGRESS", "EINVAL", (TOBEFREE, 0)),
        ("link INIT", "0", "ENOTSUP", "EINVAL", (INIT, 0)),
        ("link READY", "EBUSY", "ENOTSUP", "0", (READY, 0)),
    ],
)
def test_state(state: str, update: str, delete: str, link: str, shown: tuple[int, int]) -> None:
    """STOPS-STATE-001 to -005."""
    for call, expected in ((fill("m"), update), (Delete("m"), delete), (Link("l", "m"), link)):
        assert answer(play(*STATES[state]), call) == expected, call
    assert play(*STATES[state]).look().maps == {"m": shown}


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"flags": 1, "key": 1, "stray": "padding"}, "EINVAL"),
        ({"key": 1, "stray": "padding"}, "E2BIG"),
        ({"stray": "padding"}, "EINVAL"),
        ({"stray": "state"}, "EINVAL"),
        ({"ssthresh": "closed", "name": ""}, "EBADF"),
        ({"ssthresh": "m", "release": "closed"}, "EINVAL"),
        ({"ssthresh": "undo_cwnd_a"}, "EINVAL"),
        ({"ssthresh": "dummy_ops"}, "EINVAL"),
        ({"ssthresh": None, "release": "closed"}, "EBADF"),
        ({"ssthresh": None}, "EINVAL"),
        ({"cong_avoid": None}, "EINVAL"),
        ({"cong_avoid": None, "cong_control": "cong_control_b"}, "0"),
        ({"name": "kr/x"}, "EINVAL"),
        ({"name": "x" * 16}, "EINVAL"),
        ({"name": "reno"}, "EEXIST"),
        ({"bits": 1 << 7}, "EINVAL"),
        ({"stray": "key"}, "EINVAL"),
        ({"stray": "owner"}, str(RETURNED_ONE)),
        ({"stray": "owner", "name": ""}, "EINVAL"),
        ({"stray": "owner", "ssthresh": "closed"}, "EBADF"),
    ],
)
def test_value(odd: dict[str, Any], expected: str) -> None:
    """STOPS-UPD-002 to -018, STOPS-TCP-001 to -004: and a corrected value may follow."""
    world = play(Create("m"))
    assert answer(world, fill("m", **odd)) == expected
    if expected != "0":
        assert world.look().maps == {"m": (INIT, 0)}
        assert answer(world, fill("m")) == "0"


def test_a_value_that_is_too_late_is_not_looked_at_but_its_padding_is() -> None:
    world = play(*STATES["plain INUSE"])
    assert answer(world, fill("m", name="")) == "EBUSY"
    assert answer(world, fill("m", stray="padding")) == "EINVAL"


def test_several_maps_may_be_ready_with_one_name_but_only_one_is_registered() -> None:
    """STOPS-TCP-003, STOPS-LINK-003, STOPS-QUIRK-007."""
    world = play(Create("m", LINK), fill("m"), Create("n", LINK), fill("n"), Link("l", "m"))
    assert answer(world, Link("k", "n")) == "EEXIST"
    assert answer(world, Create("p")) == "0"
    assert answer(world, fill("p")) == "EEXIST"
    assert answer(world, Close("l")) == "0"
    assert answer(world, Link("k", "n")) == "0"


def test_before_links_a_name_that_is_taken_is_noticed_at_its_member() -> None:
    """STOPS-TCP-003: so a missing member comes second, a closed program of a member in front first."""
    for features, expected in ((BEFORE_LINKS, "EEXIST"), (Features(), "EINVAL")):
        world = play(Create("m"), fill("m"), Create("n"), features=features)
        assert answer(world, fill("n", ssthresh=None)) == expected
        assert answer(world, fill("n", ssthresh="closed")) == "EBADF"
    assert answer(World(BEFORE_LINKS), Create("m", LINK)) == "EINVAL"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Relink("l", "same", 1 << 20, "closed"), "EINVAL"),
        (Relink("closed", "closed"), "EBADF"),
        (Relink("m", "same"), "EINVAL"),
        (Relink("l", "closed"), "EBADF"),
        (Relink("l", "ssthresh_a"), "EINVAL"),
        (Relink("l", "unready", BPF_F_REPLACE, "closed"), "EBADF"),
        (Relink("l", "same", 0, "m"), "EINVAL"),
        (Relink("l", "same", BPF_F_REPLACE), "EINVAL"),
        (Relink("l", "unready"), "EINVAL"),
        (Relink("l", "plain"), "EINVAL"),
        (Relink("l", "other", BPF_F_REPLACE, "same"), "EPERM"),
        (Relink("l", "other"), "EINVAL"),
        (Relink("l", "other", BPF_F_REPLACE, "m"), "EINVAL"),
        (Relink("l", "same", BPF_F_REPLACE, "m"), "0"),
        (Relink("l", "same"), "0"),
        (Relink("l", "m"), str(UNTRIED)),
        (Relink("detached", "unready"), "EINVAL"),
        (Relink("detached", "same", BPF_F_REPLACE, "m"), "ENOLINK"),
    ],
)
def test_link_update(call: Relink, expected: str) -> None:
    """STOPS-LINK-010 to -018."""
    world = play(
        *(
            Create("detached map", LINK),
            fill("detached map"),
            Link("detached", "detached map"),
            Detach("detached"),
        ),
        *(Create("m", LINK), fill("m"), Link("l", "m"), Create("same", LINK), fill("same")),
        *(
            Create("other", LINK),
            fill("other", "kr_y"),
            Create("unready", LINK),
            Create("plain"),
            fill("plain", "z"),
        ),
    )
    before = world.look()
    assert answer(world, call) == expected
    if expected == "0":
        assert world.look().available == ("z", "kr_x")  # the new one is the last
        assert world.look().links == {"detached": None, "l": "same"}
    else:
        assert world.look() == before


def test_a_detached_link_stays_and_lets_its_map_go() -> None:
    """STOPS-LINK-020, -022."""
    world = play(Create("m", LINK), fill("m"), Link("l", "m"), Close("m"), Detach("l"))
    assert answer(world, Detach("l")) == "0"
    assert world.look().links == {"l": None}
    assert answer(world, Reopen("m", by_id=True)) == "ENOENT"
    before_detach = Features(struct_ops_link_detach=False)
    world = play(Create("m", LINK), fill("m"), Link("l", "m"), features=before_detach)
    assert answer(world, Detach("l")) == "ENOTSUP"
    assert world.look().available == ("kr_x",)


def test_a_registered_map_needs_nobody() -> None:
    """STOPS-STATE-014, -016: its id leads to it; after delete the last socket is the last to hold it."""
    world = play(
        Create("m"), fill("m"), Close("m"), Reopen("m", by_id=True), Listen("s", "kr_x"), Delete("m")
    )
    assert world.look().maps == {"m": (TOBEFREE, 1)}
    assert answer(world, Close("m")) == "0"
    assert "m" in world.maps
    assert world.alive_progs() >= {"ssthresh_a"}
    assert answer(world, Close("s")) == "0"
    assert "m" not in world.maps


def test_a_pin_keeps_what_is_closed() -> None:
    """STOPS-CMD-014, STOPS-STATE-015."""
    world = play(Create("m", LINK), fill("m"), Link("l", "m"), Pin("l"), Pin("m"), Close("l"), Close("m"))
    assert world.look().available == ("kr_x",)
    assert [answer(world, call) for call in (Pin("m"), Reopen("m"), Unpin("l"))] == ["EINVAL", "0", "0"]
    assert world.look().maps == {"m": (READY, 0)}
    assert [answer(world, call) for call in (Unpin("l"), Close("m"), Unpin("m"))] == ["ENOENT", "0", "0"]
    assert world.maps == {}


def test_sockets_keep_their_generation() -> None:
    """STOPS-LAW-006, -003, STOPS-TCP-012, -014, -019, STOPS-LINK-018."""
    world = play(
        *(Create("old", LINK), fill("old"), Create("new", LINK), fill("new"), Link("l", "old")),
        *(Listen("s"), Connect("c", "s", "d", "kr_x"), Relink("l", "new"), Choose("d", "kr_x")),
    )
    assert world.look().maps == {"old": (READY, 1), "new": (READY, 2)}
    assert answer(world, Choose("c", "kr_x")) == "0"
    assert world.look().maps == {"old": (READY, 0), "new": (READY, 3)}
    assert answer(world, Close("l")) == "0"
    assert answer(world, Choose("s", "kr_x")) == "ENOENT"
    assert answer(world, Choose("c", "reno")) == "0"
    assert world.look().maps["new"] == (READY, 1)


def test_what_is_accepted_has_the_listeners_algorithm_if_it_chose_one_else_the_default() -> None:
    """STOPS-TCP-015, -016, STOPS-LAW-008."""
    world = play(
        *(
            Create("m"),
            fill("m", bits=NON_RESTRICTED),
            Listen("s"),
            Listen("t", "reno"),
            Default("kr_x"),
            Delete("m"),
        ),
        *(Connect("c", "s", "d"), Connect("e", "t", "f", "cubic"), Listen("u")),
    )
    assert world.look().socks == {
        "s": "reno",
        "t": "reno",
        "u": "kr_x",
        "c": "kr_x",
        "d": "kr_x",
        "e": "cubic",
        "f": "reno",
    }
    assert world.look().maps == {"m": (TOBEFREE, 4)}
    assert answer(world, Default("kr_x")) == "ENOENT"
    assert answer(world, Default("reno")) == "0"
    assert world.look().maps == {"m": (TOBEFREE, 3)}


def test_a_restricted_algorithm_is_no_default() -> None:
    """STOPS-TCP-016: and not even tried where the refusal leaks a reference."""
    for leaks, expected in ((False, "EPERM"), (True, str(UNTRIED))):
        world = play(Create("m"), fill("m"), features=Features(refused_default_leaks=leaks))
        assert answer(world, Default("kr_x")) == expected


def test_commands_that_change_nothing() -> None:
    """STOPS-CMD-001, -007 to -009, in every state."""
    for calls in STATES.values():
        world = play(*calls)
        asked = (
            *(Lookup("m"), Lookup("m", 1), NextKey("m"), NextKey("m", 0), NextKey("m", 7)),
            *(Freeze("m"), LookupAndDelete("m")),
        )
        assert [answer(world, call) for call in asked] == ["0", "ENOENT", "0", "ENOENT", "0", "524", "524"]


# Laws


@SEQUENCES
@given(FACILITY.sequences())
def test_laws(calls: tuple[Call, ...]) -> None:
    """STOPS-LAW-001 to -003, -005: also, a refused call changes nothing."""
    world = World()
    steps = {(INIT, INUSE), (INUSE, TOBEFREE), (INIT, READY)}
    for call in calls:
        before, states = world.look(), {name: table.state for name, table in world.maps.items()}
        if world.do(call).errno:
            assert world.look() == before
        for name, table in world.maps.items():
            was = states.get(name, INIT)
            assert was == table.state or (was, table.state) in steps
            assert (table.value is None) == (table.state == INIT)
        registered = [name for name, table in world.maps.items() if table.state == INUSE]
        registered += [link.map for link in world.links.values() if link.map]
        assert sorted(registered) == sorted(world.registered.values())
        used = {sock.uses.map for sock in world.socks.values()} | set(registered)
        assert used - {None} <= set(world.maps)


@SEQUENCES
@given(FACILITY.sequences())
def test_a_sequence_survives_json_and_its_scenario_is_python(calls: tuple[Call, ...]) -> None:
    assert from_json(json.loads(json.dumps([call.to_json() for call in calls])), FACILITY.calls) == calls
    ast.parse(FACILITY.scenario(calls))
    assert len(request(calls, FACILITY.features)["calls"]) == len(calls)


# Comparison


def played(calls: tuple[Call, ...], kernel: World) -> dict[str, Any]:
    """What harness.guest.struct_ops_player would answer if that were the kernel."""
    ids: dict[str, int] = {}
    answers = []
    for call in calls:
        error = kernel.do(call).errno
        ids |= {name: len(ids) + 1 + place for place, name in enumerate(set(kernel.maps) - set(ids))}
        look = kernel.look()
        links = {name: [ids[map] if map else 0, map is None] for name, map in look.links.items()}
        answers.append([error, [list(look.available), look.maps, links]])
    progs = {prog for call in calls if isinstance(call, Update) for prog in call.progs.values()}
    ids |= {name: 100 + place for place, name in enumerate(sorted(progs))}
    values = {}
    for name, table in kernel.maps.items():
        value = table.value
        numbers = {member: ids[prog] for member, prog in value.progs.items()} if value else {}
        values[name] = [numbers, value.name if value else ""]
    look = kernel.look()
    kernel.progs.clear()
    end = {"values": values, "socks": look.socks, "default": look.default, "left": []}
    return {"answers": answers, "ids": ids, "alive": sorted(kernel.alive_progs()), **end}


STORY = (Create("m", LINK), fill("m"), Link("l", "m"), Listen("s", "kr_x"), Detach("l"), Talk("s"))


def test_what_goes_as_the_model_says_does_not_differ() -> None:
    assert compare(STORY, FACILITY.features, played(STORY, World())) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": ["m"]}, "everything closed"),
        ({"alive": []}, "all programs closed"),
        ({"values": {"m": [{}, "kr_x"]}}, "at the end values are"),
        ({"socks": {"s": "reno"}}, "at the end sockets use"),
        ({"default": "cubic"}, "at the end the default is"),
    ],
)
def test_the_end_is_compared(change: dict[str, Any], words: str) -> None:
    found = compare(STORY, FACILITY.features, played(STORY, World()) | change)
    assert found is not None
    assert words in found.what


@pytest.mark.parametrize(
    ("place", "part", "kernels", "words"),
    [
        (2, 0, [], "the registered names are"),
        (3, 1, {"m": (READY, 1)}, "(state, refcnt) of maps are"),
        (4, 2, {"l": [0, False]}, "(map, hung up) of links are"),
    ],
)
def test_every_look_is_compared(place: int, part: int, kernels: Any, words: str) -> None:
    told = played(STORY, World())
    told["answers"][place][1][part] = kernels
    found = compare(STORY, FACILITY.features, told)
    assert found is not None
    assert (found.place, words in found.what) == (place, True)
