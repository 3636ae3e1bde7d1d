# SPDX-License-Identifier: MIT
"""Requests of user space about congestion controls made of BPF programs, in terms of names.

Maps, links and sockets are made by them; programs are there from the start: PROGRAMS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.oracle.calls import Call

# Members that a sequence fills, each with two programs of its own; and programs that fit nowhere.
FUNCTIONS = ("ssthresh", "cong_avoid", "cong_control", "undo_cwnd", "init", "release")
OTHER_TYPE, OTHER_STRUCT = "sched_cls", "dummy_ops"
PROGRAMS = (*(f"{member}_{set}" for member in FUNCTIONS for set in "ab"), OTHER_TYPE, OTHER_STRUCT)

# What a value can have in places where nothing may be.
STRAYS = ("padding", "refcnt", "state", "owner", "list", "key")


@dataclass(frozen=True)
class Create(Call):
    """BPF_MAP_CREATE of a struct_ops map; if it succeeds it is called `map`. `value_type` is 0 for none,
    1 for tcp_congestion_ops, 2 for a type that is no struct_ops; `oversize` is how much value_size is too large."""

    op: ClassVar[str] = "create"
    map: str
    flags: int = 0
    key_size: int = 4
    entries: int = 1
    value_type: int = 1
    oversize: int = 0


@dataclass(frozen=True)
class Update(Call):
    """BPF_MAP_UPDATE_ELEM: the members' programs, the algorithm's name and its TCP_CONG_* bits.

    `stray`: one of STRAYS, which is then not zero.
    """

    op: ClassVar[str] = "update"
    map: str
    name: str = ""
    ssthresh: str | None = None
    cong_avoid: str | None = None
    cong_control: str | None = None
    undo_cwnd: str | None = None
    init: str | None = None
    release: str | None = None
    bits: int = 0
    stray: str | None = None
    key: int = 0
    flags: int = 0

    @property
    def progs(self) -> dict[str, str]:
        """The programs by member."""
        return {member: prog for member in FUNCTIONS if (prog := getattr(self, member)) is not None}


@dataclass(frozen=True)
class Lookup(Call):
    """BPF_MAP_LOOKUP_ELEM."""

    op: ClassVar[str] = "lookup"
    map: str
    key: int = 0


@dataclass(frozen=True)
class NextKey(Call):
    """BPF_MAP_GET_NEXT_KEY; None: the first."""

    op: ClassVar[str] = "next_key"
    map: str
    key: int | None = None


@dataclass(frozen=True)
class LookupAndDelete(Call):
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM."""

    op: ClassVar[str] = "lookup_and_delete"
    map: str


@dataclass(frozen=True)
class Link(Call):
    """BPF_LINK_CREATE; if it succeeds the link is called `link`."""

    op: ClassVar[str] = "link"
    link: str
    map: str
    flags: int = 0


@dataclass(frozen=True)
class Relink(Call):
    """BPF_LINK_UPDATE. `old` is sent whether or not the flags have BPF_F_REPLACE."""

    op: ClassVar[str] = "relink"
    link: str
    map: str
    flags: int = 0
    old: str | None = None


@dataclass(frozen=True)
class Detach(Call):
    """BPF_LINK_DETACH."""

    op: ClassVar[str] = "detach"
    link: str


@dataclass(frozen=True)
class Listen(Call):
    """A new listening socket; it chooses an algorithm by name if one is given. If that is refused there is none."""

    op: ClassVar[str] = "listen"
    sock: str
    name: str | None = None


@dataclass(frozen=True)
class Connect(Call):
    """A new socket chooses an algorithm by name if one is given, and connects to a listener, which accepts `child`."""

    op: ClassVar[str] = "connect"
    sock: str
    listener: str
    child: str
    name: str | None = None


@dataclass(frozen=True)
class Choose(Call):
    """setsockopt(TCP_CONGESTION)."""

    op: ClassVar[str] = "choose"
    sock: str
    name: str


@dataclass(frozen=True)
class Talk(Call):
    """Send something to the other end, and wait until it is there."""

    op: ClassVar[str] = "talk"
    sock: str


@dataclass(frozen=True)
class Default(Call):
    """Write net.ipv4.tcp_congestion_control of the sockets' namespace, which is not the initial one."""

    op: ClassVar[str] = "default"
    name: str
