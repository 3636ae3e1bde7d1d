# SPDX-License-Identifier: MIT
"""A family of small programs, drawn by a seed, that make, find, exchange and release objects: the verifier takes the
whole ones, which then run clean, and refuses each that loses or doubles a reference.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    call,
    ja,
    jne,
    jset,
    label,
    mov,
    r0,
    r1,
    r2,
    r6,
    r7,
    r8,
    r9,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import BpfError
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.kfuncs import Kfuncs, value_of
from scenarios.kptr.owning_map import OWNED, owning_map

SEED, PROGRAMS, STEPS = 20261120, 40, 12
HANDS = (r7, r8, r9)
"""Registers that hold an object or NULL; which of them do is known at each step."""


@dataclass
class Draft:
    """A program in the making: its code, what its hands hold, and whether it is to be spoiled at a release."""

    kfuncs: Kfuncs
    draw: random.Random
    items: list[Item] = field(default_factory=list)
    full: set[Reg] = field(default_factory=set)
    labels: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))
    releases: int = 0
    lost: int | None = None
    """The number of the release that is left out."""
    doubled: int | None = None
    """The number of the release that is made twice."""

    def step(self) -> None:
        """Do one thing that the hands allow."""
        empty = [hand for hand in HANDS if hand not in self.full]
        moves = [self.branch]
        if empty:
            moves += [
                lambda: self.acquire(self.draw.choice(empty)),
                lambda: self.take(self.draw.choice(empty)),
            ]
        if self.full:
            some = self.draw.choice(sorted(self.full))
            moves += [lambda: self.release(some), lambda: self.give(some)]
        self.draw.choice(moves)()

    def acquire(self, hand: Reg) -> None:
        """A new object, or a reference to a static one."""
        kfunc, id = self.draw.choice([("kr_obj_new", 1), ("kr_obj_find", 2)])
        self.items += [mov(r1, id), self.kfuncs.call(kfunc), mov(hand, r0)]
        self._or_leave(hand)

    def take(self, hand: Reg) -> None:
        """What is in the map."""
        self.items += [mov(r2, 0), self._exchange(), mov(hand, r0)]
        self._or_leave(hand)

    def give(self, hand: Reg) -> None:
        """An object to the map; what comes out takes its place in the hand."""
        self.items += [mov(r2, hand), self._exchange(), mov(hand, r0)]
        self.full.discard(hand)
        self._or_leave(hand)

    def release(self, hand: Reg) -> None:
        """Let an object go."""
        number, self.releases = self.releases, self.releases + 1
        times = {self.lost: 0, self.doubled: 2}.get(number, 1)
        self.items += [[mov(r1, hand), self.kfuncs.call("kr_obj_release")] for _ in range(times)]
        self.full.discard(hand)

    def branch(self) -> None:
        """Two ways to the same end."""
        here = f"joined_{next(self.labels)}"
        self.items += [
            call(uapi.BPF_FUNC_get_prandom_u32),
            jset(r0, 1, here),
            mov(r0, 0),
            label(here),
        ]

    def finish(self) -> Item:
        """Let go of all that is held; what the program is."""
        for hand in sorted(self.full):
            self.release(hand)
        return self.items

    def _exchange(self) -> Item:
        return [mov(r1, r6), add(r1, OWNED), call(uapi.BPF_FUNC_kptr_xchg)]

    def _or_leave(self, hand: Reg) -> None:
        """The hand is full; where it is not, the others let go of what they hold and the program ends."""
        here = f"full_{next(self.labels)}"
        others = [[mov(r1, each), self.kfuncs.call("kr_obj_release")] for each in sorted(self.full)]
        self.items += [jne(hand, 0, here), others, ja("out"), label(here)]
        self.full.add(hand)


def drawn(kfuncs: Kfuncs, seed: int, *, lost: int | None = None, doubled: int | None = None) -> Draft:
    """The program of a seed, whole or spoiled at one of its releases."""
    draft = Draft(kfuncs, random.Random(seed), lost=lost, doubled=doubled)
    draft.acquire(HANDS[0])
    for _ in range(STEPS):
        draft.step()
    draft.finish()
    return draft


@pytest.fixture
def map(kr_kptr: KrKptr) -> Iterator[Map]:
    with owning_map("kr_obj") as map:
        yield map


def test_whole_programs_run_clean_and_spoiled_ones_are_refused(kr_kptr: KrKptr, map: Map) -> None:
    """KPTR-LAW-007, -001, -002, KPTR-XCHG-015, -017, KPTR-SEED-001, -002: exchange is the only way in and out."""
    kfuncs, wrong = Kfuncs(), []
    for seed in range(SEED, SEED + PROGRAMS):
        whole = drawn(kfuncs, seed)
        with kfuncs.load(value_of(map), whole.items) as prog:
            prog.test_run(bytes(64), repeat=4)
        held = kr_kptr.count("live") + kr_kptr.static_refs(2)
        if held > 1:
            wrong.append(f"seed {seed}: {held} references are held, the map has room for one")

        spoiled = random.Random(-seed).randrange(whole.releases)
        for says, draft in (
            ("Unreleased reference", drawn(kfuncs, seed, lost=spoiled)),
            ("must point to|expects ref|R1 !read_ok|arg#0", drawn(kfuncs, seed, doubled=spoiled)),
        ):
            try:
                kfuncs.load(value_of(map), draft.items).close()
            except BpfError as error:
                if not re.search(says, error.log):
                    wrong.append(f"seed {seed}, release {spoiled}: {error.log.splitlines()[-3:]}")
            else:
                wrong.append(f"seed {seed}, release {spoiled}: accepted, though {says!r} is due")
    assert not wrong, "\n".join(wrong)
