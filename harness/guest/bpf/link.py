# SPDX-License-Identifier: MIT
"""BPF links: creation for each kind of target, update, detach, iterators."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Self

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import (
    IterCreate,
    IterMapInfo,
    LinkCreate,
    LinkCreateIter,
    LinkCreateMprog,
    LinkCreateTracing,
    LinkDetach,
    LinkUpdate,
    RawTracepoint,
)
from harness.guest.bpf.descriptor import Descriptor, fd_of
from harness.guest.bpf.info import LinkInfo, link_info
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import bpf


class Link(Descriptor):
    """A link; closing the last descriptor of an unpinned link detaches its program."""

    _GET_FD = uapi.BPF_LINK_GET_FD_BY_ID
    _GET_NEXT = uapi.BPF_LINK_GET_NEXT_ID

    @classmethod
    def create(cls, attr: LinkCreate, *, size: int | None = None) -> Self:
        """Create from attributes of any arm. Raises BpfError."""
        return cls(bpf(uapi.BPF_LINK_CREATE, attr, size))

    @classmethod
    def mprog(
        cls,
        target: int,
        prog: Prog | int,
        attach_type: int,
        *,
        flags: int = 0,
        relative: int = 0,
        expected_revision: int = 0,
    ) -> Self:
        """A tcx, netkit or cgroup link: `target` is an ifindex or a cgroup's descriptor. Raises BpfError."""
        return cls.create(
            LinkCreateMprog(
                prog_fd=fd_of(prog),
                target_fd=target,
                attach_type=attach_type,
                flags=flags,
                relative_fd=relative,
                expected_revision=expected_revision,
            )
        )

    @classmethod
    def struct_ops(cls, map: Map | int, *, flags: int = 0) -> Self:
        """Register a READY struct_ops map. Raises BpfError."""
        return cls.create(LinkCreate(map_fd=fd_of(map), attach_type=uapi.BPF_STRUCT_OPS, flags=flags))

    @classmethod
    def tracing(
        cls,
        prog: Prog | int,
        attach_type: int,
        *,
        target_fd: int = 0,
        target_btf_id: int = 0,
        cookie: int = 0,
        flags: int = 0,
    ) -> Self:
        """A link of an fentry, fexit, modify-return, LSM or extension program. Raises BpfError."""
        return cls.create(
            LinkCreateTracing(
                prog_fd=fd_of(prog),
                target_fd=target_fd,
                attach_type=attach_type,
                target_btf_id=target_btf_id,
                cookie=cookie,
                flags=flags,
            )
        )

    @classmethod
    def raw_tracepoint(cls, prog: Prog | int, name: str | None = None) -> Self:
        """Attach by BPF_RAW_TRACEPOINT_OPEN; without a name to what a tracing program was loaded for.

        Raises BpfError.
        """
        attr = RawTracepoint(prog_fd=fd_of(prog))
        attr.point("name", None if name is None else ctypes.create_string_buffer(name.encode()))
        return cls(bpf(uapi.BPF_RAW_TRACEPOINT_OPEN, attr))

    @classmethod
    def iterator(
        cls, prog: Prog | int, *, map: Map | int | None = None, info: ctypes.Structure | None = None
    ) -> Self:
        """A link of an iterator program, over a map if one is given, or with any other `info`.

        Raises BpfError.
        """
        if map is not None:
            info = IterMapInfo(map_fd=fd_of(map))
        attr = LinkCreateIter(prog_fd=fd_of(prog), attach_type=uapi.BPF_TRACE_ITER)
        attr.point("iter_info", info)
        attr.iter_info_len = 0 if info is None else ctypes.sizeof(info)
        return cls.create(attr)

    def read_iterator(self) -> bytes:
        """Run the iterator once from beginning to end; what its program wrote. Raises BpfError, OSError."""
        fd = bpf(uapi.BPF_ITER_CREATE, IterCreate(link_fd=self.fd))
        with os.fdopen(fd, "rb", buffering=0) as stream:
            return stream.readall()

    def info(self) -> LinkInfo:
        """The kernel's description, asked for anew. Raises BpfError."""
        return link_info(self.fd)

    @functools.cached_property
    def id(self) -> int:
        """The kernel's id of this link."""
        return self.info().id

    def update(self, new: Prog | Map | int, *, old: Prog | Map | int | None = None, flags: int = 0) -> None:
        """Replace the program (of struct_ops: the map); naming `old` adds BPF_F_REPLACE. Raises BpfError."""
        if old is not None:
            flags |= uapi.BPF_F_REPLACE
        bpf(
            uapi.BPF_LINK_UPDATE,
            LinkUpdate(link_fd=self.fd, new_prog_fd=fd_of(new), old_prog_fd=fd_of(old), flags=flags),
        )

    def detach(self) -> None:
        """Detach and leave the link as an empty object (BPF_LINK_DETACH). Raises BpfError."""
        bpf(uapi.BPF_LINK_DETACH, LinkDetach(link_fd=self.fd))
