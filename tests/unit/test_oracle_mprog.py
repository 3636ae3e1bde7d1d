# SPDX-License-Identifier: MIT
"""The reference model of ordered lists: the spec's table of vectors, its laws, and what differs by family."""

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import given, settings

from harness.guest.bpf import uapi
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_REPLACE,
)
from harness.modelcheck.mprog_comparison import hook_of
from harness.modelcheck.mprog_sequences import sequences
from harness.oracle.calls import CLOSED, Call, Close, Pin, Reopen, Unpin
from harness.oracle.families import HOOKS, Features
from harness.oracle.mprog import View
from harness.oracle.mprog_calls import (
    MAP,
    AddQdisc,
    Attach,
    DeleteQdisc,
    Detach,
    Fill,
    LinkCreate,
    LinkDetach,
    LinkUpdate,
    MoveDevice,
    Query,
    RemoveDevice,
)
from harness.oracle.world import Outcome, World
from scenarios.mprog.vectors import VECTORS, Vector

ALL = sequences(Features())
SEQUENCES = settings(max_examples=30)


def play(*calls: Call, world: World | None = None) -> World:
    """A world in which all these calls have succeeded."""
    world = world or World()
    for call in calls:
        assert world.do(call) == Outcome(), call
    return world


def error(world: World, call: Call) -> str:
    outcome = world.do(call)
    return errno.errorcode[outcome.errno] if outcome.errno else ""


def shown(world: World, hook: str = "in") -> str:
    """The list as the spec writes it: A B* C."""
    view = world.view(hook)
    owners = view.links or (None,) * view.count
    return " ".join(
        prog.upper() + ("*" if link else "") for prog, link in zip(view.progs, owners, strict=True)
    )


@pytest.fixture
def entry() -> World:
    """`A B* C`, where link b owns B; D and X (here e) are attached nowhere; link x owns A on another device."""
    return play(
        Attach("in", "a"),
        LinkCreate("link b", "in", "b"),
        Attach("in", "c"),
        LinkCreate("link x", "other", "a"),
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.id)
def test_vector(entry: World, vector: Vector) -> None:
    name = {None: None, "link b": "link b", "link x": "link x", "X": "e"} | {x: x.lower() for x in "ABCD"}
    before = entry.view("in")
    if vector.request == "attach":
        prog = str(name[vector.prog])
        outcome = entry.do(Attach("in", prog, vector.flags, name[vector.anchor], name[vector.old]))
    else:
        outcome = entry.do(Detach("in", name[vector.prog], vector.flags, name[vector.anchor]))
    if outcome.errno:
        assert errno.errorcode[outcome.errno] == vector.result
        assert entry.view("in") == before
    else:
        assert shown(entry) == vector.result
        assert entry.view("in").revision == before.revision + 1


# Laws


def look(world: World) -> dict[str, View]:
    return {hook: world.view(hook) for hook in HOOKS}


@SEQUENCES
@given(ALL)
def test_each_success_that_changes_something_adds_one_to_one_revision(calls: tuple[Call, ...]) -> None:
    """MPROG-LAW-002, -005, -007: and a failure changes nothing, nor does anything change another list."""
    world = World()
    for call in calls:
        hook = hook_of(call, world)
        before, links = look(world), world.link_infos()
        outcome = world.do(call)
        after = look(world)
        if outcome.errno or isinstance(call, Query):
            assert (after, world.link_infos()) == (before, links)
        if isinstance(call, Fill | RemoveDevice | DeleteQdisc | MoveDevice):
            continue
        for name in HOOKS:
            if name != hook:
                assert after[name] == before[name]
            elif after[name].progs != before[name].progs and after[name].revision != 1:
                assert after[name].revision == before[name].revision + 1 or before[name].count == 0


