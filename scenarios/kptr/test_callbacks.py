# SPDX-License-Identifier: MIT
"""A reference stays with the function that got it: what callbacks and subprograms may do about it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    call,
    call_label,
    exit_,
    jeq,
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
from harness.guest.bpf.syscall import BpfError, refused
from scenarios.kptr.workshop import Workshop

pytestmark = [pytest.mark.requires("kptr_untrusted_tag")]


@dataclass(frozen=True)
class Case:
    """A program, a function that it calls, and what the verifier says of them: nothing if they load."""

    main: Item
    part: Item
    says: str = ""


def cases(w: Workshop) -> dict[str, Case]:
    """The table; a slot of the caller's stack is what both can write to."""
    new: Item = [mov(r1, 1), w.ours("kr_obj_new")]
    release = w.ours("kr_obj_release")
    end: Item = [mov(r0, 0), exit_()]
    in_slot: Item = [stdw(r10, -8, 0), mov(r3, r10), add(r3, -8)]
    loop: Item = [mov(r1, 4), ld_func(r2, "part"), mov(r4, 0), call(uapi.BPF_FUNC_loop)]
    owner: Item = [new, jeq(r0, 0, "out"), mov(r7, r0)]
    taking: Item = [mov(r6, r1), new, stxdw(r6, 0, r0), end]
    calling: Item = [stdw(r10, -8, 0), mov(r1, r10), add(r1, -8), call_label("part")]
    lost = "Unreleased reference"
    return {
        "callback keeps account": Case([in_slot, loop], [new, jeq(r0, 0, 2), mov(r1, r0), release, end]),
        "callback loses its own": Case([in_slot, loop], [new, end], lost),
        "callback leaves its own with its caller": Case(
            [in_slot, loop], [mov(r6, r2), new, stxdw(r6, 0, r0), end], lost
        ),
        "callback releases its caller's": Case(
            [owner, stxdw(r10, -8, r7), mov(r3, r10), add(r3, -8), loop, mov(r1, r7), release],
            [ldxdw(r1, r2, 0), release, end],
            "reference has not been acquired before|must point|expects ref|must be referenced",
        ),
        "callback leaves its caller's alone": Case(
            [owner, stxdw(r10, -8, r7), mov(r3, r10), add(r3, -8), loop, mov(r1, r7), release], [end]
        ),
        "caller loses its own behind a loop": Case([owner, in_slot, loop], [end], lost),
        "subprogram hands on its own": Case(
            [calling, ldxdw(r1, r10, -8), jeq(r1, 0, "out"), release], taking
        ),
        "subprogram hands on its own, which is lost": Case(calling, taking, lost),
    }


def test_reference_stays_with_who_got_it(workshop: Workshop) -> None:
    """KPTR-XCHG-015: a callback ends with what it began with; a subprogram may leave a reference to its caller."""
    wrong = []
    for name, case in cases(workshop).items():
        try:
            if case.says:
                with refused(log=case.says):
                    workshop.load(case.main, parts={"part": case.part})
            else:
                workshop.load(case.main, parts={"part": case.part}).close()
        except (AssertionError, BpfError) as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
