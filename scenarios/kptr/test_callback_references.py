# SPDX-License-Identifier: MIT
"""References across functions: a callback may run any number of times, so that it must end with what it began with."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    call,
    call_label,
    exit_,
    jeq,
    label,
    ld_func,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r10,
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from scenarios.kptr.workshop import Refusal, Workshop, assert_refused, just

pytestmark = [pytest.mark.requires("local_kptr")]


def loop(callback: str) -> Item:
    """Run a callback twice, with the address of the slot at -16 in this function's stack."""
    return [
        mov(r1, 2),
        ld_func(r2, callback),
        mov(r3, r10),
        add(r3, -16),
        mov(r4, 0),
        call(uapi.BPF_FUNC_loop),
    ]


def new(w: Workshop, or_else: str) -> Item:
    """r0 = a new object of kr_kptr."""
    return [mov(r1, 1), w.ours("kr_obj_new"), jeq(r0, 0, or_else)]


def release(w: Workshop, object: Reg = r0) -> Item:
    return [mov(r1, object), w.ours("kr_obj_release")]


DONE: Item = [mov(r0, 0), exit_()]

# What main and its callback do; "inner" is the callback of that.
REFUSED: dict[str, tuple[int, str, Callable[[Workshop], tuple[Item, Item, Item]]]] = {
    "releases_its_callers": (
        EINVAL,
        "Unreleased reference",
        lambda w: ([new(w, "out"), stxdw(r10, -16, r0), loop("outer")], [ldxdw(r1, r2), release(w, r1)], []),
    ),
    "releases_its_callers_which_does_so_too": (
        EINVAL,
        "reference has not been acquired before|must be referenced or trusted|expects referenced PTR_TO_BTF_ID",
        lambda w: (
            [new(w, "out"), mov(r7, r0), stxdw(r10, -16, r0), loop("outer"), release(w, r7)],
            [ldxdw(r1, r2), release(w, r1)],
            [],
        ),
    ),
    "leaks": (EINVAL, "Unreleased reference", lambda w: (loop("outer"), [new(w, "done_outer")], [])),
    "hands_its_own_to_its_caller": (
        EINVAL,
        "Unreleased reference",
        lambda w: (
            [stdw(r10, -16, 0), loop("outer"), ldxdw(r1, r10, -16), jeq(r1, 0, "out"), release(w, r1)],
            [mov(r6, r2), new(w, "done_outer"), stxdw(r6, 0, r0)],
            [],
        ),
    ),
    "keeps_account_but_its_caller_leaks": (
        EINVAL,
        "Unreleased reference",
        lambda w: ([new(w, "out"), loop("outer")], [new(w, "done_outer"), release(w)], []),
    ),
    "of_callback_releases_its_callers": (
        EINVAL,
        "Unreleased reference",
        lambda w: (
            loop("outer"),
            [new(w, "done_outer"), stxdw(r10, -16, r0), loop("inner")],
            [ldxdw(r1, r2), release(w, r1)],
        ),
    ),
    "of_callback_leaks_while_its_caller_owns": (
        EINVAL,
        "Unreleased reference",
        lambda w: (
            loop("outer"),
            [new(w, "done_outer"), stxdw(r10, -16, r0), loop("inner"), ldxdw(r1, r10, -16), release(w, r1)],
            [new(w, "done_inner")],
        ),
    ),
    # the insn is the callback's: what main owns, it makes by the first two
    "leaks_behind_a_callback_of_its_own_while_its_caller_owns": (
        EINVAL,
        r"Unreleased reference id=\d+ alloc_insn=\d\d",
        lambda w: (
            [new(w, "out"), mov(r7, r0), loop("outer"), release(w, r7)],
            [new(w, "done_outer"), loop("inner")],
            [],
        ),
    ),
}
ACCEPTED: dict[str, Callable[[Workshop], tuple[Item, Item, Item]]] = {
    "releases_its_own": lambda w: (loop("outer"), [new(w, "done_outer"), release(w)], []),
    "leaves_its_callers_alone": lambda w: (
        [new(w, "out"), stxdw(r10, -16, r0), loop("outer"), ldxdw(r1, r10, -16), release(w, r1)],
        [new(w, "done_outer"), release(w)],
        [],
    ),
    "has_a_callback_that_releases_its_own": lambda w: (
        loop("outer"),
        [new(w, "done_outer"), stxdw(r10, -16, r0), loop("inner"), ldxdw(r1, r10, -16), release(w, r1)],
        [new(w, "done_inner"), release(w)],
    ),
}


def parts(outer: Item, inner: Item) -> dict[str, Item]:
    return {"outer": [outer, label("done_outer"), DONE], "inner": [inner, label("done_inner"), DONE]}


def test_callback_that_changes_who_owns_what_is_refused(workshop: Workshop, store: Map) -> None:
    """KPTR-XCHG-015: it neither takes from its caller nor gives, nor leaves anything behind."""
    refusals = {}
    for name, (errno, says, functions) in REFUSED.items():
        main, outer, inner = functions(workshop)
        refusals[name] = Refusal(errno, says, just(main), parts(outer, inner))
    assert_refused(workshop, store, refusals)


def test_callback_that_keeps_account_loads(workshop: Workshop) -> None:
    """KPTR-XCHG-015: what the others would be if whole."""
    for functions in ACCEPTED.values():
        main, outer, inner = functions(workshop)
        workshop.load(main, parts=parts(outer, inner)).close()


def test_called_function_may_hand_its_own_to_its_caller(workshop: Workshop, store: Map) -> None:
    """KPTR-XCHG-015: which then has to release it."""
    w = workshop
    makes: dict[str, Item] = {"part": [mov(r6, r1), new(w, "none"), stxdw(r6, 0, r0), label("none"), DONE]}
    main: Item = [stdw(r10, -16, 0), mov(r1, r10), add(r1, -16), call_label("part")]

    w.load(main, ldxdw(r1, r10, -16), jeq(r1, 0, "out"), release(w, r1), parts=makes).close()
    with refused(EINVAL, log="Unreleased reference"):
        w.load(main, parts=makes).close()
