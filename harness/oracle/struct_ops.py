# SPDX-License-Identifier: MIT
"""Maps of struct_ops type as tcp_congestion_ops has them, their links, and the sockets that use them.

`World.do` carries out one call and says what the kernel must answer, by the checks of kernel/bpf/bpf_struct_ops.c,
net/ipv4/bpf_tcp_ca.c and net/ipv4/tcp_cong.c in their order; `World.look` is what user space sees of it all.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from harness.guest.bpf.uapi import (
    BPF_F_LINK,
    BPF_F_REPLACE,
    BPF_STRUCT_OPS_STATE_INIT,
    BPF_STRUCT_OPS_STATE_INUSE,
    BPF_STRUCT_OPS_STATE_READY,
    BPF_STRUCT_OPS_STATE_TOBEFREE,
)
from harness.oracle.calls import Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.refusal import ENOTSUPP, UNTRIED, Refused
from harness.oracle.struct_ops_calls import (
    FUNCTIONS,
    PROGRAMS,
    Choose,
    Connect,
    Create,
    Default,
    Detach,
    Link,
    Listen,
    Lookup,
    LookupAndDelete,
    NextKey,
    Relink,
    Talk,
    Update,
)

RETURNED_ONE = -1  # no errno: bpf(2) returned 1

RENO = "reno"  # the stage's default
BUILT_IN = (RENO, "cubic")
NON_RESTRICTED = 1  # include/net/tcp.h, as NEEDS_ECN
KNOWN_BITS = 3
UNKNOWN_BITS = 1 << 7
NAME = re.compile(r"[A-Za-z0-9_.]{1,15}")

INIT, INUSE = BPF_STRUCT_OPS_STATE_INIT, BPF_STRUCT_OPS_STATE_INUSE
TOBEFREE, READY = BPF_STRUCT_OPS_STATE_TOBEFREE, BPF_STRUCT_OPS_STATE_READY


@dataclass(frozen=True)
class Features:
    """What a kernel has, by the names of harness.guest.bpf.probe; `members` are those of tcp_congestion_ops, in order.

    `refused_default_leaks`: FINDINGS.md, TCP-REFUSED-DEFAULT-LEAKS.
    """

    struct_ops_link: bool = True
    struct_ops_link_detach: bool = True
    refused_default_leaks: bool = False
    members: tuple[str, ...] = (
        *("ssthresh", "cong_avoid", "cong_control", "undo_cwnd"),
        *("name", "owner", "list", "key", "flags", "init", "release"),
    )


@dataclass(frozen=True)
class Outcome:
    """What the call returns (errno, 0 for success) and why."""

    errno: int = 0
    rule: str = ""


@dataclass(frozen=True)
class Table:
    """A map: its state, the value written, what keeps it besides its users."""

    link: bool
    state: int = INIT
    value: Update | None = None
    open: bool = True
    pinned: bool = False


@dataclass(frozen=True)
class Attachment:
    """A link that something holds, and its map; None once it is detached."""

    map: str | None
    open: bool = True
    pinned: bool = False


@dataclass(frozen=True)
class Algorithm:
    """What a socket or namespace uses: a name, and the map behind it unless it is the kernel's own."""

    name: str
    map: str | None = None


@dataclass(frozen=True)
class Socket:
    """An open socket. `chosen`: by setsockopt, not as the default; `peer` of a connection."""

    uses: Algorithm
    chosen: bool = False
    peer: str | None = None

    @property
    def listens(self) -> bool:
        return self.peer is None


@dataclass(frozen=True)
class Look:
    """What user space sees: names in the order of registration, (state, refcnt) of open maps, for open links their
    map (None: detached), by which name sockets call their algorithm, and the namespace's default."""

    available: tuple[str, ...]
    maps: dict[str, tuple[int, int]]
    links: dict[str, str | None]
    socks: dict[str, str]
    default: str