@SEQUENCES
@given(ALL)
def test_what_is_not_touched_keeps_its_order(calls: tuple[Call, ...]) -> None:
    """MPROG-LAW-001, -003, -006."""
    world = World()
    for call in calls:
        before = look(world)
        world.do(call)
        for name, view in look(world).items():
            assert len(view.progs) == view.count <= (64 if HOOKS[name].family == "cgroup" else 63)
            if HOOKS[name].family != "cgroup":
                assert len(set(view.progs)) == view.count
                kept = [prog for prog in before[name].progs if prog in view.progs]
                assert [prog for prog in view.progs if prog in kept] == kept


@SEQUENCES
@given(ALL)
def test_attach_and_detach_of_a_program_leave_the_list_as_it_was(calls: tuple[Call, ...]) -> None:
    """MPROG-LAW-004."""
    world = World()
    for call in calls:
        before = shown(world, call.hook) if isinstance(call, Attach) else ""
        outcome = world.do(call)
        if not isinstance(call, Attach) or outcome.errno or call.flags & BPF_F_REPLACE:
            continue
        if HOOKS[call.hook].family == "tcx" and not error(world, Detach(call.hook, call.prog)):
            assert shown(world, call.hook) == before


@SEQUENCES
@given(ALL)
def test_nothing_is_left_when_everything_is_closed(calls: tuple[Call, ...]) -> None:
    """MPROG-LAW-009: and unpinned."""
    world = World()
    for call in calls:
        world.do(call)
    for name in [*world.objects.links, *world.objects.progs]:
        world.do(Unpin(name))
        world.do(Close(name))
    attached = {prog for view in look(world).values() for prog in view.progs}
    assert world.alive_progs() == attached
    assert all(link is None for view in look(world).values() for link in view.links or ())


# Anchors


@pytest.mark.parametrize(
    ("flags", "anchor", "result"),
    [
        (0, MAP, "EINVAL"),  # MPROG-ANCHOR-002
        (0, CLOSED, "EBADF"),
        (0, "link b", "EINVAL"),
        (0, "u", "EINVAL"),  # MPROG-ANCHOR-007
        (BPF_F_ID, None, "ENOENT"),  # MPROG-ANCHOR-003
        (BPF_F_ID, CLOSED, "ENOENT"),
        (BPF_F_LINK, None, "EINVAL"),  # MPROG-ANCHOR-004
        (BPF_F_LINK, CLOSED, "EBADF"),  # MPROG-ANCHOR-005
        (BPF_F_LINK, "a", "EINVAL"),
        (BPF_F_LINK | BPF_F_ID, None, "ENOENT"),  # MPROG-ANCHOR-006
        (BPF_F_LINK, "link x", "ENOENT"),  # MPROG-ANCHOR-010
    ],
)
def test_anchor_that_leads_nowhere(entry: World, flags: int, anchor: str | None, result: str) -> None:
    assert error(entry, Attach("in", "d", BPF_F_BEFORE | flags, anchor)) == result


def test_a_detach_without_a_program_takes_an_anchor_of_any_type(entry: World) -> None:
    """MPROG-ANCHOR-008."""
    assert error(entry, Detach("in", "a", BPF_F_BEFORE, "u")) == "EINVAL"
    assert error(entry, Detach("in", None, BPF_F_BEFORE, "u")) == "ENOENT"


def test_an_id_needs_no_descriptor_while_the_program_lives(entry: World) -> None:
    """MPROG-ANCHOR-011, MPROG-LIFE-008."""
    play(Close("c"), Close("f"), world=entry)
    assert error(entry, Attach("in", "d", BPF_F_BEFORE | BPF_F_ID, "f")) == "ENOENT"
    assert error(entry, Attach("in", "d", BPF_F_BEFORE, "c")) == "EBADF"
    play(Attach("in", "d", BPF_F_BEFORE | BPF_F_ID, "c"), world=entry)
    assert shown(entry) == "A B* D C"


# Precedence: each call would fail by every check from its place on; the first decides


