# SPDX-License-Identifier: MIT
"""One long story of requests, good and bad, for a list of tcx or netkit, and what is to be seen on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from harness.guest.bpf import netkit, tcx
from harness.guest.bpf.info import LinkInfo
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import QueryResult
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_REPLACE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.net import VethPair
from scenarios.mprog.conftest import Journal

LETTERS = "abcdefghijo"


PLACES = {
    "tcx ingress": (tcx, BPF_TCX_INGRESS, BPF_TCX_EGRESS),
    "tcx egress": (tcx, BPF_TCX_EGRESS, BPF_TCX_INGRESS),
    "netkit primary": (netkit, BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER),
    "netkit peer": (netkit, BPF_NETKIT_PEER, BPF_NETKIT_PRIMARY),
}


@dataclass(frozen=True)
class Sight:
    """All that can be seen of a list, of the one beside it, and of the links of the story."""

    view: QueryResult
    beside: QueryResult
    links: dict[str, LinkInfo]

    @property
    def elements(self) -> list[tuple[str, int]]:
        """What each slot holds by itself: a link, whatever program it has, or a direct program."""
        pairs = zip(self.view.prog_ids, self.view.link_ids, strict=True)
        return [("link", link) if link else ("prog", prog) for prog, link in pairs]


class Stage:
    """Carries out the story's requests; programs and links are named by letters, `c*` is the link made for c."""

    def __init__(self, family: str, place: VethPair, journal: Journal, holder: ExitStack) -> None:
        self.calls, self.side, self.other = PLACES[family]
        self.dev = place.b if self.calls is tcx else place.a
        # What comes in at end b was sent into end a, the primary of a netkit pair.
        self.way = place if self.side in (BPF_TCX_INGRESS, BPF_NETKIT_PRIMARY) else place.flipped
        self._journal = journal
        self._holder = holder
        self.progs: dict[str, Prog] = {}
        self.links: dict[str, Link] = {}
        self.calls.attach(self.dev, self.prog("o"), attach_type=self.other)

    def prog(self, letter: str) -> Prog:
        """The program of this name, loaded when first named."""
        if letter not in self.progs:
            self.progs[letter] = self._journal.prog(LETTERS.index(letter) + 1)
        return self.progs[letter]

    def anchor(self, name: str | None) -> Prog | Link | None:
        """The link `c*`, the program `c`, or nothing."""
        if name is None:
            return None
        return self.links[name] if name.endswith("*") else self.prog(name)

    def attach(
        self, letter: str, flags: int = 0, by: str | None = None, replace: str = "", revision: int = 0
    ) -> None:
        self.calls.attach(
            self.dev,
            self.prog(letter),
            attach_type=self.side,
            flags=flags,
            relative=self.anchor(by),
            replace=self.prog(replace) if replace else None,
            expected_revision=revision,
        )

    def detach(self, letter: str = "", flags: int = 0, by: str | None = None) -> None:
        self.calls.detach(
            self.dev,
            self.prog(letter) if letter else None,
            attach_type=self.side,
            flags=flags,
            relative=self.anchor(by),
        )

    def link(self, letter: str, flags: int = 0, by: str | None = None) -> None:
        link = self.calls.link(
            self.dev, self.prog(letter), attach_type=self.side, flags=flags, relative=self.anchor(by)
        )
        self.links[f"{letter}*"] = self._holder.enter_context(link)

    def update(self, link: str, letter: str, old: str = "") -> None:
        self.links[link].update(self.prog(letter), old=self.prog(old) if old else None)

    def unlink(self, link: str) -> None:
        self.links[link].detach()

    def close(self, link: str) -> None:
        self.links.pop(link).close()

    def look(self) -> Sight:
        """What is to be seen now."""
        view, beside = (self.calls.query(self.dev, attach_type=side) for side in (self.side, self.other))
        return Sight(view, beside, {name: link.info() for name, link in self.links.items()})

    def shown(self) -> str:
        """The list as the story writes it."""
        view = self.calls.query(self.dev, attach_type=self.side)
        letter = {prog.id: name for name, prog in self.progs.items()}
        pairs = zip(view.prog_ids, view.link_ids, strict=True)
        return " ".join(letter[prog] + ("*" if link else "") for prog, link in pairs)


