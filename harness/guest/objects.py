# SPDX-License-Identifier: MIT
"""What exists in the guest now (BPF objects, modules, namespaces, pins), and waiting until nothing new is."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import GetId
from harness.guest.bpf.descriptor import Descriptor, ids
from harness.guest.bpf.info import btf_info, link_info, map_info, prog_info
from harness.guest.bpf.syscall import BpfError, bpf
from harness.guest.netns_census import network_namespaces
from harness.guest.waiting import slow_factor
from harness.verdict.inventory import Inventory, Item
from harness.verdict.leaks import leaks

BPFFS = "/sys/fs/bpf"

# Deferred frees take RCU grace periods, never less than some milliseconds.
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05


def inventory() -> Inventory:
    """Everything that exists now. Raises BpfError (EPERM) when it may not be asked for.

    What is known of a program, map or BTF object is asked for once per process and id: the kernel does not
    reuse ids (kernel/bpf/syscall.c: idr_alloc_cyclic).
    """
    return Inventory(**{kind: lister() for kind, lister in LISTERS.items()})


def settle(before: Inventory, timeout: float) -> Inventory:
    """The inventory as soon as `harness.verdict.leaks` finds nothing in it, or when time is up.

    Kernel objects go in the background, after RCU grace periods and in workqueues (kernel/bpf/syscall.c:
    bpf_link_put, net/core/net_namespace.c: cleanup_net). `timeout` is in native seconds. While waiting, only
    the kinds that have something left are looked at. Where nothing differs, it is `before` that comes back.
    """
    now = inventory()
    if now == before:
        return before
    deadline = time.monotonic() + timeout * slow_factor()
    pause = FIRST_PAUSE
    while left_over := leaks(before, now):
        left = deadline - time.monotonic()
        if left <= 0:
            return now
        time.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_PAUSE)
        again = {kind for leak in left_over for kind in KINDS_OF_LEAK[leak.kind]}
        now = replace(now, **{kind: LISTERS[kind]() for kind in again})
    now = inventory()
    return before if now == before else now


def _describe_prog(fd: int) -> Item:
    info = prog_info(fd)
    return Item.make(
        info.id, info.name, type=_short("prog_type", "BPF_PROG_TYPE_", info.type), tag=info.tag.hex()
    )


def _describe_map(fd: int) -> Item:
    info = map_info(fd)
    return Item.make(info.id, info.name, type=_short("map_type", "BPF_MAP_TYPE_", info.type))


def _describe_link(fd: int) -> Item:
    info = link_info(fd)
    kind = _short("link_type", "BPF_LINK_TYPE_", info.type)
    targets = (
        ("device", info.ifindex),
        ("map", info.map_id),
        ("cgroup", info.cgroup_id),
        ("btf", info.target_btf_id),
    )
    target = next((f" on {what} {number}" for what, number in targets if number), "")
    return Item.make(info.id, kind + target, type=kind, prog_id=info.prog_id)


def _describe_btf(fd: int) -> Item:
    info = btf_info(fd)
    return Item.make(info.id, info.name, kernel=int(info.kernel_btf))


def _short(field: str, prefix: str, value: int) -> str:
    return (uapi.name_of(field, value) or str(value)).removeprefix(prefix).lower()


# A link is asked about each time: BPF_LINK_UPDATE gives it another program.
_known: dict[tuple[int, int], Item] = {}


def _bpf_lister(
    next_command: int, fd_command: int, describe: Callable[[int], Item], *, remember: bool = True
) -> Callable[[], tuple[Item, ...]]:
    def list_all() -> tuple[Item, ...]:
        items = []
        for id in ids(next_command):
            item = _known.get((next_command, id))
            if item is None:
                try:
                    fd = bpf(fd_command, GetId(id=id))
                except BpfError as gone:
                    if gone.errno == errno.ENOENT:
                        continue
                    raise
                try:
                    item = describe(fd)
                finally:
                    os.close(fd)
                if remember:
                    _known[next_command, id] = item
            items.append(item)
        return tuple(items)

    return list_all


def _modules() -> tuple[Item, ...]:
    found = sorted(modules.loaded(), key=lambda module: module.name)
    return tuple(
        Item.make(
            m.name, m.name, refcount=-1 if m.refcount is None else m.refcount, state=m.state, taint=m.taint
        )
        for m in found
    )


def _pins() -> tuple[Item, ...]:
    return tuple(Item.make(path, path, kind=_pin_kind(path)) for path in sorted(_files(BPFFS)))


def _files(directory: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry.path


def _pin_kind(path: str) -> str:
    """`prog`, `map` or `link`, by the file descriptor's fdinfo; "unknown" when it can't be opened."""
    try:
        with Descriptor.get(path) as pinned:
            keys = {
                line.partition(":")[0]
                for line in Path(f"/proc/self/fdinfo/{pinned.fd}").read_text().splitlines()
            }
    except OSError:
        return "unknown"
    # A link's fdinfo names its program, too.
    return next((kind for kind in ("link", "map", "prog") if f"{kind}_id" in keys), "unknown")


LISTERS: dict[str, Callable[[], tuple[Item, ...]]] = {
    "progs": _bpf_lister(uapi.BPF_PROG_GET_NEXT_ID, uapi.BPF_PROG_GET_FD_BY_ID, _describe_prog),
    "maps": _bpf_lister(uapi.BPF_MAP_GET_NEXT_ID, uapi.BPF_MAP_GET_FD_BY_ID, _describe_map),
    "links": _bpf_lister(
        uapi.BPF_LINK_GET_NEXT_ID, uapi.BPF_LINK_GET_FD_BY_ID, _describe_link, remember=False
    ),
    "btfs": _bpf_lister(uapi.BPF_BTF_GET_NEXT_ID, uapi.BPF_BTF_GET_FD_BY_ID, _describe_btf),
    "modules": _modules,
    "netns": network_namespaces,
    "pins": _pins,
}

# Which lists to take again to see whether a leak is still there; a module's BTF is told by the module.
KINDS_OF_LEAK: dict[str, tuple[str, ...]] = {
    "prog": ("progs",),
    "map": ("maps",),
    "link": ("links",),
    "btf": ("btfs", "modules"),
    "module": ("modules",),
    "module-reference": ("modules",),
    "netns": ("netns",),
    "pin": ("pins",),
}
