# SPDX-License-Identifier: MIT
"""Random calls for threads that race in the guest, and the check of what they saw against the model."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_REPLACE,
)
from harness.guest.mprog_racers import SEEN, SLOT, YOUNGEST
from harness.modelcheck.facility import from_json
from harness.modelcheck.history import Answer, Frame, Info, Operation, in_order
from harness.modelcheck.linearise import Contradiction, Explanation, explain
from harness.modelcheck.mprog_comparison import Names, view_of
from harness.modelcheck.mprog_listing import KINDS
from harness.modelcheck.timeline import shortened, told
from harness.oracle import mprog
from harness.oracle.calls import Call, Close
from harness.oracle.families import HOOKS, Features
from harness.oracle.mprog_calls import (
    AddQdisc,
    Attach,
    DeleteQdisc,
    Detach,
    Fill,
    LinkCreate,
    LinkDetach,
    LinkUpdate,
    Query,
)
from harness.oracle.objects import PROGRAMS
from harness.oracle.world import LinkInfo, World

if TYPE_CHECKING:
    from harness.vmfixture import Vm

RACE = "harness.guest.mprog_racers:race"
RACE_SECONDS = 30.0
THREADS = 3
CALLS = 150

# The lists that one race is about. No frames pass through "other": it is filled first.
STAGES: tuple[tuple[str, ...], ...] = (("in",), ("in", "out"), ("primary",), ("in",), ("group",), ("other",))
FULL = "other"
NEARLY_FULL = mprog.CAPACITY - 2
FEWEST_PROGRAMS = 2  # of those that come and go: lists shall be empty now and then, too

_OPS = (
    *("attach",) * 10,
    *("detach",) * 6,
    *("link",) * 6,
    *("update",) * 5,
    *("close",) * 3,
    *("link_detach",) * 2,
    *("query",) * 8,
)
# No link is refused because its program is there already: MPROG-CGROUP-021.
_CGROUP_OPS = (*_OPS, *("close",) * 5, *("link_detach",) * 5, *("detach",) * 5)
_PLACES = (*(0,) * 4, *(BPF_F_BEFORE, BPF_F_AFTER) * 3, BPF_F_BEFORE | BPF_F_AFTER)
_NAMINGS = (0, 0, BPF_F_ID, BPF_F_LINK, BPF_F_LINK | BPF_F_ID)


@dataclass(frozen=True)
class Race:
    """What each thread shall do; names and revisions may be left open (harness.guest.mprog_racers:Memory)."""

    hooks: tuple[str, ...]
    prelude: tuple[Call, ...]
    threads: tuple[tuple[Call, ...], ...]

    def request(self) -> dict[str, Any]:
        """The arguments of harness.guest.mprog_racers:race."""
        types = {World().family(hook).prog_type for hook in self.hooks}
        return {
            "hooks": {name: (HOOKS[name].target, HOOKS[name].attach_number) for name in self.hooks},
            "progs": {name: type for name, type in PROGRAMS.items() if type in types},
            "prelude": [call.to_json() for call in self.prelude],
            "threads": [[call.to_json() for call in calls] for calls in self.threads],
        }


def races(features: Features, seed: int, *, calls: int = CALLS) -> Iterator[Race]:
    """Random races without end, of so many calls per thread, for a kernel with these features; the same seed gives the
    same ones."""
    number = 0
    while True:
        random = Random(f"race {seed} {number}")
        hooks = STAGES[number % len(STAGES)]
        number += 1
        if (HOOKS[hooks[0]].family == "netkit" and not features.netkit) or (
            HOOKS[hooks[0]].family == "cgroup" and not features.cgroup_mprog
        ):
            continue
        prelude = tuple(Fill(hook, NEARLY_FULL) for hook in hooks if hook == FULL)
        type = World(features).family(hooks[0]).prog_type
        progs = [name for name in PROGRAMS if PROGRAMS[name] == type]
        progs = random.sample(progs, random.randint(FEWEST_PROGRAMS, len(progs)))
        threads = [_Drawer(random, hooks, progs, thread) for thread in range(THREADS)]
        yield Race(hooks, prelude, tuple(tuple(drawer.call() for _ in range(calls)) for drawer in threads))


@dataclass
class _Drawer:
    """Draws the calls of one thread, which can't know what the list will be like."""

    random: Random
    hooks: Sequence[str]
    progs: Sequence[str]
    thread: int
    links: int = 0
    clsact: bool = False

    def __post_init__(self) -> None:
        self.cgroup = HOOKS[self.hooks[0]].family == "cgroup"
        # What a delete without a qdisc returns depends on whether there ever was one: one thread knows. And while it
        # comes or goes, what the device sends is lost (net/sched/sch_api.c:qdisc_graft deactivates the device).
        self.qdisc = tuple(self.hooks) == ("in",) and self.thread == 0

    def pick(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def call(self) -> Call:
        if self.qdisc and self.chance(15):
            self.clsact = not self.clsact
            kind = AddQdisc if self.clsact else DeleteQdisc
            return kind("d0", "clsact")
        hook = self.pick(self.hooks)
        match self.pick(_CGROUP_OPS if self.cgroup else _OPS):
            case "attach":
                return self._attach(hook)
            case "detach":
                return self._detach(hook)
            case "link":
                self.links += 1
                flags, anchor = self._place(link=True)
                name = f"t{self.thread}l{self.links}"
                return LinkCreate(name, hook, self.pick(self.progs), flags, anchor, self._revision())
            case "update":
                return self._update()
            case "close":
                return Close(self._link())
            case "link_detach":
                return LinkDetach(self._link())
        return Query(hook)

    def _attach(self, hook: str) -> Attach:
        prog = self.pick(self.progs)
        mode = BPF_F_ALLOW_MULTI if self.cgroup else 0
        if self.chance(4):
            flags, anchor = (0, None) if self.cgroup or not self.chance(4) else self._place()
            replaced = self._slot() if self.chance(2) else self.pick(self.progs)
            return Attach(hook, prog, mode | flags | BPF_F_REPLACE, anchor, replaced, self._revision())
        flags, anchor = self._place()
        return Attach(hook, prog, mode | flags, anchor, revision=self._revision())

    def _detach(self, hook: str) -> Detach:
        prog = self.pick((None, self._slot(), self._slot(), self.pick(self.progs)))
        if self.cgroup:
            return Detach(hook, prog or self._slot(), revision=self._revision())
        flags, anchor = self._place() if self.chance(2) else (0, None)
        return Detach(hook, prog, flags, anchor, self._revision())

    def _update(self) -> LinkUpdate:
        if self.chance(3):
            return LinkUpdate(self._link(), self.pick(self.progs), BPF_F_REPLACE, self.pick(self.progs))
        return LinkUpdate(self._link(), self.pick(self.progs))

    def _place(self, *, link: bool = False) -> tuple[int, str | None]:
        flags = self.pick(_PLACES)
        if not flags or self.chance(3):
            return flags, None
        if self.cgroup:  # MPROG-CGROUP-015
            naming = self.pick((BPF_F_LINK, BPF_F_LINK | BPF_F_ID) if link else (0, BPF_F_ID))
        else:
            naming = self.pick(_NAMINGS)
        return flags | naming, self._link() if naming & BPF_F_LINK else self._slot()

    def _slot(self) -> str:
        return f"{SLOT}{self.random.randrange(8)}"

    def _link(self) -> str:
        return f"{YOUNGEST}{min(self.random.randrange(4), self.random.randrange(6))}"

    def _revision(self) -> int:
        return SEEN if self.chance(4) else 0


@dataclass
class RaceFigures:
    """How much was checked: races, calls in them, pairs of calls of different threads that overlapped, frames that
    met programs; seconds in all, in which threads raced, and in which orders were looked for."""

    races: int = 0
    operations: int = 0
    succeeded: int = 0
    overlaps: int = 0
    frames: int = 0
    seconds: float = 0.0
    guest_seconds: float = 0.0
    search_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second, all included."""
        return self.operations / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        racing = self.operations / self.guest_seconds if self.guest_seconds else 0.0
        search = self.operations / self.search_seconds if self.search_seconds else 0.0
        return (
            f"{self.races} races, {self.operations} operations ({self.succeeded} succeeded), {self.overlaps} pairs "
            f"of overlapping calls, {self.frames} frames that met programs; {self.rate:.0f} operations a second "
            f"({racing:.0f} while threads race, {search:.0f} while orders are looked for)"
        )


@dataclass
class Track:
    """The machine on which threads race."""

    vm: Vm
    features: Features
    figures: RaceFigures = field(default_factory=RaceFigures)
    begin: float = 0.0

    def run(self, race: Race) -> None:
        """Let the threads race, and check what they saw. Raises AssertionError with what no model can explain."""
        __tracebackhide__ = True
        self.begin = self.begin or time.monotonic()
        told = self.vm.call(RACE, **race.request(), seconds=RACE_SECONDS)
        operations = history(told)
        calls = [each for each in operations if not isinstance(each.call, (Frame, Info))]
        self.figures.races += 1
        self.figures.operations += len(calls)
        self.figures.succeeded += sum(not each.answer.errno for each in calls)
        self.figures.overlaps += overlaps(calls)
        self.figures.frames += sum(
            isinstance(each.call, Frame) and bool(each.answer.seen) for each in operations
        )
        self.figures.guest_seconds += told["seconds"]
        begin = time.monotonic()
        check(operations, World(self.features))
        self.figures.search_seconds += time.monotonic() - begin
        check_end(told)
        assert not self.vm.dirty, "the race left something in the guest"
        self.figures.seconds = time.monotonic() - self.begin


def history(told: Mapping[str, Any]) -> list[Operation]:
    """What harness.guest.mprog_racers:race has told, as operations."""
    rows = told["operations"]
    infos = [Info(call["link"]) if call["op"] == "info" else None for _, call, *_ in rows]
    calls = [info or from_json([call], KINDS)[0] for info, (_, call, *_) in zip(infos, rows, strict=True)]
    names = Names([call for call in calls if not isinstance(call, Info)], told["ids"])
    operations = []
    for call, (thread, _, invoked, returned, error, raw) in zip(calls, rows, strict=True):
        seen: Any = None
        if isinstance(call, Info):
            seen = LinkInfo(names.prog(raw[0]), raw[1])
        elif raw is not None and not error:
            seen = view_of(raw, names)
        operations.append(Operation(thread, call, invoked, returned, Answer(error, seen)))
    operations += [
        Operation("frames", Frame(hook), begin, end, Answer(seen=tuple(met)))
        for hook, begin, end, met in told["frames"]
    ]
    return in_order(operations)


def overlaps(operations: Sequence[Operation]) -> int:
    """How many pairs of operations of different threads were under way at the same time."""
    begins = sorted(each.invoked for each in operations)
    # Each with those that began while it was under way; a thread's own never overlap.
    return sum(
        bisect_right(begins, each.returned) - bisect_right(begins, each.invoked) for each in operations
    )


def check(operations: Sequence[Operation], world: World) -> list[Explanation]:
    """The explanations of the history's parts. Raises AssertionError with a time line when one has none."""
    __tracebackhide__ = True
    found = explain(operations, world)
    if isinstance(found, Contradiction):
        raise AssertionError(told(shortened(found, world)))
    return found


def check_end(told: Mapping[str, Any]) -> None:
    """No frame lost or doubled, and nothing left when lists and links let go. Raises AssertionError."""
    __tracebackhide__ = True
    assert not told["lost"], f"frames that did not arrive, though all programs let them: {told['lost']}"
    assert not told["doubled"], f"frames that arrived twice: {told['doubled']}"
    assert told["alive"] == told["wanted"], (
        f"programs that exist when their descriptors are closed: {told['alive']}; "
        f"lists and links hold {told['wanted']}"
    )
    still = [name for name, (_, attached) in told["defunct"].items() if attached]
    assert not still, f"links that say they are attached though all devices and cgroups are gone: {still}"
    assert not told["left"], f"programs and links that exist when everything is closed: {told['left']}"
