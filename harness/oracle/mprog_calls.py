# SPDX-License-Identifier: MIT
"""Requests of user space about ordered lists of programs, in terms of names.

`MAP` is a map (open, but neither program nor link). With BPF_F_ID among the flags an anchor stands for the object's id,
otherwise for its descriptor; None is the number 0. What is pinned and reopened are links.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.oracle.calls import Call

MAP = "a_map"


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
class Query(Call):
    """BPF_PROG_QUERY with arrays of `count` elements; `with_ids` is false for a NULL array of program ids."""

    op: ClassVar[str] = "query"
    hook: str
    count: int = 64
    flags: int = 0
    attach_flags: int = 0
    with_ids: bool = True


@dataclass(frozen=True)
class AddQdisc(Call):
    """Add a qdisc that classifies what comes in (kind "ingress"), or both ways ("clsact"), to a device."""

    op: ClassVar[str] = "add_qdisc"
    device: str
    kind: str


@dataclass(frozen=True)
class DeleteQdisc(Call):
    """Delete that qdisc of a device."""

    op: ClassVar[str] = "delete_qdisc"
    device: str
    kind: str


@dataclass(frozen=True)
class MoveDevice(Call):
    """Move a device to another network namespace, or back to the one in which all calls are made."""

    op: ClassVar[str] = "move_device"
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


def named_by(call: Call) -> str:
    """The link that the call names, if it names any; of a close it may be a program."""
    return str(getattr(call, "link", "") or getattr(call, "name", ""))