def test_the_first_failing_check_of_attach_decides(entry: World) -> None:
    """MPROG-ATTACH-003 to -010."""
    rows = (
        (
            Attach("nowhere", MAP, 1 << 20 | BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, CLOSED, 99),
            "MPROG-ATTACH-003",
        ),
        (Attach("nowhere", CLOSED, BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, CLOSED, 99), "MPROG-ATTACH-004"),
        (Attach("nowhere", "a", BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, CLOSED, 99), "MPROG-ATTACH-005"),
        (Attach("in", "a", BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, CLOSED, 99), "MPROG-ATTACH-006"),
        (Attach("in", "a", BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, "e", 99), "MPROG-ATTACH-007"),
        (Attach("in", "a", BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, "e"), "MPROG-ATTACH-008"),
        (Attach("in", "d", BPF_F_REPLACE | BPF_F_BEFORE, CLOSED, "e"), "MPROG-ANCHOR-002"),
        (Attach("in", "d", BPF_F_REPLACE | BPF_F_BEFORE, "f", "e"), "MPROG-ATTACH-010"),
    )
    for call, rule in rows:
        assert entry.do(call).rule == rule


def test_the_first_failing_check_of_a_link_update_decides(entry: World) -> None:
    """MPROG-LINK-020 to -028."""
    play(LinkCreate("dead", "out", "a"), LinkDetach("dead"), LinkDetach("dead"), world=entry)
    rows = (
        (LinkUpdate(CLOSED, CLOSED, BPF_F_ID, CLOSED), "MPROG-LINK-020"),
        (LinkUpdate("a", CLOSED, 0, "d"), "MPROG-LINK-021"),
        (LinkUpdate("dead", MAP, 0, "d"), "MPROG-LINK-022"),
        (LinkUpdate("dead", "c", 0, "d"), "MPROG-LINK-023"),
        (LinkUpdate("dead", "c", BPF_F_REPLACE, "d"), "MPROG-LINK-024"),
        (LinkUpdate("link b", "c", BPF_F_REPLACE, "d"), "MPROG-LINK-025"),
        (LinkUpdate("link b", "c"), "MPROG-ATTACH-008"),  # MPROG-LINK-027
        (LinkUpdate("link b", "u"), "MPROG-LINK-028"),
    )
    for call, rule in rows:
        assert entry.do(call).rule == rule
    play(LinkUpdate("link b", "d", BPF_F_REPLACE, "b"), world=entry)
    assert shown(entry) == "A D* C"


# The end of the list, revisions, devices


def test_a_full_list(entry: World) -> None:
    """MPROG-ATTACH-012, -031, MPROG-DETACH-026, MPROG-LINK-048, MPROG-QUIRK-003."""
    play(Fill("in", 63), world=entry)
    assert error(entry, Attach("in", "d", BPF_F_BEFORE, "f")) == "ERANGE"
    play(Attach("in", "d", BPF_F_REPLACE, replace="a"), world=entry)
    assert error(entry, Detach("in")) == error(entry, Detach("in", None, BPF_F_AFTER)) == "ERANGE"
    play(Close("link b"), world=entry)
    play(Detach("in"), world=entry)
    assert entry.view("in").count == 61


def test_a_freed_entry_forgets_its_revision_unless_a_qdisc_holds_it() -> None:
    """MPROG-REV-006 to -008, MPROG-DETACH-006, -009, MPROG-LEGACY-002."""
    world = play(Attach("in", "a"), Detach("in", "a"))
    assert world.view("in").revision == 1
    assert error(world, Detach("in", "a", BPF_F_REPLACE)) == "ENOENT"
    play(AddQdisc("d0", "clsact"), Attach("in", "a"), Detach("in", "a"), world=world)
    assert world.view("in").revision == 3
    assert error(world, Detach("in", "a", BPF_F_REPLACE)) == "EINVAL"
    assert error(world, Detach("in", "a", revision=1)) == "ESTALE"
    assert error(world, Detach("in", "a")) == "ENOENT"
    play(DeleteQdisc("d0", "clsact"), world=world)
    assert world.view("in").revision == 1


