# SPDX-License-Identifier: MIT
"""Ordered lists of programs at a hook: attach, detach, query, link; the same calls for tcx, netkit and
cgroups.

The modules `tcx`, `netkit` and `cgroup` are the three families.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import LinkCreateMprog, ProgAttach, ProgQuery
from harness.guest.bpf.descriptor import fd_of
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, bpf

ARRAYS = ("prog_ids", "prog_attach_flags", "link_ids", "link_attach_flags")
CAPACITY = 64  # include/linux/bpf_mprog.h: 63 programs and a terminator; BPF_CGROUP_MAX_PROGS is 64


@dataclass(frozen=True)
class QueryResult:
    """What BPF_PROG_QUERY wrote.

    `count` is how many programs there are; the lists hold as many as fitted and are empty for arrays that
    were not asked for. `arrays` has every array as it lay in memory afterwards, by the attribute's name.
    `errno` is 0, or one that the caller tolerated.
    """

    revision: int
    count: int
    attach_flags: int
    prog_ids: list[int]
    link_ids: list[int]
    prog_attach_flags: list[int]
    link_attach_flags: list[int]
    arrays: dict[str, list[int]]
    errno: int


@contextmanager
def device(target: Any) -> Iterator[int]:
    """The ifindex of a number, a device name, or an object with `ifindex` or `index`. Raises OSError."""
    if isinstance(target, int):
        yield target
    elif isinstance(target, str):
        yield socket.if_nametoindex(target)
    else:
        yield int(target.ifindex if hasattr(target, "ifindex") else target.index)


@contextmanager
def cgroup_directory(target: Any) -> Iterator[int]:
    """A descriptor of a cgroup: a number, an object with `fd`, or a path, opened for the time.

    Raises OSError.
    """
    if isinstance(target, int):
        yield target
    elif hasattr(target, "fd"):
        yield int(target.fd)
    else:
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


class Family:
    """The calls of one family; `target` is what its `resolve` takes, `attach_type` defaults to the family's.

    `relative` and `replace` take objects: a link given as `relative` adds BPF_F_LINK, BPF_F_ID among the
    flags sends its id instead of its descriptor, `replace` adds BPF_F_REPLACE. The raw numbers `relative_fd`,
    `relative_id`, `replace_fd` add nothing. `size` is the attribute's size as told to the kernel.
    """

    def __init__(
        self,
        name: str,
        attach_type: int,
        resolve: Callable[[Any], AbstractContextManager[int]],
        arrays: tuple[str, ...],
    ) -> None:
        self.name = name
        self.attach_type = attach_type
        self._resolve = resolve
        self._arrays = arrays

    def attach(
        self,
        target: Any,
        prog: Prog | int,
        *,
        attach_type: int | None = None,
        flags: int = 0,
        relative: Prog | Link | None = None,
        relative_fd: int = 0,
        relative_id: int = 0,
        replace: Prog | None = None,
        replace_fd: int = 0,
        expected_revision: int = 0,
        size: int | None = None,
    ) -> None:
        """BPF_PROG_ATTACH. Raises BpfError."""
        self._change(
            uapi.BPF_PROG_ATTACH,
            target,
            prog,
            attach_type,
            flags | (uapi.BPF_F_REPLACE if replace is not None else 0),
            relative,
            relative_fd or relative_id,
            fd_of(replace) or replace_fd,
            expected_revision,
            size,
        )

    def detach(
        self,
        target: Any,
        prog: Prog | int | None = None,
        *,
        attach_type: int | None = None,
        flags: int = 0,
        relative: Prog | Link | None = None,
        relative_fd: int = 0,
        relative_id: int = 0,
        expected_revision: int = 0,
        size: int | None = None,
    ) -> None:
        """BPF_PROG_DETACH; without `prog` whatever stands at the place. Raises BpfError."""
        anchor = relative_fd or relative_id
        self._change(
            uapi.BPF_PROG_DETACH,
            target,
            prog,
            attach_type,
            flags,
            relative,
            anchor,
            0,
            expected_revision,
            size,
        )

    def _change(
        self,
        cmd: int,
        target: Any,
        prog: Prog | int | None,
        attach_type: int | None,
        flags: int,
        relative: Prog | Link | None,
        anchor: int,
        replace_fd: int,
        expected_revision: int,
        size: int | None,
    ) -> None:
        flags, anchor = _anchor(flags, relative, anchor)
        with self._resolve(target) as number:
            attr = ProgAttach(
                target_fd=number,
                attach_bpf_fd=fd_of(prog),
                attach_type=self.attach_type if attach_type is None else attach_type,
                attach_flags=flags,
                replace_bpf_fd=replace_fd,
                relative_fd=anchor,
                expected_revision=expected_revision,
            )
            bpf(cmd, attr, size)

    def link(
        self,
        target: Any,
        prog: Prog | int,
        *,
        attach_type: int | None = None,
        flags: int = 0,
        relative: Prog | Link | None = None,
        relative_fd: int = 0,
        relative_id: int = 0,
        expected_revision: int = 0,
        size: int | None = None,
    ) -> Link:
        """BPF_LINK_CREATE. Raises BpfError."""
        flags, anchor = _anchor(flags, relative, relative_fd or relative_id)
        with self._resolve(target) as number:
            attr = LinkCreateMprog(
                prog_fd=fd_of(prog),
                target_fd=number,
                attach_type=self.attach_type if attach_type is None else attach_type,
                flags=flags,
                relative_fd=anchor,
                expected_revision=expected_revision,
            )
            return Link.create(attr, size=size)

    def query(
        self,
        target: Any,
        *,
        attach_type: int | None = None,
        flags: int = 0,
        attach_flags: int = 0,
        count: int = CAPACITY,
        arrays: tuple[str, ...] | None = None,
        fill: int = 0,
        revision: int = 0,
        tolerate: tuple[int, ...] = (),
    ) -> QueryResult:
        """BPF_PROG_QUERY. Raises BpfError for any errno not in `tolerate`.

        `count` is the length told to the kernel. `arrays` names the arrays that are passed, the others are
        NULL; they are at least CAPACITY long whatever `count` is, and hold `fill` before the call.
        """
        buffers = {
            name: (ctypes.c_uint32 * max(count, CAPACITY))(*[fill] * max(count, CAPACITY))
            for name in (self._arrays if arrays is None else arrays)
        }
        failure = 0
        with self._resolve(target) as number:
            attr = ProgQuery(
                target_fd=number,
                attach_type=self.attach_type if attach_type is None else attach_type,
                query_flags=flags,
                attach_flags=attach_flags,
                count=count,
                revision=revision,
            )
            for name, buffer in buffers.items():
                attr.point(name, buffer)
            try:
                bpf(uapi.BPF_PROG_QUERY, attr)
            except BpfError as error:
                if error.errno not in tolerate:
                    raise
                failure = error.errno or 0
        written = {name: list(buffer[: min(count, attr.count)]) for name, buffer in buffers.items()}
        return QueryResult(
            revision=attr.revision,
            count=attr.count,
            attach_flags=attr.attach_flags,
            prog_ids=written.get("prog_ids", []),
            link_ids=written.get("link_ids", []),
            prog_attach_flags=written.get("prog_attach_flags", []),
            link_attach_flags=written.get("link_attach_flags", []),
            arrays={name: list(buffer) for name, buffer in buffers.items()},
            errno=failure,
        )


def _anchor(flags: int, relative: Prog | Link | None, number: int) -> tuple[int, int]:
    if relative is None:
        return flags, number
    if isinstance(relative, Link):
        flags |= uapi.BPF_F_LINK
    return flags, relative.id if flags & uapi.BPF_F_ID else relative.fd
