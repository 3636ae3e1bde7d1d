# SPDX-License-Identifier: MIT
"""Programs and links, and what descriptors and ids lead to; the errno when it is not what was wanted."""

from __future__ import annotations

import errno
from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import NoReturn

from harness.guest.bpf.uapi import BPF_F_ID, BPF_F_LINK
from harness.oracle.families import CGROUP_SKB, SCHED_CLS
from harness.oracle.mprog_calls import MAP
from harness.oracle.refusal import Refused

# The programs that a sequence has from its start.
PROGRAMS = dict.fromkeys("abcdef", SCHED_CLS) | dict.fromkeys("uvwxy", CGROUP_SKB)


@dataclass(frozen=True)
class Program:
    """A loaded program; `open` while user space has its descriptor."""

    type: str
    open: bool = True


@dataclass(frozen=True)
class Link:
    """A link that something holds: its hook, its program; `attached` until it is detached or the hook's device goes.

    `open` while user space has its descriptor, `pinned` while a path leads to it.
    """

    hook: str
    prog: str
    attached: bool = True
    open: bool = True
    pinned: bool = False


@dataclass
class Objects:
    """All programs that were ever loaded, all links that exist."""

    progs: dict[str, Program] = field(
        default_factory=lambda: {name: Program(type) for name, type in PROGRAMS.items()}
    )
    links: dict[str, Link] = field(default_factory=dict)

    def open_prog(self, name: str | None, type: str | None, rule: str) -> Program:
        """The program whose descriptor this is, of that type if one is wanted."""
        if name not in self.progs:
            self._is_none(name, rule)
        prog = self.progs[name]
        if not prog.open:
            raise Refused(errno.EBADF, rule)
        if type is not None and prog.type != type:
            raise Refused(errno.EINVAL, rule)
        return prog

    def open_link(self, name: str, rule: str) -> Link:
        """The link whose descriptor this is."""
        if name not in self.links or not self.links[name].open:
            self._is_none(name, rule)
        return self.links[name]

    def _is_none(self, name: str | None, rule: str) -> NoReturn:
        """The descriptor of something else is EINVAL, as is 0: it is open, but nothing of BPF."""
        raise Refused(errno.EINVAL if name is None or self.is_open(name) else errno.EBADF, rule)

    def is_open(self, name: str) -> bool:
        """Whether user space has a descriptor of it."""
        found = self.links.get(name) or self.progs.get(name)
        return found.open if found else name == MAP

    def anchor(
        self, name: str | None, flags: int, type: str | None, attached: Set[str]
    ) -> tuple[str | None, str | None]:
        """(program, None) or (None, link): what `relative_fd` or `relative_id` leads to.

        `attached` are the programs that lists hold directly. `type` is what the anchor's program has to be
        (MPROG-ANCHOR-007), if anything (MPROG-ANCHOR-008, MPROG-CGROUP-017).
        """
        prog, link = self._link(name, flags) if flags & BPF_F_LINK else (name, None)
        if link is None:
            if not flags & BPF_F_ID:
                self.open_prog(name, None, "MPROG-ANCHOR-002")
            elif name is None or name not in self.alive(attached):
                raise Refused(errno.ENOENT, "MPROG-ANCHOR-003")  # MPROG-ANCHOR-011: no descriptor is needed
        if type is not None and self.progs[str(prog)].type != type:
            raise Refused(errno.EINVAL, "MPROG-ANCHOR-007")
        return (None, link) if link else (prog, None)

    def _link(self, name: str | None, flags: int) -> tuple[str, str]:
        """(its program, the link)."""
        if flags & BPF_F_ID and name not in self.links:
            raise Refused(errno.ENOENT, "MPROG-ANCHOR-006")
        if name in self.links and flags & BPF_F_ID:
            return self.links[name].prog, name
        if name is None:
            raise Refused(errno.EINVAL, "MPROG-ANCHOR-004")
        return self.open_link(name, "MPROG-ANCHOR-005").prog, name

    def alive(self, attached: Set[str]) -> set[str]:
        """Programs with a reference: a descriptor, a list that they are in directly (MPROG-ATTACH-018, MPROG-LIFE-008),
        or a link, even a defunct or a merely pinned one."""
        opened = {name for name, prog in self.progs.items() if prog.open}
        return opened | {link.prog for link in self.links.values()} | attached

    def close_prog(self, name: str) -> None:
        """Let go of the program's descriptor."""
        self.progs[name] = replace(self.open_prog(name, None, "close(2)"), open=False)