def test_netkit_goes_on_counting_and_does_not_show_it() -> None:
    """MPROG-NETKIT-001, -004, -005, MPROG-QUIRK-002."""
    world = play(Attach("primary", "a"), Detach("primary", "a"))
    assert world.view("primary") == World().view("primary")
    assert error(world, Attach("primary", "a", revision=1)) == "ESTALE"
    assert error(world, Detach("primary", "a", BPF_F_REPLACE, revision=7)) == "ENOENT"
    play(Attach("primary", "a", revision=3), world=world)
    assert error(world, Attach("no_netkit", "a")) == "ENXIO"
    assert error(world, Attach("not_primary", "a")) == "EACCES"


def test_links_outlive_their_device(entry: World) -> None:
    """MPROG-LIFE-002, -003, MPROG-LINK-041."""
    play(RemoveDevice("d0"), world=entry)
    assert not any(info.attached for info in entry.link_infos().values())
    assert error(entry, LinkUpdate("link b", "d")) == "ENOLINK"
    assert error(entry, Attach("other", "d")) == "ENODEV"
    play(LinkDetach("link b"), Close("b"), world=entry)
    assert "b" in entry.alive_progs()
    play(Close("link b"), world=entry)
    assert "b" not in entry.alive_progs()


def test_a_link_lives_while_a_path_or_a_descriptor_leads_to_it(entry: World) -> None:
    """MPROG-LINK-042, -043."""
    play(Pin("link b"), Close("link b"), world=entry)
    assert shown(entry) == "A B* C"
    assert error(entry, LinkDetach("link b")) == "EBADF"
    play(Attach("in", "d", BPF_F_BEFORE | BPF_F_LINK | BPF_F_ID, "link b"), Reopen("link b"), world=entry)
    play(Unpin("link b"), Pin("link b"), Close("link b"), Unpin("link b"), world=entry)
    assert shown(entry) == "A D C"
    assert error(entry, Reopen("link b", by_id=True)) == error(entry, Unpin("link b")) == "ENOENT"


def test_a_device_takes_its_lists_along_but_not_its_qdisc(entry: World) -> None:
    """MPROG-LIFE-005, MPROG-LINK-047."""
    play(AddQdisc("d0", "clsact"), MoveDevice("d0"), LinkUpdate("link b", "e"), world=entry)
    assert error(entry, Query("in")) == error(entry, RemoveDevice("d0")) == "ENODEV"
    play(MoveDevice("d0"), AddQdisc("d0", "ingress"), world=entry)
    assert shown(entry) == "A E* C"


@pytest.mark.parametrize(("kind", "egress"), [("clsact", 3), ("ingress", 1)])
def test_an_ingress_qdisc_holds_one_direction_only(kind: str, egress: int) -> None:
    """MPROG-REV-007, MPROG-LEGACY-002."""
    world = play(AddQdisc("d0", kind), *(Attach(hook, "a") for hook in ("in", "out")))
    play(*(Detach(hook, "a") for hook in ("in", "out")), world=world)
    assert (world.view("in").revision, world.view("out").revision) == (3, egress)
    play(DeleteQdisc("d0", kind), world=world)
    assert world.view("in").revision == 1


def test_a_link_takes_flags_that_nobody_knows() -> None:
    """MPROG-LINK-006, -007, MPROG-QUIRK-004."""
    world = play(LinkCreate("l", "in", "a", BPF_F_AFTER | 1 << 20))
    assert error(world, LinkCreate("m", "in", "b", 1 << 20)) == "EINVAL"
    assert error(world, LinkCreate("m", "in", "b", BPF_F_REPLACE)) == "ENOENT"


@pytest.mark.parametrize(("count", "progs", "code"), [(0, 0, 0), (2, 2, errno.ENOSPC), (3, 3, 0), (9, 3, 0)])
def test_a_query_fills_what_there_is_room_for(entry: World, count: int, progs: int, code: int) -> None:
    """MPROG-QUERY-006 to -008."""
    outcome = entry.do(Query("in", count))
    assert outcome.view is not None
    assert (outcome.errno, outcome.view.count, len(outcome.view.progs)) == (code, 3, progs)