Request = Callable[[Stage], None]

# Each request and the list behind it, or why it is refused. A letter with a star is a program that a link owns.
STORY: list[tuple[str, Request]] = [
    ("a", lambda s: s.attach("a")),
    ("a b", lambda s: s.attach("b")),
    ("a b c*", lambda s: s.link("c")),
    ("a b d* c*", lambda s: s.link("d", BPF_F_BEFORE, by="c*")),
    ("a b d* e c*", lambda s: s.attach("e", BPF_F_AFTER, by="d")),
    ("EEXIST", lambda s: s.attach("a")),
    ("EEXIST", lambda s: s.attach("d")),
    ("EEXIST", lambda s: s.link("b")),
    ("f a b d* e c*", lambda s: s.attach("f", BPF_F_BEFORE)),
    ("ENOENT", lambda s: s.attach("g", BPF_F_BEFORE, by="h")),
    ("ERANGE", lambda s: s.attach("g", BPF_F_BEFORE | BPF_F_AFTER)),
    ("EINVAL", lambda s: s.attach("g", by="a")),
    ("EBUSY", lambda s: s.attach("g", replace="d")),
    ("ENOENT", lambda s: s.attach("g", replace="h")),
    ("ERANGE", lambda s: s.attach("g", BPF_F_BEFORE, by="c*", replace="a")),
    ("f g b d* e c*", lambda s: s.attach("g", replace="a")),
    ("f g h d* e c*", lambda s: s.attach("h", BPF_F_BEFORE, by="d*", replace="b")),
    ("ESTALE", lambda s: s.attach("i", revision=1)),
    ("f g h i* e c*", lambda s: s.update("d*", "i")),
    ("f g h i* e c*", lambda s: s.update("d*", "i")),
    ("EEXIST", lambda s: s.update("d*", "g")),
    ("EPERM", lambda s: s.update("d*", "a", old="h")),
    ("EBUSY", lambda s: s.detach("i")),
    ("EBUSY", lambda s: s.detach()),
    ("ENOENT", lambda s: s.detach("a")),
    ("ERANGE", lambda s: s.detach("g", BPF_F_BEFORE, by="e")),
    ("f h i* e c*", lambda s: s.detach("g")),
    ("f i* e c*", lambda s: s.detach(flags=BPF_F_BEFORE, by="d*")),
    ("i* e c*", lambda s: s.detach(flags=BPF_F_BEFORE)),
    ("EINVAL", lambda s: s.detach("e", BPF_F_REPLACE)),
    ("i* e", lambda s: s.unlink("c*")),
    ("i* e", lambda s: s.unlink("c*")),
    ("ENOLINK", lambda s: s.update("c*", "b")),
    ("i* e a", lambda s: s.attach("a", BPF_F_AFTER)),
    ("e a", lambda s: s.close("d*")),
    ("e", lambda s: s.detach()),
    ("j* e", lambda s: s.link("j", BPF_F_BEFORE | BPF_F_ID, by="e")),
]


@dataclass(frozen=True)
class Step:
    """A request of the story, its errno, and what was to be seen before and after."""

    refusal: int
    before: Sight
    after: Sight


def told(stage: Stage) -> Iterator[tuple[str, Step]]:
    """Tell the story: for each request what the story says becomes of it, and what did."""
    before = stage.look()
    for result, request in STORY:
        refusal = 0
        try:
            request(stage)
        except BpfError as error:
            refusal = error.errno or 0
        after = stage.look()
        yield result, Step(refusal, before, after)
        before = after
