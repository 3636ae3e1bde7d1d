# SPDX-License-Identifier: MIT
"""Everything that calls about ordered lists can meet: programs, links, devices, cgroups and their lists.

`World.do` carries out one call and says what the kernel must answer; what comes before the list's own checks (masks of
flags, descriptors, ids, devices) stands here, in the kernel's order, the list's rules in `mprog` and `cgroup_list`.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from harness.guest.bpf.uapi import (
    BPF_F_ALLOW_MULTI,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_QUERY_EFFECTIVE,
    BPF_F_REPLACE,
)
from harness.oracle import cgroup_list, mprog
from harness.oracle.calls import Call, Close, Pin, Reopen, Unpin
from harness.oracle.cgroup_list import CgroupList
from harness.oracle.families import (
    CGROUP_PARENT,
    HOOKS,
    NETKIT,
    PAIRS,
    PRIMARY,
    TCX,
    Family,
    Features,
    Hook,
    cgroup_family,
)
from harness.oracle.mprog import Element, Entry, View
from harness.oracle.mprog_calls import (
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
from harness.oracle.objects import Link, Objects, Program
from harness.oracle.refusal import Refused

SPARE = "spare"


@dataclass(frozen=True)
class Outcome:
    """What the call returns (errno, 0 for success) and why, and what a query answers."""

    errno: int = 0
    rule: str = ""
    view: View | None = None


@dataclass(frozen=True)
class LinkInfo:
    """What BPF_OBJ_GET_INFO_BY_FD tells of a link: `attached` is an ifindex or cgroup id that is not 0."""

    prog: str
    attached: bool


@dataclass
class World:
    """The state. Lists that are not in `entries` or `groups` are as if never used."""

    features: Features = field(default_factory=Features)
    objects: Objects = field(default_factory=Objects)
    entries: dict[str, Entry] = field(default_factory=dict)
    groups: dict[str, CgroupList] = field(default_factory=dict)
    qdiscs: dict[str, str] = field(default_factory=dict)  # device: kind
    gone: set[str] = field(default_factory=lambda: {"gone"})
    away: set[str] = field(default_factory=set)  # devices in the other namespace
    spares: int = 0

    def __post_init__(self) -> None:
        self._families = {
            "tcx": TCX,
            "netkit": NETKIT,
            "cgroup": cgroup_family(self.features),
        }

    def do(self, call: Call) -> Outcome:
        """Carry out the call. A refused one changes nothing (MPROG-LAW-007)."""
        try:
            match call:
                case Attach():
                    self._attach(call)
                case Detach():
                    self._detach(call)
                case LinkCreate():
                    self._create_link(call)
                case LinkUpdate():
                    self._update_link(call)
                case LinkDetach():
                    self._detach_link(call)
                case Close():
                    self._close(call)
                case Pin() | Unpin() | Reopen():
                    self._hold(call)
                case Query():
                    view = self._query(call)
                    return Outcome(view.errno, "MPROG-QUERY-007" if view.errno else "", view)
                case Fill():
                    self._fill(call)
                case AddQdisc() | DeleteQdisc() | RemoveDevice() | MoveDevice():
                    self._configure(call)
                case _:
                    raise TypeError(f"the model knows no call like {call}")
        except Refused as refusal:
            return Outcome(refusal.errno, refusal.rule)
        return Outcome()

    # Attach and detach

    def _attach(self, call: Attach) -> None:
        hook, family = self._hook(call.hook)
        if call.flags & ~family.attach_flags:
            raise Refused(errno.EINVAL, "MPROG-CGROUP-001" if family.name == "cgroup" else "MPROG-ATTACH-003")
        if not family.anchors and (call.anchor or call.revision):
            raise Refused(errno.EINVAL, "MPROG-FIX-004")
        self.objects.open_prog(call.prog, family.prog_type, "MPROG-ATTACH-004")
        self._reach(hook)
        replaced = None
        # MPROG-CGROUP-004: a cgroup's REPLACE is looked at in MULTI mode only.
        if call.flags & BPF_F_REPLACE and (family.name != "cgroup" or call.flags & BPF_F_ALLOW_MULTI):
            self.objects.open_prog(call.replace, family.prog_type, "MPROG-ATTACH-006")
            replaced = call.replace
        self._insert(hook, call.prog, None, call.flags, call.anchor, replaced, call.revision)

    def _insert(
        self,
        hook: Hook,
        prog: str,
        link: str | None,
        flags: int,
        anchor: str | None,
        replaced: str | None,
        revision: int,
    ) -> None:
        if hook.family == "cgroup":
            self.groups[hook.name] = cgroup_list.attach(
                self._group(hook.name),
                [self._group(name) for name in _chain(hook.name)[1:]],
                prog,
                link,
                flags,
                anchor=lambda: self._anchor(anchor, flags, None),
                anchored=cgroup_list.is_anchored(flags, anchor is not None),
                replaced=replaced,
                revision=revision,
            )
            return
        old = Element(replaced) if replaced is not None else None
        after = mprog.attach(
            self._entry(hook.name),
            Element(prog, link),
            flags,
            lambda: self._element(anchor, flags, self.objects.progs[prog].type),
            old,
            revision,
        )
        self._store(hook, after)

    def _detach(self, call: Detach) -> None:
        hook, family = self._hook(call.hook)
        if family.name == "cgroup":
            self._detach_from_cgroup(call, hook, family)
            return
        if call.flags & ~family.detach_flags:
            raise Refused(errno.EINVAL, "MPROG-DETACH-002")
        named = None
        if call.prog is not None:
            self.objects.open_prog(call.prog, family.prog_type, "MPROG-DETACH-003")
            named = Element(call.prog)
        self._reach(hook)
        if not self._exists(hook.name):
            raise Refused(errno.ENOENT, "MPROG-DETACH-006")  # and MPROG-NETKIT-005
        wanted = family.prog_type if named else None  # MPROG-ANCHOR-008
        after = mprog.detach(
            self._entry(hook.name),
            named,
            call.flags,
            lambda: self._element(call.anchor, call.flags, wanted),
            call.revision,
        )
        self._store(hook, after)

    def _detach_from_cgroup(self, call: Detach, hook: Hook, family: Family) -> None:
        if call.flags or call.anchor or (call.revision and not family.anchors):
            raise Refused(errno.EINVAL, "MPROG-CGROUP-030")
        prog = call.prog
        try:
            self.objects.open_prog(prog, family.prog_type, "")
        except Refused:
            prog = None  # MPROG-CGROUP-031
        self.groups[hook.name] = cgroup_list.detach(self._group(hook.name), prog, call.revision)

    # Links

    def _create_link(self, call: LinkCreate) -> None:
        hook, family = self._hook(call.hook)
        if self.objects.open_prog(call.prog, None, "MPROG-LINK-002").type != family.prog_type:
            raise Refused(errno.EINVAL, "MPROG-LINK-003")
        if call.flags & ~family.link_flags:
            raise Refused(errno.EINVAL, "MPROG-CGROUP-036")  # and MPROG-CGROUP-038
        self._reach(hook)
        # MPROG-CGROUP-037. For tcx MPROG-LINK-005; -007: there is no old program, so REPLACE finds none.
        flags = call.flags | (BPF_F_ALLOW_MULTI if family.name == "cgroup" else 0)
        anchor, revision = (call.anchor, call.revision) if family.anchors else (None, 0)
        self._insert(hook, call.prog, call.link, flags, anchor, None, revision)
        self.objects.links[call.link] = Link(hook.name, call.prog)

    def _update_link(self, call: LinkUpdate) -> None:
        if call.flags & ~BPF_F_REPLACE:
            raise Refused(errno.EINVAL, "MPROG-LINK-020")
        link = self.objects.open_link(call.link, "MPROG-LINK-021")
        self.objects.open_prog(call.prog, None, "MPROG-LINK-022")
        if call.flags & BPF_F_REPLACE:
            self.objects.open_prog(call.old, None, "MPROG-LINK-023")
        elif call.old is not None:
            raise Refused(errno.EINVAL, "MPROG-LINK-023")
        if not link.attached:
            raise Refused(errno.ENOLINK, "MPROG-LINK-024")
        if call.old is not None and call.old != link.prog:
            raise Refused(errno.EPERM, "MPROG-LINK-025")
        hook, family = self._hook(link.hook)
        fits = self.objects.progs[call.prog].type == family.prog_type
        if family.name == "cgroup":
            if not fits:
                raise Refused(errno.EINVAL, "MPROG-CGROUP-039")
            self.groups[hook.name] = cgroup_list.update(self._group(hook.name), call.link, call.prog)
        elif call.prog == link.prog:
            return  # MPROG-LINK-026, MPROG-REV-004
        else:
            old, new = Element(link.prog, call.link), Element(call.prog, call.link)
            after = mprog.attach(
                self._entry(hook.name), new, BPF_F_REPLACE, lambda: self._of_type(old, fits), old
            )
            self._store(hook, after)  # MPROG-LINK-027, -029
        self.objects.links[call.link] = replace(link, prog=call.prog)

    @staticmethod
    def _of_type(current: Element, fits: bool) -> Element:
        """The kernel names the link's present program as anchor, which has to be of the new one's type."""
        if not fits:
            raise Refused(errno.EINVAL, "MPROG-LINK-028")
        return current

    def _detach_link(self, call: LinkDetach) -> None:
        link = self.objects.open_link(call.link, "MPROG-LINK-021")
        self._release(call.link)
        self.objects.links[call.link] = replace(
            link, attached=False
        )  # MPROG-LINK-040: repeated, it is 0 again

    def _release(self, name: str) -> None:
        """Take the link's element out, if it has one. MPROG-LINK-042, -048, MPROG-CGROUP-040."""
        link = self.objects.links[name]
        if not link.attached:
            return
        hook, family = self._hook(link.hook)
        if family.name == "cgroup":
            self.groups[hook.name] = cgroup_list.release(self._group(hook.name), name)
            return
        self._store(hook, mprog.detach(self._entry(hook.name), Element(link.prog, name)))

    def _close(self, call: Close) -> None:
        if call.name not in self.objects.links:
            self.objects.close_prog(call.name)
            return
        link = self.objects.open_link(call.name, "close(2)")
        self.objects.links[call.name] = replace(link, open=False)
        self._release_unheld(call.name)

    def _hold(self, call: Pin | Unpin | Reopen) -> None:
        """What keeps a link besides its descriptor. MPROG-LINK-042, -043, -046."""
        link = self.objects.links.get(call.name)
        match call:
            case Pin():
                if link is None or not link.open:
                    raise Refused(errno.EINVAL, "bpf(2)")  # of whatever is no object of BPF, closed or not
                if link.pinned:
                    raise Refused(errno.EEXIST, "bpf(2)")
                self.objects.links[call.name] = replace(link, pinned=True)
            case Unpin():
                if link is None or not link.pinned:
                    raise Refused(errno.ENOENT, "unlink(2)")
                self.objects.links[call.name] = replace(link, pinned=False)
                self._release_unheld(call.name)
            case Reopen():
                if link is None or not (link.pinned or call.by_id):
                    raise Refused(errno.ENOENT, "MPROG-LINK-046" if call.by_id else "bpf(2)")
                self.objects.links[call.name] = replace(link, open=True)

    def _release_unheld(self, name: str) -> None:
        link = self.objects.links[name]
        if not link.open and not link.pinned:
            self._release(name)
            del self.objects.links[name]

    # Queries

    def _query(self, call: Query) -> View:
        hook, family = self._hook(call.hook)
        if call.flags & ~BPF_F_QUERY_EFFECTIVE:
            raise Refused(errno.EINVAL, "MPROG-QUERY-002")
        self._reach(hook)
        count = call.count if call.with_ids else 0
        if family.name == "cgroup":
            if call.flags & BPF_F_QUERY_EFFECTIVE:
                return cgroup_list.effective([self._group(name) for name in _chain(hook.name)]).shortened(
                    count
                )
            return self.view(hook.name).shortened(count)
        if call.flags or call.attach_flags:
            raise Refused(errno.EINVAL, "MPROG-QUERY-004")
        return self.view(hook.name).shortened(count)

    def view(self, name: str) -> View:
        """What a query with large arrays shows. MPROG-QUERY-010: nothing is revision 1, count 0."""
        family = self.family(name)
        if family.name == "cgroup":
            shown = cgroup_list.view(self._group(name))
            return shown if family.anchors else replace(shown, revision=0)
        entry = self._entry(name)
        if family.hides_revision and not entry.elements:
            entry = Entry()
        return mprog.view(entry)

    # Devices

    def _configure(self, call: AddQdisc | DeleteQdisc | RemoveDevice | MoveDevice) -> None:
        here = call.device not in self.away
        if call.device in self.gone or not (here or isinstance(call, MoveDevice)):
            raise Refused(errno.ENODEV, "rtnetlink(7)")
        match call:
            case AddQdisc():
                if call.device in self.qdiscs:
                    raise Refused(errno.EEXIST, "tc(8)")
                self.qdiscs[call.device] = call.kind  # MPROG-LEGACY-002
            case DeleteQdisc():
                if self.qdiscs.get(call.device) != call.kind:
                    raise Refused(errno.ENOENT, "tc(8)")
                self._drop_qdisc(call.device)
            case MoveDevice():
                # MPROG-LIFE-005, MPROG-LINK-047: lists and links stay as they are, qdiscs go.
                (self.away.add if here else self.away.remove)(call.device)
                self._drop_qdisc(call.device)
            case RemoveDevice():
                both = {call.device, PAIRS[call.device]}
                self.gone |= both
                self.away -= both
                for device in both:
                    self.qdiscs.pop(device, None)
                for name in self._hooks_of(both):  # MPROG-LIFE-002, -003, MPROG-NETKIT-010
                    self.entries.pop(name, None)
                    for link in [
                        each for each in self.objects.links if self.objects.links[each].hook == name
                    ]:
                        self.objects.links[link] = replace(self.objects.links[link], attached=False)

    def _drop_qdisc(self, device: str) -> None:
        self.qdiscs.pop(device, None)
        for name in self._hooks_of({device}):
            self._forget_if_empty(name)  # MPROG-REV-008, MPROG-LEGACY-003

    def _fill(self, call: Fill) -> None:
        """As many calls to attach as it takes; each spare program's descriptor is kept open."""
        hook, family = self._hook(call.hook)
        flags = BPF_F_ALLOW_MULTI if family.name == "cgroup" else 0
        while self.view(hook.name).count < call.size:
            name = f"{SPARE}{self.spares}"
            self.objects.progs[name] = Program(family.prog_type)
            self.spares += 1
            self._attach(Attach(hook.name, name, flags))

    # Names

    def family(self, hook: str) -> Family:
        """The family of a hook, as this kernel has it."""
        return self._families[HOOKS[hook].family]

    def _hook(self, name: str) -> tuple[Hook, Family]:
        return HOOKS[name], self.family(name)

    @staticmethod
    def _hooks_of(targets: Iterable[str]) -> list[str]:
        wanted = set(targets)
        return [name for name, hook in HOOKS.items() if hook.target in wanted]

    def _reach(self, hook: Hook) -> None:
        """Find the device. MPROG-ATTACH-005, MPROG-DETACH-005, MPROG-QUERY-003, MPROG-LINK-004, MPROG-NETKIT-001."""
        if hook.target in self.gone | self.away:
            raise Refused(errno.ENODEV, "MPROG-ATTACH-005")
        if hook.family == "netkit" and hook.target != PRIMARY:
            kind = errno.EACCES if PAIRS[hook.target] == PRIMARY else errno.ENXIO
            raise Refused(kind, "MPROG-NETKIT-001")

    def _anchor(self, name: str | None, flags: int, type: str | None) -> tuple[str | None, str | None]:
        return self.objects.anchor(name, flags, type, self._attached())

    def _element(self, name: str | None, flags: int, type: str | None) -> Element | None:
        """An anchor of a tcx or netkit list. MPROG-ANCHOR-001."""
        if not flags & (BPF_F_LINK | BPF_F_ID) and name is None:
            return None
        prog, link = self._anchor(name, flags, type)
        return Element(prog if prog is not None else self.objects.links[str(link)].prog, link)

    # Lists

    def _entry(self, name: str) -> Entry:
        return self.entries.get(name, Entry())

    def _group(self, name: str) -> CgroupList:
        return self.groups.get(name, CgroupList())

    def _exists(self, name: str) -> bool:
        """Whether there is an entry at all: it has elements, or a qdisc holds it. Section 13."""
        return bool(self._entry(name).elements) or self._is_held(HOOKS[name])

    def _is_held(self, hook: Hook) -> bool:
        """Whether a qdisc keeps the entry: clsact both directions, ingress the one. MPROG-REV-007."""
        kind = self.qdiscs.get(hook.target) if hook.family == "tcx" else None
        return kind == "clsact" or (kind == "ingress" and hook.attach_type == "BPF_TCX_INGRESS")

    def _store(self, hook: Hook, entry: Entry) -> None:
        self.entries[hook.name] = entry
        self._forget_if_empty(hook.name)

    def _forget_if_empty(self, name: str) -> None:
        """MPROG-REV-006, -007: what nothing holds is freed, and its revision with it."""
        if not self._exists(name) and not self.family(name).keeps_revision:
            self.entries.pop(name, None)

    # States

    def fork(self) -> Self:
        """Another world in the same state, to go its own way."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (dict, set)):
                setattr(twin, name, value.copy())
        twin.objects = Objects(dict(self.objects.progs), dict(self.objects.links))
        return twin

    def key(self) -> Hashable:
        """The state as a value: equal for worlds in which every call has the same answer from now on."""
        tables = (self.entries, self.groups, self.qdiscs, self.objects.links, self.objects.progs)
        return (
            *(frozenset(table.items()) for table in tables),
            frozenset(self.gone),
            frozenset(self.away),
            self.spares,
        )

    # Reference counts

    def _attached(self) -> set[str]:
        """The programs that lists hold."""
        attached = {element.prog for entry in self.entries.values() for element in entry.elements}
        return attached | {slot.prog for group in self.groups.values() for slot in group.slots}

    def alive_progs(self) -> set[str]:
        """The programs that still exist."""
        return self.objects.alive(self._attached())

    def link_infos(self) -> dict[str, LinkInfo]:
        """What the open links say of themselves. MPROG-LINK-041, -045."""
        return {
            name: LinkInfo(link.prog, link.attached) for name, link in self.objects.links.items() if link.open
        }


def _chain(name: str) -> list[str]:
    """The cgroup's hook and those above it."""
    chain = [name]
    while chain[-1] in CGROUP_PARENT:
        chain.append(CGROUP_PARENT[chain[-1]])
    return chain
