# SPDX-License-Identifier: MIT
"""Requests of user space, in terms of names: what a sequence is made of, and those that several facilities know.

Objects have the names that they get when they are made. A name that nothing has, such as CLOSED, stands for a
descriptor that is not open, an id that never was, a path that does not exist.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

CLOSED = "closed"


@dataclass(frozen=True)
class Call:
    """One request; `op` names it in messages."""

    op: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data for the guest."""
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Close(Call):
    """close(2) of the only descriptor of an object; a connection is aborted."""

    op: ClassVar[str] = "close"
    name: str


@dataclass(frozen=True)
class Pin(Call):
    """BPF_OBJ_PIN, at a path of the object's own."""

    op: ClassVar[str] = "pin"
    name: str


@dataclass(frozen=True)
class Unpin(Call):
    """unlink(2) of that path."""

    op: ClassVar[str] = "unpin"
    name: str


@dataclass(frozen=True)
class Reopen(Call):
    """BPF_OBJ_GET of that path, or BPF_MAP_GET_FD_BY_ID and its like; what comes back takes the place of the
    descriptor."""

    op: ClassVar[str] = "reopen"
    name: str
    by_id: bool = False


@dataclass(frozen=True)
class Delete(Call):
    """BPF_MAP_DELETE_ELEM."""

    op: ClassVar[str] = "delete"
    map: str
    key: int = 0


@dataclass(frozen=True)
class Freeze(Call):
    """BPF_MAP_FREEZE."""

    op: ClassVar[str] = "freeze"
    map: str
