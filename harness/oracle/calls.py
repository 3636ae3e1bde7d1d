# SPDX-License-Identifier: MIT
"""Requests of user space, in terms of names: what a sequence is made of.

Objects are named: programs and links by the names that they get when they are made, `MAP` is a map (open, but neither
program nor link), `CLOSED` a descriptor that is not open and an id that never was. With BPF_F_ID among the flags an
anchor stands for the object's id, otherwise for its descriptor; None is the number 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

MAP = "a_map"
CLOSED = "closed"


@dataclass(frozen=True)
class Call:
    """One request; `op` names it in messages."""

    op: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data for the guest."""
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Attach(Call):
    """BPF_PROG_ATTACH. `replace` is sent whether or not the flags have BPF_F_REPLACE."""

    op: ClassVar[str] = "attach"
    hook: str
    prog: str
    flags: int = 0
    anchor: str | None = None
    replace: str | None = None
    revision: int = 0


@dataclass(frozen=True)
class Detach(Call):
    """BPF_PROG_DETACH; without a program whatever is there."""

    op: ClassVar[str] = "detach"
    hook: str
    prog: str | None = None
    flags: int = 0
    anchor: str | None = None
    revision: int = 0


@dataclass(frozen=True)
class LinkCreate(Call):
    """BPF_LINK_CREATE; if it succeeds the link is called `link`."""

    op: ClassVar[str] = "link"
    link: str
    hook: str
    prog: str
    flags: int = 0
    anchor: str | None = None
    revision: int = 0


@dataclass(frozen=True)
class LinkUpdate(Call):
    """BPF_LINK_UPDATE. `old` is sent whether or not the flags have BPF_F_REPLACE."""

    op: ClassVar[str] = "update"
    link: str
    prog: str
    flags: int = 0
    old: str | None = None


@dataclass(frozen=True)
class LinkDetach(Call):
    """BPF_LINK_DETACH."""

    op: ClassVar[str] = "link_detach"
    link: str


@dataclass(frozen=True)
class Close(Call):
    """close(2) of the only descriptor of a program or link."""

    op: ClassVar[str] = "close"
    name: str


@dataclass(frozen=True)
class Query(Call):
    """BPF_PROG_QUERY with arrays of `count` elements; `with_ids` is false for a NULL array of program ids."""

    op: ClassVar[str] = "query"
    hook: str
    count: int = 64
    flags: int = 0
    attach_flags: int = 0
    with_ids: bool = True


@dataclass(frozen=True)
class AddClsact(Call):
    """Add a clsact qdisc to a device."""

    op: ClassVar[str] = "add_clsact"
    device: str


@dataclass(frozen=True)
class DeleteClsact(Call):
    """Delete the clsact qdisc of a device."""

    op: ClassVar[str] = "delete_clsact"
    device: str


@dataclass(frozen=True)
class RemoveDevice(Call):
    """Delete a device, and with it its other end."""

    op: ClassVar[str] = "remove_device"
    device: str


@dataclass(frozen=True)
class Fill(Call):
    """Attach spare programs, made for it, at the end of a list until it has `size` elements."""

    op: ClassVar[str] = "fill"
    hook: str
    size: int
