# SPDX-License-Identifier: MIT
"""One ordered list of programs of a cgroup: kernel/bpf/cgroup.c in terms of the spec.

Not the engine of `harness.oracle.mprog`, and it answers differently. The checks stand in the kernel's order.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_ALLOW_OVERRIDE,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_PREORDER,
    BPF_F_REPLACE,
)
from harness.oracle.mprog import FIRST_REVISION, View
from harness.oracle.refusal import Refused

# MPROG-ABI-005
CAPACITY = 64
MODE = BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI


@dataclass(frozen=True)
class Slot:
    """A program, its owner (None: attached directly) and whether it runs before ordinary ones."""

    prog: str
    link: str | None
    preorder: bool


@dataclass(frozen=True)
class CgroupList:
    """The list of one cgroup and attach type. `mode` holds the OVERRIDE and MULTI bits of its elements."""

    slots: tuple[Slot, ...] = ()
    mode: int = 0
    revision: int = FIRST_REVISION

    def changed(self, slots: Sequence[Slot], mode: int) -> CgroupList:
        """MPROG-CGROUP-041: one more each time. MPROG-CGROUP-035: the mode goes with the last element."""
        return CgroupList(tuple(slots), mode if slots else 0, self.revision + 1)


# Looks the anchor up when its turn comes: (program, None) or (None, link).
Anchor = Callable[[], tuple[str | None, str | None]]


def attach(
    found: CgroupList,
    ancestors: Sequence[CgroupList],
    prog: str,
    link: str | None,
    flags: int,
    *,
    anchor: Anchor,
    anchored: bool,
    replaced: str | None,
    revision: int,
) -> CgroupList:
    """BPF_PROG_ATTACH, and with a `link` BPF_LINK_CREATE (whose caller has set MULTI).

    `ancestors` go from the parent up; `anchored` says whether the request names an anchor at all.
    """
    override, multi = flags & BPF_F_ALLOW_OVERRIDE, flags & BPF_F_ALLOW_MULTI
    if (override and multi) or (flags & BPF_F_REPLACE and not multi):
        raise Refused(errno.EINVAL, "MPROG-CGROUP-005")
    if flags & BPF_F_REPLACE and flags & (BPF_F_BEFORE | BPF_F_AFTER):
        raise Refused(errno.EINVAL, "MPROG-CGROUP-006")
    check_revision(found, revision, "MPROG-CGROUP-007")
    if not _ancestors_allow(ancestors):
        raise Refused(errno.EPERM, "MPROG-CGROUP-008")
    if found.slots and found.mode != flags & MODE:
        raise Refused(errno.EPERM, "MPROG-CGROUP-037" if link else "MPROG-CGROUP-009")
    if len(found.slots) >= CAPACITY:
        raise Refused(errno.E2BIG, "MPROG-CGROUP-010")  # MPROG-QUIRK-008: a REPLACE, too
    new = Slot(prog, link, bool(flags & BPF_F_PREORDER))
    slots = list(found.slots)
    if not multi and slots:
        return found.changed([new], flags & MODE)  # MPROG-CGROUP-013
    if link is None and any((slot.prog, slot.link) == (prog, None) for slot in slots) and prog != replaced:
        raise Refused(errno.EINVAL, "MPROG-CGROUP-011")  # MPROG-CGROUP-021: link-owned ones do not count
    if flags & BPF_F_REPLACE:
        places = [place for place, slot in enumerate(slots) if (slot.prog, slot.link) == (replaced, None)]
        if not places:
            raise Refused(errno.ENOENT, "MPROG-CGROUP-012")
        slots[places[0]] = new
    else:
        slots.insert(_place(found, new, flags, anchor, anchored), new)  # MPROG-CGROUP-020
    return found.changed(slots, flags & MODE)


def _ancestors_allow(ancestors: Sequence[CgroupList]) -> bool:
    """The nearest ancestor that holds anything, or is in MULTI mode, decides."""
    for above in ancestors:
        if above.mode & BPF_F_ALLOW_MULTI:
            return True
        if above.slots:
            return bool(above.mode & BPF_F_ALLOW_OVERRIDE)
    return True


def _place(found: CgroupList, new: Slot, flags: int, anchor: Anchor, anchored: bool) -> int:
    """Where to insert."""
    before, after = bool(flags & BPF_F_BEFORE), bool(flags & BPF_F_AFTER)
    if anchored:
        if before == after:
            raise Refused(errno.EINVAL, "MPROG-CGROUP-014")
        if bool(flags & BPF_F_LINK) != (new.link is not None):
            raise Refused(errno.EINVAL, "MPROG-CGROUP-015")
    elif found.slots and before and after:
        raise Refused(errno.EINVAL, "MPROG-CGROUP-016")
    if not anchored:
        return 0 if before else len(found.slots)
    prog, link = anchor()
    for place, slot in enumerate(found.slots):
        # MPROG-CGROUP-019: a program anchor matches direct elements only.
        if (link is not None and slot.link == link) or (
            link is None and (slot.prog, slot.link) == (prog, None)
        ):
            if slot.preorder != new.preorder:
                raise Refused(errno.EINVAL, "MPROG-CGROUP-018")
            return place if before else place + 1
    raise Refused(errno.ENOENT, "MPROG-CGROUP-019")


def is_anchored(flags: int, value: bool) -> bool:
    """Whether a request names an anchor: LINK, ID or a number that is not 0. MPROG-CGROUP-014."""
    return bool(flags & (BPF_F_LINK | BPF_F_ID)) or value


def detach(found: CgroupList, prog: str | None, revision: int = 0) -> CgroupList:
    """BPF_PROG_DETACH; `prog` is None for a descriptor of nothing (MPROG-CGROUP-031)."""
    check_revision(found, revision, "MPROG-CGROUP-032")
    if not found.mode & BPF_F_ALLOW_MULTI:
        if not found.slots:
            raise Refused(errno.ENOENT, "MPROG-CGROUP-034")  # and MPROG-CGROUP-035
        return found.changed(found.slots[1:], found.mode)  # whatever was named
    if prog is None:
        raise Refused(errno.EINVAL, "MPROG-CGROUP-033")
    for place, slot in enumerate(found.slots):
        if (slot.prog, slot.link) == (prog, None):
            return found.changed([*found.slots[:place], *found.slots[place + 1 :]], found.mode)
    raise Refused(errno.ENOENT, "MPROG-CGROUP-033")


def release(found: CgroupList, link: str) -> CgroupList:
    """The list without the link's element. MPROG-CGROUP-040."""
    return found.changed([slot for slot in found.slots if slot.link != link], found.mode)


