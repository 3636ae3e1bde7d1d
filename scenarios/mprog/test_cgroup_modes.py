# SPDX-License-Identifier: MIT
"""The three modes of a cgroup's list, what they allow below, and detaching by their rules."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from harness.guest.bpf.cgroup import Cgroup, attach, detach, link, query
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, errno_name, refused
from harness.guest.bpf.uapi import BPF_F_AFTER as AFTER
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_QUERY_EFFECTIVE as EFFECTIVE
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import LoadCgroupSkb, ids

NONE = 0
MODES = {"NONE": NONE, "OVERRIDE": OVERRIDE, "MULTI": MULTI}
CLOSED = 1000


def outcome(request: Callable[..., object], *args: Any, **options: Any) -> str:
    """ "" or the errno's name; a link that was made is closed again."""
    try:
        made = request(*args, **options)
    except BpfError as error:
        return error.errno_name
    if hasattr(made, "close"):
        made.close()
    return ""


def test_a_list_takes_only_requests_of_its_own_mode(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-009, -037: a link's mode is MULTI."""
    a, b = cgroup_skb(), cgroup_skb()
    results: dict[tuple[str, str], str] = {}
    for (held, mode), (asked, request) in product(MODES.items(), MODES.items()):
        there = group.child(f"{held}-{asked}")
        attach(there, a, flags=mode)
        results[held, asked] = outcome(attach, there, b, flags=request)
        assert query(there).prog_ids == (
            ids(a, b) if asked == held == "MULTI" else ids(b if asked == held else a)
        )
        assert query(there).attach_flags == mode
    for held, mode in MODES.items():
        there = group.child(f"{held}-link")
        attach(there, a, flags=mode)
        results[held, "link"] = outcome(link, there, b)
    assert results == {
        (held, asked): "" if asked == held or (held, asked) == ("MULTI", "link") else "EPERM"
        for held, asked in product(MODES, (*MODES, "link"))
    }


def test_the_nearest_list_above_decides_what_may_be_attached(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-008: a program without OVERRIDE and MULTI forbids all, links too; a cgroup without programs is
    passed over. What is below already stays.
    """
    a, b = cgroup_skb(), cgroup_skb()
    results: dict[tuple[str, str, str], str] = {}
    for upper, nearer in product((*MODES, ""), repeat=2):
        top = group.child(f"top-{upper}-{nearer}")
        above = top.child("above")
        below = above.child("between").child("below")
        if nearer:  # first: the upper one could forbid it
            attach(above, a, flags=MODES[nearer])
        if upper:
            attach(top, a, flags=MODES[upper])
        for asked, request in MODES.items():
            results[upper, nearer, asked] = outcome(attach, below, b, flags=request)
            if not results[upper, nearer, asked]:
                detach(below, b)
        results[upper, nearer, "link"] = outcome(link, below, b)
    assert results == {
        (upper, nearer, asked): "EPERM" if (nearer or upper) == "NONE" else ""
        for upper, nearer, asked in product((*MODES, ""), (*MODES, ""), (*MODES, "link"))
    }


def test_a_mode_is_chosen_anew_when_the_list_is_empty(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-035, -037, -042."""
    a = cgroup_skb()
    seen = []
    for mode in (MULTI, NONE, OVERRIDE, MULTI):
        attach(group, a, flags=mode)
        seen.append(query(group).attach_flags)
        detach(group, a)
        assert query(group).attach_flags == 0
    with link(group, a):
        seen.append(query(group).attach_flags)
    attach(group, a, flags=OVERRIDE)
    assert seen == [MULTI, NONE, OVERRIDE, MULTI, MULTI]


def test_an_override_below_hides_what_is_above_and_multi_does_not(
    group: Cgroup, cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-047, MPROG-CGROUP-008: five cgroups, alternating modes, as each is emptied from below."""
    modes = (MULTI, OVERRIDE, MULTI, OVERRIDE, NONE)
    one, two, three, four, five = progs = [cgroup_skb() for _ in modes]
    extra = cgroup_skb()
    chain = [group]
    while len(chain) < len(modes):
        chain.append(chain[-1].child("next"))
    for there, prog, mode in zip(chain, progs, modes, strict=True):
        attach(there, prog, flags=mode)
    attach(group, extra, flags=MULTI)

    def effective() -> list[int]:
        return query(chain[-1], flags=EFFECTIVE).prog_ids

    assert effective() == ids(five, three, one, extra)
    detach(chain[4], CLOSED)
    assert effective() == ids(four, three, one, extra)
    detach(chain[2], three)
    assert effective() == ids(four, one, extra)
    detach(chain[3], CLOSED)
    assert effective() == ids(two, one, extra)
    detach(chain[1], CLOSED)
    assert effective() == ids(one, extra)


def test_without_multi_a_detach_takes_the_program_whatever_it_names(
    group: Cgroup, cgroup_skb: LoadCgroupSkb, sched_cls: LoadSchedCls
) -> None:
    """MPROG-CGROUP-031, -034: no program, a stranger, one of another type, a closed one."""
    a, stranger, foreign = cgroup_skb(), cgroup_skb(), sched_cls()
    for mode, named in product((NONE, OVERRIDE), (None, a, stranger, foreign, CLOSED)):
        attach(group, a, flags=mode)
        detach(group, named)
        assert query(group).count == 0
        with refused(errno.ENOENT):
            detach(group, named)


# MPROG-CGROUP-030, -031, -033: of `A B*`, D is a stranger; pairs of mistakes are decided by the first
DETACHES: dict[str, tuple[int, Callable[[Cgroup, dict[str, Prog]], object]]] = {
    "flags": (errno.EINVAL, lambda g, p: detach(g, p["a"], flags=MULTI)),
    "flags, closed target": (errno.EINVAL, lambda g, p: detach(CLOSED, p["a"], flags=AFTER)),
    "anchor": (errno.EINVAL, lambda g, p: detach(g, p["a"], relative=p["b"])),
    "closed target": (errno.EBADF, lambda g, p: detach(CLOSED, p["a"])),
    "closed target and program": (errno.EBADF, lambda g, p: detach(CLOSED, CLOSED)),
    "no program": (errno.EINVAL, lambda g, p: detach(g)),
    "closed program": (errno.EINVAL, lambda g, p: detach(g, CLOSED)),
    "program of another type": (errno.EINVAL, lambda g, p: detach(g, p["cls"])),
    "stranger": (errno.ENOENT, lambda g, p: detach(g, p["d"])),
    "what a link owns": (errno.ENOENT, lambda g, p: detach(g, p["b"])),
}
STALE_DETACHES: dict[str, tuple[int, Callable[[Cgroup, dict[str, Prog]], object]]] = {
    "stale": (errno.ESTALE, lambda g, p: detach(g, p["a"], expected_revision=1)),
    "stale, closed target": (errno.EBADF, lambda g, p: detach(CLOSED, p["a"], expected_revision=1)),
    "stale, no program": (errno.ESTALE, lambda g, p: detach(g, expected_revision=1)),
    "stale, stranger": (errno.ESTALE, lambda g, p: detach(g, p["d"], expected_revision=1)),
    "stale, flags": (errno.EINVAL, lambda g, p: detach(g, p["a"], flags=MULTI, expected_revision=1)),
}


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(DETACHES, id="plain"),
        pytest.param(STALE_DETACHES, id="revision", marks=pytest.mark.requires("cgroup_mprog")),
    ],
)
def test_a_refused_detach_changes_nothing(
    group: Cgroup,
    cgroup_skb: LoadCgroupSkb,
    sched_cls: LoadSchedCls,
    cases: dict[str, tuple[int, Callable[[Cgroup, dict[str, Prog]], object]]],
) -> None:
    """MPROG-CGROUP-030 to -033: a program that a link owns is not "busy", it is just not there."""
    progs = {name: cgroup_skb() for name in "abd"} | {"cls": sched_cls()}
    attach(group, progs["a"], flags=MULTI)
    with link(group, progs["b"]):
        before = query(group)
        found = {name: outcome(call, group, progs) for name, (_, call) in cases.items()}
        assert found == {name: errno_name(number) for name, (number, _) in cases.items()}
        assert query(group) == before


@pytest.mark.requires("cgroup_mprog")
def test_an_empty_list_still_looks_at_the_revision(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-032, -034, -035, -041: it never starts anew."""
    a = cgroup_skb()
    with refused(errno.ESTALE):
        detach(group, a, expected_revision=2)
    with refused(errno.ENOENT):
        detach(group, a, expected_revision=1)
    attach(group, a, flags=MULTI, expected_revision=1)
    detach(group, a, expected_revision=2)
    with refused(errno.ESTALE):
        attach(group, a, expected_revision=1)
    with refused(errno.ENOENT):
        detach(group, expected_revision=3)
    assert query(group).revision == 3


def test_a_list_keeps_its_programs_until_they_are_detached(group: Cgroup, cgroup_skb: LoadCgroupSkb) -> None:
    """MPROG-CGROUP-020, -033, -034: the list's reference is all that a closed program has."""
    kept = []
    for mode in (NONE, MULTI):
        prog = cgroup_skb()
        there = group.child(str(mode))
        attach(there, prog, flags=mode)
        kept.append(prog.id)
        prog.close()
        assert kept[-1] in Prog.ids()
        with Prog.from_id(kept[-1]) as again:
            detach(there, again)
    wait_until(lambda: not set(kept) & set(Prog.ids()), timeout=2, what="the detached programs to go")