# cgroups

MULTI, OVERRIDE = BPF_F_ALLOW_MULTI, uapi.BPF_F_ALLOW_OVERRIDE


def test_a_cgroup_answers_differently() -> None:
    """MPROG-CGROUP-005 to -020, MPROG-QUIRK-008, -009."""
    world = play(Attach("group", "u", MULTI), LinkCreate("l", "group", "u"), Attach("group", "v", MULTI))
    rows = (
        (Attach("group", "w", BPF_F_REPLACE, replace="v"), "MPROG-CGROUP-005"),
        (Attach("group", "w", MULTI | BPF_F_REPLACE | BPF_F_BEFORE, replace="v"), "MPROG-CGROUP-006"),
        (Attach("group", "w", MULTI, revision=9), "MPROG-CGROUP-007"),
        (Attach("group", "w"), "MPROG-CGROUP-009"),
        (Attach("group", "u", MULTI), "MPROG-CGROUP-011"),
        (Attach("group", "w", MULTI | BPF_F_REPLACE, replace="x"), "MPROG-CGROUP-012"),
        (Attach("group", "w", MULTI, "v"), "MPROG-CGROUP-014"),
        (Attach("group", "w", MULTI | BPF_F_BEFORE | BPF_F_LINK, "l"), "MPROG-CGROUP-015"),
        (LinkCreate("m", "group", "w", BPF_F_BEFORE, "v"), "MPROG-CGROUP-015"),
        (Attach("group", "w", MULTI | BPF_F_BEFORE | BPF_F_AFTER), "MPROG-CGROUP-016"),
        (Attach("group", "w", MULTI | BPF_F_BEFORE | uapi.BPF_F_PREORDER, "v"), "MPROG-CGROUP-018"),
        (Attach("group", "w", MULTI | BPF_F_BEFORE, "x"), "MPROG-CGROUP-019"),
        (Detach("group", "w"), "MPROG-CGROUP-033"),
        (Detach("below"), "MPROG-CGROUP-034"),
    )
    for call, rule in rows:
        assert world.do(call).rule == rule, call
    play(LinkUpdate("l", "u"), Attach("group", "w", MULTI | BPF_F_BEFORE, "v"), world=world)
    assert world.view("group").progs == ("u", "u", "w", "v")
    assert world.view("group").revision == 6


def test_of_two_mistakes_at_a_cgroup_the_first_check_decides() -> None:
    """MPROG-CGROUP-001 to -019; scenarios/mprog/test_cgroup_attach.py asks kernels the same."""
    before = BPF_F_BEFORE
    listed = play(Attach("group", "u", MULTI), LinkCreate("l", "group", "v"))
    locked = play(Attach("below", "u", MULTI), Attach("group", "u"))
    full = play(Attach("group", "u", MULTI), Fill("group", 64))
    rows = (
        (listed, Attach("group", CLOSED, MULTI | 1 << 7), "MPROG-CGROUP-001"),
        (listed, Attach("group", CLOSED, MULTI | BPF_F_REPLACE, replace=CLOSED), "MPROG-ATTACH-004"),
        (listed, Attach("group", "w", MULTI | OVERRIDE | BPF_F_REPLACE, replace=CLOSED), "MPROG-ATTACH-006"),
        (listed, Attach("group", "w", BPF_F_REPLACE, replace=CLOSED), "MPROG-CGROUP-005"),
        (listed, Attach("group", "w", MULTI | OVERRIDE, revision=9), "MPROG-CGROUP-005"),
        (
            listed,
            Attach("group", "w", MULTI | BPF_F_REPLACE | before, replace="u", revision=9),
            "MPROG-CGROUP-006",
        ),
        (locked, Attach("below", "v", MULTI, revision=9), "MPROG-CGROUP-007"),
        (locked, Attach("below", "u", MULTI), "MPROG-CGROUP-008"),
        (full, Attach("group", "w"), "MPROG-CGROUP-009"),
        (full, Attach("group", "w", MULTI | BPF_F_REPLACE, replace="x"), "MPROG-CGROUP-010"),
        (full, Attach("group", "u", MULTI), "MPROG-CGROUP-010"),
        (listed, Attach("group", "u", MULTI | BPF_F_REPLACE, replace="x"), "MPROG-CGROUP-011"),
        (listed, Attach("group", "u", MULTI | before, CLOSED), "MPROG-CGROUP-011"),
        (listed, Attach("group", "w", MULTI | BPF_F_REPLACE, "u", replace="v"), "MPROG-CGROUP-012"),
        (listed, Attach("group", "w", MULTI, CLOSED), "MPROG-CGROUP-014"),
        (listed, Attach("group", "w", MULTI | before | BPF_F_LINK, CLOSED), "MPROG-CGROUP-015"),
        (listed, LinkCreate("m", "group", "w", before, CLOSED), "MPROG-CGROUP-015"),
        (listed, Attach("group", "w", MULTI | before | uapi.BPF_F_PREORDER, "w"), "MPROG-CGROUP-019"),
    )
    for world, call, rule in rows:
        assert world.do(call).rule == rule, call


