# SPDX-License-Identifier: MIT
"""Which network namespaces there are: those with a name or a process, and those only the kernel knows of.

A namespace may be held by a descriptor, a mount or a socket that /proc does not show cheaply, or be on its
way out. So the kernel's own count is taken as well, from a slab cache. `net_namespace` counts too many: the
last ones that were dismantled keep their memory until the next one is (net/core/net_namespace.c:
net_complete_free). But each namespace holds some raw IPv6 control sockets from beginning to end (net/ipv6/
ndisc.c, mcast.c, tcp_ipv6.c: inet_ctl_sock_create; four in 6.12), and their cache is exact. A raw IPv6 socket
that was left open is counted as a namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.guest.netns import NAMED, NetNamespace
from harness.guest.waiting import WaitTimeout, wait_until
from harness.verdict.inventory import Item

CONTROL_SOCKETS = Path("/sys/kernel/slab/RAWv6")
PROC = Path("/proc")
INIT_PID = "1"
CHILDREN_OF_INIT = PROC / INIT_PID / "task" / INIT_PID / "children"

ATTEMPTS = 5


@dataclass(frozen=True)
class Scale:
    """How many control sockets there are without a further namespace, and how many each one adds."""

    base: int
    step: int

    def namespaces(self, sockets: int) -> int:
        """How many namespaces so many sockets mean; one that is half gone still counts."""
        return max(0, -((self.base - sockets) // self.step))


_scale: Scale | None = None
_no_scale = False


def network_namespaces() -> tuple[Item, ...]:
    """All network namespaces but the initial one; those only the kernel knows are called "unseen-N".

    The first call in a process (and those forked from it) makes a namespace and takes it down again, to learn
    what one looks like in the kernel's count.
    """
    global _scale, _no_scale
    if _scale is None and not _no_scale:
        _scale = _measure()
        _no_scale = _scale is None
    in_kernel = None
    if _scale is not None:
        in_kernel = _scale.namespaces(_sockets() or 0)
        if in_kernel == 0:
            return ()
    visible = _visible()
    items = [Item.make(inode, name) for inode, name in sorted(visible.items())]
    hidden = range(1, (in_kernel or 0) - len(items) + 1)
    return (*items, *(Item.make(f"unseen-{n}", "neither named nor any process's") for n in hidden))


def _measure() -> Scale | None:
    """The scale, from a namespace made for it; None where the kernel's count can't be had.

    Namespaces are dismantled in order: when ours is gone and the count is as before, none was on its way out.
    """
    for _ in range(ATTEMPTS):
        before = _sockets()
        if before is None:
            return None
        with NetNamespace.create():
            step = (_sockets() or 0) - before
        if step <= 0:
            continue
        if _sockets_at_most(before) == before:
            return Scale(base=before - step * len(_visible()), step=step)
    return None


def _sockets_at_most(limit: int) -> int | None:
    """The count as soon as it isn't more than `limit`; None when it stays above for a second (native)."""
    try:
        wait_until(lambda: (_sockets() or 0) <= limit, timeout=1.0, what="a namespace to be dismantled")
    except WaitTimeout:
        return None
    return _sockets()


def _sockets() -> int | None:
    """How many control sockets are in use; None without CONFIG_SLUB_DEBUG or IPv6.

    The file `objects` (mm/slub.c:show_slab_objects) takes all of each CPU's current slab for used; shrinking
    the cache first gives those back.
    """
    try:
        fd = os.open(CONTROL_SOCKETS / "shrink", os.O_WRONLY)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        fd = os.open(CONTROL_SOCKETS / "objects", os.O_RDONLY)
        try:
            return int(os.read(fd, 4096).split()[0])
        finally:
            os.close(fd)
    except OSError:
        return None


def _visible() -> dict[int, str]:
    """The namespaces with a name or a process, but the initial one: name or "process PID (NAME)" by inode."""
    found: dict[int, str] = {}
    for pid in _user_processes():
        try:
            inode = (PROC / pid / "ns/net").stat().st_ino
            if inode not in found:
                found[inode] = f"process {pid} ({(PROC / pid / 'comm').read_text().strip()})"
        except OSError:
            continue
    if NAMED.exists():
        found |= {entry.stat().st_ino: entry.name for entry in os.scandir(NAMED)}
    found.pop((PROC / INIT_PID / "ns/net").stat().st_ino, None)
    return found


def _user_processes() -> Iterator[str]:
    """The ids of init and its descendants, so no kernel threads; of all, without CONFIG_PROC_CHILDREN."""
    if not CHILDREN_OF_INIT.exists():
        yield from (entry.name for entry in os.scandir(PROC) if entry.name.isdigit())
        return
    queue = [INIT_PID]
    while queue:
        pid = queue.pop()
        yield pid
        try:
            for task in (PROC / pid / "task").iterdir():
                queue += (task / "children").read_text().split()
        except OSError:
            continue
