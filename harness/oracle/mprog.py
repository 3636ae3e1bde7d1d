# SPDX-License-Identifier: MIT
"""One ordered list of programs at a device, as tcx and netkit have it: kernel/bpf/mprog.c in terms of the spec.

An `Entry` is a value: every function takes one and returns the one after the call, or raises `Refused`. The checks
stand in the kernel's order, so that the first that fails decides the errno. Links are named, programs too; what a
descriptor or id leads to is the business of `harness.oracle.world`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_REPLACE
from harness.oracle.refusal import Refused

# MPROG-ABI-005: an array of 64 of which the last is the terminator.
CAPACITY = 63
FIRST_REVISION = 1


@dataclass(frozen=True)
class Element:
    """A program in the list and the link that owns it; None: it was attached directly."""

    prog: str
    link: str | None = None


@dataclass(frozen=True)
class Entry:
    """The list of one direction of one device. MPROG-REV-001: a new one has revision 1."""

    elements: tuple[Element, ...] = ()
    revision: int = FIRST_REVISION

    def changed(self, elements: Sequence[Element]) -> Entry:
        """MPROG-REV-002, MPROG-LAW-002: each change adds exactly one."""
        return Entry(tuple(elements), self.revision + 1)


# Looks the anchor up when its turn comes (MPROG-ANCHOR-*): a link's is an element with that link; None: none was given.
Anchor = Callable[[], Element | None]


def attach(
    entry: Entry, new: Element, flags: int, anchor: Anchor, replaced: Element | None = None, revision: int = 0
) -> Entry:
    """BPF_PROG_ATTACH (`new` has no link) and BPF_LINK_CREATE; `replaced` is what BPF_F_REPLACE shall put out.

    A link update is this with REPLACE and the link's own element.
    """
    _check_revision(entry, revision, "MPROG-ATTACH-007")
    if any(element.prog == new.prog for element in entry.elements):
        raise Refused(errno.EEXIST, "MPROG-ATTACH-008")
    relative = anchor()
    places = _Places(entry, relative, "MPROG-ATTACH-013", "MPROG-ATTACH-015")
    if flags & BPF_F_REPLACE:
        places.agree(_slot(entry, replaced, "MPROG-ATTACH-010", "MPROG-ATTACH-011"), "")
    elif len(entry.elements) == CAPACITY:
        raise Refused(errno.ERANGE, "MPROG-ATTACH-012")
    if flags & BPF_F_BEFORE:
        places.agree(places.before(), "MPROG-ATTACH-014")  # and -033, -035, -036
    if flags & BPF_F_AFTER:
        places.agree(places.after(), "MPROG-ATTACH-016")  # and -024, -034
    if places.agreed is None:
        if relative is not None or flags:
            raise Refused(errno.EINVAL, "MPROG-ATTACH-017")
        return entry.changed([*entry.elements, new])  # MPROG-ATTACH-019
    slot = places.agreed
    elements = list(entry.elements)
    if flags & BPF_F_REPLACE:
        elements[slot] = new  # MPROG-ATTACH-030
    elif flags & BPF_F_BEFORE:
        elements.insert(slot + 1, new)  # MPROG-ATTACH-020, -022: `slot` is the one in front
    else:
        elements.insert(slot, new)  # MPROG-ATTACH-021, -023
    return entry.changed(elements)


def detach(
    entry: Entry, named: Element | None, flags: int = 0, anchor: Anchor = lambda: None, revision: int = 0
) -> Entry:
    """BPF_PROG_DETACH of a program (`named` without link) or of whatever is there (None), and release of a link."""
    if flags & BPF_F_REPLACE:
        raise Refused(errno.EINVAL, "MPROG-DETACH-007")
    _check_revision(entry, revision, "MPROG-DETACH-008")
    if not entry.elements:
        raise Refused(errno.ENOENT, "MPROG-DETACH-009")
    relative = anchor()
    places = _Places(entry, relative, "MPROG-DETACH-013", "MPROG-DETACH-013")
    if named is not None:
        places.agree(_slot(entry, named, "MPROG-DETACH-011", "MPROG-DETACH-012"), "")
    if flags & BPF_F_BEFORE:
        places.agree(places.before(), "MPROG-DETACH-014")
    if flags & BPF_F_AFTER:
        places.agree(places.after(), "MPROG-DETACH-014")
    slot = places.agreed
    if slot is None:
        if relative is not None or flags:
            raise Refused(errno.EINVAL, "MPROG-DETACH-015")
        slot = len(entry.elements)  # MPROG-DETACH-020
    if slot >= CAPACITY:
        raise Refused(errno.ERANGE, "MPROG-DETACH-016")  # and MPROG-DETACH-026, MPROG-QUIRK-003
    # MPROG-DETACH-023, -024, MPROG-QUIRK-005: in front of the first is the first, behind the last the last.
    slot = min(max(slot, 0), len(entry.elements) - 1)
    if named is None and entry.elements[slot].link is not None:
        raise Refused(errno.EBUSY, "MPROG-DETACH-017")  # and MPROG-LINK-044
    return entry.changed([*entry.elements[:slot], *entry.elements[slot + 1 :]])


def _check_revision(entry: Entry, expected: int, rule: str) -> None:
    # MPROG-REV-005: 0 means that it does not matter.
    if expected not in (0, entry.revision):
        raise Refused(errno.ESTALE, rule)


def _slot(entry: Entry, wanted: Element | None, absent: str, owned: str) -> int:
    """Where exactly this element is; one with the same program and another owner is EBUSY."""
    for slot, element in enumerate(entry.elements):
        if wanted is not None and element.prog == wanted.prog:
            if element.link != wanted.link:
                raise Refused(errno.EBUSY, owned)
            return slot
    raise Refused(errno.ENOENT, absent)


@dataclass
class _Places:
    """The slots that REPLACE, BEFORE and AFTER ask for, each for itself; they have to agree."""

    entry: Entry
    relative: Element | None
    absent_before: str
    absent_after: str
    agreed: int | None = None

    def agree(self, slot: int, rule: str) -> None:
        if self.agreed not in (None, slot):
            raise Refused(errno.ERANGE, rule)
        self.agreed = slot

    def before(self) -> int:
        """The slot in front of the anchor, -1 for the first's and without an anchor."""
        anchor = self._anchor(self.absent_before)
        return -1 if anchor is None else anchor - 1

    def after(self) -> int:
        """The slot behind the anchor; without an anchor that behind the last."""
        anchor = self._anchor(self.absent_after)
        return len(self.entry.elements) if anchor is None else anchor + 1

    def _anchor(self, absent: str) -> int | None:
        if self.relative is None:
            return None
        for slot, element in enumerate(self.entry.elements):
            # MPROG-ANCHOR-009: a program names an element whoever owns it; MPROG-ANCHOR-010: a link only its own.
            if element.prog == self.relative.prog and self.relative.link in (None, element.link):
                return slot
        raise Refused(errno.ENOENT, absent)


@dataclass(frozen=True)
class View:
    """What BPF_PROG_QUERY shows: revision, true number, the mode of a cgroup's list, and the slots in order.

    `links` is None where the kernel lists none (MPROG-CGROUP-046).
    """

    revision: int
    count: int
    attach_flags: int
    progs: tuple[str, ...]
    links: tuple[str | None, ...] | None
    errno: int = 0

    def shortened(self, count: int) -> View:
        """What fits into arrays of so many elements. MPROG-QUERY-006 to -008."""
        if count == 0 or count >= self.count:
            return self if count else replace(self, progs=(), links=self.links and ())
        links = None if self.links is None else self.links[:count]
        return replace(self, progs=self.progs[:count], links=links, errno=errno.ENOSPC)


def view(entry: Entry) -> View:
    """MPROG-QUERY-005, -009."""
    elements = entry.elements
    progs = tuple(element.prog for element in elements)
    return View(entry.revision, len(elements), 0, progs, tuple(element.link for element in elements))