def test_an_overwriting_request_is_not_asked_for_its_position() -> None:
    """MPROG-CGROUP-013: the next one with a mistake in it is."""
    world = play(Attach("group", "u"), Attach("group", "v", BPF_F_BEFORE | BPF_F_AFTER | BPF_F_LINK, CLOSED))
    assert (world.view("group").progs, world.view("group").revision) == (("v",), 3)
    world = play(Detach("group"), world=world)
    assert world.do(Attach("group", "v", BPF_F_LINK, CLOSED)).rule == "MPROG-CGROUP-014"


def test_what_runs_in_a_cgroup_are_its_own_programs_and_those_above() -> None:
    """MPROG-CGROUP-008, -042, -047."""
    above, early = Attach("group", "u", MULTI), Attach("group", "v", MULTI | uapi.BPF_F_PREORDER)
    world = play(above, early, Attach("below", "w", MULTI))
    outcome = world.do(Query("below", flags=uapi.BPF_F_QUERY_EFFECTIVE))
    assert outcome.view is not None
    assert (outcome.view.progs, outcome.view.revision) == (("v", "w", "u"), 0)
    assert play(Attach("group", "u")).do(Attach("below", "v")).rule == "MPROG-CGROUP-008"


def test_a_kernel_without_the_cgroup_api_knows_no_anchors() -> None:
    world = World(Features(cgroup_mprog=False, cgroup_preorder=False))
    assert error(world, Attach("group", "u", MULTI | BPF_F_BEFORE)) == "EINVAL"
    assert error(world, Attach("group", "u", MULTI, revision=1)) == "EINVAL"
    assert error(world, LinkCreate("l", "group", "u", BPF_F_BEFORE)) == "EINVAL"


def test_each_refusal_names_a_behaviour() -> None:
    """The spec's ids have one form: a typing error in one is noticed."""
    refused = {outcome.rule for outcome in _refusals() if outcome.errno}
    assert len(refused) > 30
    ids = re.compile(r"MPROG-(ATTACH|DETACH|LINK|ANCHOR|QUERY|NETKIT|CGROUP)-\d{3}")
    assert {rule for rule in refused if not ids.fullmatch(rule)} <= {
        "tc(8)",
        "rtnetlink(7)",
        "close(2)",
        "bpf(2)",
        "unlink(2)",
    }


def _refusals() -> list[Outcome]:
    outcomes: list[Outcome] = []

    @settings(max_examples=30)
    @given(ALL)
    def collect(calls: tuple[Call, ...]) -> None:
        world = World()
        outcomes.extend(world.do(call) for call in calls)

    collect()
    return outcomes