def update(found: CgroupList, link: str, prog: str) -> CgroupList:
    """The link's element with another program. MPROG-CGROUP-039, MPROG-QUIRK-009: the same one counts, too."""
    slots = [Slot(prog, link, slot.preorder) if slot.link == link else slot for slot in found.slots]
    return found.changed(slots, found.mode)


def check_revision(found: CgroupList, expected: int, rule: str) -> None:
    """0 means that it does not matter."""
    if expected not in (0, found.revision):
        raise Refused(errno.ESTALE, rule)


def view(found: CgroupList) -> View:
    """MPROG-CGROUP-042, -046."""
    return View(found.revision, len(found.slots), found.mode, tuple(slot.prog for slot in found.slots), None)


def effective(chain: Sequence[CgroupList]) -> View:
    """What runs, in order: `chain` goes from the cgroup itself up. MPROG-CGROUP-042, -047, -048.

    A list that is not in MULTI mode counts only where nothing below it does.
    """
    early: list[str] = []
    late: list[str] = []
    for level in chain:
        if level.mode & BPF_F_ALLOW_MULTI or not (early or late):
            early[:0] = [slot.prog for slot in level.slots if slot.preorder]
            late += [slot.prog for slot in level.slots if not slot.preorder]
    return View(0, len(early) + len(late), 0, (*early, *late), None)