@dataclass
class World:
    """The state."""

    features: Features = field(default_factory=Features)
    progs: set[str] = field(default_factory=lambda: set(PROGRAMS))  # those whose descriptors are open
    maps: dict[str, Table] = field(default_factory=dict)
    links: dict[str, Attachment] = field(default_factory=dict)
    socks: dict[str, Socket] = field(default_factory=dict)
    registered: dict[str, str] = field(default_factory=dict)  # algorithm: map, in the kernel's order
    default: Algorithm = Algorithm(RENO)

    def do(self, call: Call) -> Outcome:
        """Carry out the call. A refused one changes nothing."""
        try:
            match call:
                case Create():
                    self._create(call)
                case Update():
                    self._update(call)
                case Delete():
                    self._delete(call)
                case Lookup() | NextKey() | Freeze() | LookupAndDelete():
                    self._ask(call)
                case Link():
                    self._link(call)
                case Relink():
                    self._relink(call)
                case Detach():
                    self._detach(call)
                case Close():
                    self._close(call.name)
                case Pin():
                    self._pin(call.name)
                case Unpin():
                    self._unpin(call.name)
                case Reopen():
                    self._reopen(call)
                case Listen():
                    self.socks[call.sock] = self._socket(call.name)
                case Connect():
                    self._connect(call)
                case Choose():
                    self.socks[call.sock] = self._choose(self._open_sock(call.sock), call.name)
                case Talk():
                    self._talk(call)
                case Default():
                    self._set_default(call)
                case _:
                    raise TypeError(f"the model knows no call like {call}")
        except Refused as refusal:
            return Outcome(refusal.errno, refusal.rule)
        self._free()
        return Outcome()

    # Maps

    def _create(self, call: Create) -> None:
        allowed = BPF_F_LINK if self.features.struct_ops_link else 0
        if call.key_size != 4 or call.entries != 1 or call.flags & ~allowed or not call.value_type:
            raise Refused(errno.EINVAL, "STOPS-MAP-004")  # and STOPS-PROBE-002
        if call.value_type != 1:
            raise Refused(ENOTSUPP, "STOPS-MAP-008")
        if call.oversize:
            raise Refused(errno.EINVAL, "STOPS-MAP-009")
        self.maps[call.map] = Table(bool(call.flags & BPF_F_LINK))  # STOPS-MAP-013, STOPS-ABI-003

    def _update(self, call: Update) -> None:
        table = self._open_map(call.map, "STOPS-UPD-001")
        if call.flags:
            raise Refused(errno.EINVAL, "STOPS-UPD-002")
        if call.key:
            raise Refused(errno.E2BIG, "STOPS-UPD-003")
        if call.stray == "padding":
            raise Refused(errno.EINVAL, "STOPS-UPD-004")
        if call.stray in ("refcnt", "state"):
            raise Refused(errno.EINVAL, "STOPS-UPD-005")
        if table.state != INIT:
            raise Refused(errno.EBUSY, "STOPS-UPD-006")  # and STOPS-STATE-010
        for member in self.features.members:
            self._check_member(call, member)
        progs = call.progs
        if not {"ssthresh", "undo_cwnd"} <= set(progs) or not {"cong_avoid", "cong_control"} & set(progs):
            raise Refused(errno.EINVAL, "STOPS-TCP-004")  # and STOPS-UPD-014
        if not table.link:
            self._register(call.name, call.map, "STOPS-UPD-016")
        # STOPS-UPD-015, -017, STOPS-ABI-001
        self.maps[call.map] = replace(table, state=READY if table.link else INUSE, value=call)

    def _check_member(self, call: Update, member: str) -> None:
        """One member's turn; all that is refused here leaves the map in INIT (STOPS-UPD-018)."""
        if member == "name":
            if not NAME.fullmatch(call.name):
                raise Refused(errno.EINVAL, "STOPS-TCP-002")
            if not self.features.struct_ops_link and self._is_taken(call.name):
                raise Refused(errno.EEXIST, "STOPS-TCP-003")
        elif member == "owner" and call.stray == "owner":
            raise Refused(RETURNED_ONE, "STOPS-QUIRK-001")  # STOPS-UPD-007
        elif member == "flags" and call.bits & ~KNOWN_BITS:
            raise Refused(errno.EINVAL, "STOPS-TCP-001")  # STOPS-UPD-008
        elif member in ("list", "key") and call.stray == member:
            raise Refused(errno.EINVAL, "STOPS-UPD-009")
        elif member in FUNCTIONS and (prog := call.progs.get(member)) is not None:  # else STOPS-UPD-010
            if not self._is_open(prog):
                raise Refused(errno.EBADF, "STOPS-UPD-011")
            if prog not in self.progs:
                raise Refused(errno.EINVAL, "STOPS-UPD-011")
            if prog not in (f"{member}_a", f"{member}_b"):
                raise Refused(errno.EINVAL, "STOPS-UPD-012")  # STOPS-PROG-015: and nothing else matters

    def _delete(self, call: Delete) -> None:
        """STOPS-STATE-011, STOPS-QUIRK-005: whatever the key."""
        table = self._open_map(call.map, "STOPS-UPD-001")
        if table.link:
            raise Refused(errno.EOPNOTSUPP, "STOPS-STATE-004")  # and -005
        if table.state == INIT:
            raise Refused(errno.ENOENT, "STOPS-STATE-001")
        if table.state == TOBEFREE:
            raise Refused(errno.EINPROGRESS, "STOPS-STATE-003")
        self.maps[call.map] = replace(table, state=TOBEFREE)  # STOPS-STATE-002
        self._unregister(call.map)

    def _ask(self, call: Lookup | NextKey | Freeze | LookupAndDelete) -> None:
        """What changes nothing."""
        self._open_map(call.map, "STOPS-UPD-001")
        match call:
            case Lookup() if call.key:
                raise Refused(errno.ENOENT, "STOPS-CMD-001")
            case NextKey() if call.key == 0:
                raise Refused(errno.ENOENT, "STOPS-CMD-007")
            case LookupAndDelete():
                raise Refused(ENOTSUPP, "STOPS-CMD-008")
            case Freeze():
                raise Refused(ENOTSUPP, "STOPS-CMD-009")

    # Names

    def _is_taken(self, name: str) -> bool:
        return name in self.registered or name in BUILT_IN

    def _register(self, name: str, map: str, rule: str) -> None:
        """STOPS-LAW-002: by never two."""
        if self._is_taken(name):
            raise Refused(errno.EEXIST, rule)  # STOPS-TCP-003
        self.registered[name] = map

    def _unregister(self, map: str) -> None:
        """STOPS-TCP-010, -014: the name goes, who uses the map keeps it (STOPS-LAW-006)."""
        self.registered = {name: each for name, each in self.registered.items() if each != map}

    def _name(self, map: str) -> str:
        value = self.maps[map].value
        assert value is not None, "only what has a value is ever registered"
        return value.name

    # Links

    def _link(self, call: Link) -> None:
        """STOPS-LINK-004: whatever the flags."""
        if not self.features.struct_ops_link:
            self._descriptor(call.map, self.progs, "bpf(2)")  # a program is asked for, ...
            raise Refused(errno.EINVAL, "bpf(2)")  # ... and none goes with this attach type
        if self._open_map(call.map, "STOPS-LINK-001").state != READY:
            raise Refused(errno.EINVAL, "STOPS-LINK-002")  # STOPS-STATE-001 to -004
        self._register(self._name(call.map), call.map, "STOPS-LINK-003")  # STOPS-LINK-006, STOPS-QUIRK-007
        self.links[call.link] = Attachment(call.map)  # STOPS-LINK-005, STOPS-STATE-005

    def _relink(self, call: Relink) -> None:
        link = self.links.get(call.link)
        if link is not None and link.open and link.map == call.map and self._is_open(call.map):
            raise Refused(UNTRIED, "STOPS-QUIRK-002")
        if call.flags & ~BPF_F_REPLACE:
            raise Refused(errno.EINVAL, "STOPS-LINK-010")
        link = self._open_link(call.link)
        new = self._open_map(call.map, "STOPS-LINK-011")
        if call.flags & BPF_F_REPLACE:
            self._open_map(call.old, "STOPS-LINK-011")
        elif call.old is not None:
            raise Refused(errno.EINVAL, "STOPS-LINK-011")
        if new.state != READY:
            raise Refused(errno.EINVAL, "STOPS-LINK-012")
        if link.map is None:
            raise Refused(errno.ENOLINK, "STOPS-LINK-014")
        if call.old is not None and call.old != link.map:
            raise Refused(errno.EPERM, "STOPS-LINK-015")
        name = self._name(link.map)
        if self._name(call.map) != name:
            raise Refused(errno.EINVAL, "STOPS-LINK-017")
        # STOPS-LINK-018, -019: the new one is put at the end of the list.
        self._unregister(link.map)
        self.registered[name] = call.map
        self.links[call.link] = replace(link, map=call.map)

    def _detach(self, call: Detach) -> None:
        link = self._open_link(call.link)
        if not self.features.struct_ops_link_detach:
            raise Refused(errno.EOPNOTSUPP, "STOPS-LINK-020")
        self._release(link)
        self.links[call.link] = replace(link, map=None)  # STOPS-LINK-020: again 0

    def _release(self, link: Attachment) -> None:
        """STOPS-LINK-022."""
        if link.map is not None:
            self._unregister(link.map)

    # Descriptors, pins, ids

    def _close(self, name: str) -> None:
        if not self._is_open(name):
            raise Refused(errno.EBADF, "close(2)")
        if name in self.progs:
            self.progs.remove(name)  # STOPS-UPD-019
        elif name in self.socks:
            del self.socks[name]  # STOPS-TCP-012
        else:
            self._hold(name, open=False)

    def _pin(self, name: str) -> None:
        held = self.maps.get(name) or self.links.get(name)
        if held is None or not held.open:
            raise Refused(errno.EINVAL, "bpf(2)")
        if held.pinned:
            raise Refused(errno.EEXIST, "bpf(2)")
        self._hold(name, pinned=True)  # STOPS-CMD-014

    def _unpin(self, name: str) -> None:
        held = self.maps.get(name) or self.links.get(name)
        if held is None or not held.pinned:
            raise Refused(errno.ENOENT, "unlink(2)")
        self._hold(name, pinned=False)

    def _reopen(self, call: Reopen) -> None:
        """STOPS-INFO-003, STOPS-STATE-014: an id leads to what exists, however it is held."""
        held = self.maps.get(call.name) or self.links.get(call.name)
        if held is None or not (call.by_id or held.pinned):
            raise Refused(errno.ENOENT, "STOPS-STATE-016" if call.by_id else "bpf(2)")
        self._hold(call.name, open=True)

    def _hold(self, name: str, *, open: bool | None = None, pinned: bool | None = None) -> None:
        """Change how a map or link is held."""
        held = self.maps.get(name) or self.links[name]
        open = held.open if open is None else open
        pinned = held.pinned if pinned is None else pinned
        if name in self.maps:
            self.maps[name] = replace(self.maps[name], open=open, pinned=pinned)
            return
        link = self.links[name] = replace(self.links[name], open=open, pinned=pinned)
        if not link.open and not link.pinned:
            self._release(link)
            del self.links[name]

    def _is_open(self, name: str | None) -> bool:
        held = self.maps.get(name or "") or self.links.get(name or "")
        return held.open if held else name in self.progs or name in self.socks

    def _descriptor(self, name: str | None, wanted: Iterable[str], rule: str) -> str:
        """The name, if it is that of an open one of those; nothing (0) is open, but nothing of BPF."""
        if name is not None and not self._is_open(name):
            raise Refused(errno.EBADF, rule)
        if name is None or name not in wanted:
            raise Refused(errno.EINVAL, rule)
        return name

    def _open_map(self, name: str | None, rule: str) -> Table:
        return self.maps[self._descriptor(name, self.maps, rule)]

    def _open_link(self, name: str) -> Attachment:
        return self.links[self._descriptor(name, self.links, "STOPS-LINK-011")]

    # Sockets

    def _socket(self, name: str | None) -> Socket:
        """A new one, with the namespace's default (STOPS-TCP-016: registered or not), or what it chooses."""
        fresh = Socket(self.default)
        return fresh if name is None else self._choose(fresh, name)

    def _choose(self, sock: Socket, name: str) -> Socket:
        return replace(sock, uses=self._find(name, "STOPS-TCP-011"), chosen=True)  # STOPS-TCP-014, -019

    def _find(self, name: str, rule: str) -> Algorithm:
        if not self._is_taken(name):
            raise Refused(errno.ENOENT, rule)
        return Algorithm(name, self.registered.get(name))

    def _connect(self, call: Connect) -> None:
        listener = self._open_sock(call.listener)
        if not listener.listens:
            raise Refused(errno.EBADF, "the stage")
        client = self._socket(call.name)
        # STOPS-TCP-015, STOPS-LAW-008
        child = Socket(listener.uses if listener.chosen else self.default, listener.chosen, call.sock)
        self.socks[call.sock] = replace(client, peer=call.child)
        self.socks[call.child] = child

    def _talk(self, call: Talk) -> None:
        if self._open_sock(call.sock).peer not in self.socks:
            raise Refused(errno.EBADF, "the stage")

    def _open_sock(self, name: str) -> Socket:
        if name not in self.socks:
            raise Refused(errno.EBADF, "the stage")
        return self.socks[name]

    def _set_default(self, call: Default) -> None:
        found = self._find(call.name, "STOPS-TCP-016")
        if found.map is not None and not self._bits(found.map) & NON_RESTRICTED:
            leaks = self.features.refused_default_leaks
            raise Refused(UNTRIED if leaks else errno.EPERM, "STOPS-TCP-016")
        self.default = found

    def _bits(self, map: str) -> int:
        value = self.maps[map].value
        return value.bits if value else 0

    # References

    def refcnt(self, map: str) -> int:
        """What a look-up shows. STOPS-CMD-004, STOPS-LAW-003, STOPS-TCP-012."""
        links = sum(link.map == map for link in self.links.values())
        socks = sum(sock.uses.map == map for sock in self.socks.values())
        return (self.maps[map].state == INUSE) + links + socks + (self.default.map == map)

    def _free(self) -> None:
        """STOPS-STATE-014 to -016, STOPS-LAW-007."""
        for name, table in list(self.maps.items()):
            if not table.open and not table.pinned and not self.refcnt(name):
                del self.maps[name]

    def alive_progs(self) -> set[str]:
        """The programs that still exist: STOPS-UPD-019, STOPS-LAW-005."""
        held = {prog for table in self.maps.values() if table.value for prog in table.value.progs.values()}
        return self.progs | held

    def look(self) -> Look:
        """STOPS-CMD-002, STOPS-LAW-004: in INIT all is zero."""
        return Look(
            tuple(self.registered),
            {
                name: (table.state, self.refcnt(name) if table.state != INIT else 0)
                for name, table in self.maps.items()
                if table.open
            },
            {name: link.map for name, link in self.links.items() if link.open},
            {name: sock.uses.name for name, sock in self.socks.items()},
            self.default.name,
        )
