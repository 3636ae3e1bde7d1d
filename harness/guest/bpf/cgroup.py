# SPDX-License-Identifier: MIT
"""Programs at a cgroup: INET_EGRESS unless another attach type is given, by path, descriptor or `Cgroup`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from harness.guest.bpf import uapi
from harness.guest.bpf.mprog import Family, QueryResult, cgroup_directory

__all__ = ["Cgroup", "QueryResult", "attach", "detach", "link", "query"]

ROOT = Path("/sys/fs/cgroup")

_family = Family("cgroup", uapi.BPF_CGROUP_INET_EGRESS, cgroup_directory, ("prog_ids",))
attach = _family.attach
detach = _family.detach
query = _family.query
link = _family.link


class Cgroup:
    """A cgroup of version 2 that was made here, with its directory open; a context manager that removes it."""

    def __init__(self, path: Path) -> None:
        """Make the cgroup. Raises OSError."""
        path.mkdir()
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.id = os.fstat(self.fd).st_ino
        """The number by which link info names it."""
        self._children: list[Self] = []

    @classmethod
    def create(cls, name: str) -> Self:
        """A cgroup right below the root. Raises OSError."""
        return cls(ROOT / name)

    def child(self, name: str) -> Self:
        """A cgroup below this one, which removes it when it goes itself. Raises OSError."""
        self._children.append(type(self)(self.path / name))
        return self._children[-1]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process is in the cgroup; sockets that it makes meanwhile belong to the cgroup for good."""
        before = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        (self.path / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            (ROOT / before.lstrip("/") / "cgroup.procs").write_text("0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self._children:
            child.__exit__()
        if self.path.exists():
            self.path.rmdir()
        os.close(self.fd)
