# SPDX-License-Identifier: MIT
"""Requests of user space about maps that own objects of kr_kptr, and about programs that move them, in terms of names.

What maps, objects and verbs there are stands in `harness.guest.kptr_kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.guest.kptr_kinds import PEEK
from harness.oracle.calls import Call


@dataclass(frozen=True)
class Create(Call):
    """BPF_MAP_CREATE; if it succeeds the map is called `map`. `inner`: the template, for maps of maps."""

    op: ClassVar[str] = "create"
    map: str
    kind: str
    inner: str | None = None


@dataclass(frozen=True)
class Update(Call):
    """BPF_MAP_UPDATE_ELEM; `mark` is the value beside the pointers, whose bytes are not zero."""

    op: ClassVar[str] = "update"
    map: str
    key: int = 0
    mark: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Nest(Call):
    """BPF_MAP_UPDATE_ELEM of a map of maps."""

    op: ClassVar[str] = "nest"
    map: str
    inner: str
    key: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Lookup(Call):
    """BPF_MAP_LOOKUP_ELEM."""

    op: ClassVar[str] = "lookup"
    map: str
    key: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Take(Call):
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM."""

    op: ClassVar[str] = "take"
    map: str
    key: int = 0
    flags: int = 0


@dataclass(frozen=True)
class UpdateBatch(Call):
    """BPF_MAP_UPDATE_BATCH of so many successive keys, all with one mark."""

    op: ClassVar[str] = "update_batch"
    map: str
    key: int = 0
    count: int = 2
    mark: int = 0
    flags: int = 0


@dataclass(frozen=True)
class DeleteBatch(Call):
    """BPF_MAP_DELETE_BATCH of so many successive keys."""

    op: ClassVar[str] = "delete_batch"
    map: str
    key: int = 0
    count: int = 2


@dataclass(frozen=True)
class LookupBatch(Call):
    """BPF_MAP_LOOKUP_BATCH of everything, or BPF_MAP_LOOKUP_AND_DELETE_BATCH."""

    op: ClassVar[str] = "lookup_batch"
    map: str
    delete: bool = False
    flags: int = 0


@dataclass(frozen=True)
class Load(Call):
    """BPF_PROG_LOAD of a program with two places, a field of some element of each map; it is then called `prog`."""

    op: ClassVar[str] = "load"
    prog: str
    map: str
    other: str
    field: int = 0
    other_field: int = 0


@dataclass(frozen=True)
class Bind(Call):
    """BPF_PROG_BIND_MAP."""

    op: ClassVar[str] = "bind"
    prog: str
    map: str


@dataclass(frozen=True)
class Run(Call):
    """BPF_PROG_TEST_RUN: do something (PUT_NEW, ...) with the places that the keys lead to.

    `via` and `other_via` are the keys in maps of maps; `object` is the one to put, `mark` and `flags` are for WRITE.
    """

    op: ClassVar[str] = "run"
    prog: str
    verb: int = PEEK
    key: int = 0
    other: int = 0
    via: int = 0
    other_via: int = 0
    object: int = 0
    mark: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Unload(Call):
    """delete_module(2) of kr_kptr; if it goes it is loaded again."""

    op: ClassVar[str] = "unload"
