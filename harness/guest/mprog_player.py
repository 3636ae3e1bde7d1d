# SPDX-License-Identifier: MIT
"""Carries out a whole sequence of calls about ordered lists in one job, and tells what the kernel answered.

The calls are those of `harness.oracle.mprog_calls` as JSON, in terms of names; the answers are numbers, with the ids
that the names have got. Under TCG every line of Python counts, so attributes and buffers are made once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path
from typing import Any

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import LinkCreateMprog, LinkDetach, LinkUpdate, ProgAttach, ProgQuery
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.info import link_info
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.mprog import CAPACITY
from harness.guest.bpf.prog import Prog
from harness.guest.errnos import errno_of
from harness.guest.netns import NetNamespace
from harness.guest.playing import NO_ID, Staged, settled
from harness.guest.rtnl import (
    Request,
    delete_ingress_side,
    delete_link,
    move_link,
    new_ingress_side,
    new_netkit,
    new_veth,
)

# By the names of harness.oracle.families.HOOKS.
INDEX = {"d0": 101, "d1": 102, "nk": 103, "nk_peer": 104, "gone": 199}
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
CGROUPS = Path("/sys/fs/cgroup")
UNTOUCHED = 0xA5A5A5A5
SETTLE_SECONDS = 0.15

_TYPES = {"sched_cls": uapi.BPF_PROG_TYPE_SCHED_CLS, "cgroup_skb": uapi.BPF_PROG_TYPE_CGROUP_SKB}
_CODE = asm(mov(r0, 1), exit_())


def play(
    calls: list[dict[str, Any]],
    hooks: dict[str, tuple[str, int]],
    progs: dict[str, str],
    alive: list[str],
) -> dict[str, Any]:
    """Carry out the calls; `hooks` gives a target and an attach type for each hook's name, `progs` a type for each
    program's, `alive` the programs that shall still exist when user space has closed all but links.

    Returns "answers", for each call [errno, view of its hook or null], a view being [errno, revision, count,
    attach_flags, program ids, link ids]; "views", of all hooks at the end; "links", for each that is open [program id,
    whether it is attached], at the end and, as "defunct", after all targets were removed; "alive", the programs that
    do exist; "left", programs and links that exist when everything is closed; "ids" of all; "seconds" that the calls
    took. Raises OSError when the stage can't be set.
    """
    with Player(hooks, progs) as player:
        begin = time.monotonic()
        answers = [player.do(call) for call in calls]
        seconds = time.monotonic() - begin
        return {
            "answers": answers,
            "seconds": seconds,
            "views": {name: player.view(name) for name in hooks},
            "links": player.link_infos(),
            "alive": player.close_programs(alive),
            "defunct": player.remove_targets(),
            "left": player.close_links(),
            "ids": player.ids,
        }


class Player(Staged):
    """The stage: devices, cgroups, programs, links. A context manager that clears it all away."""

    def __init__(self, hooks: dict[str, tuple[str, int]], progs: dict[str, str]) -> None:
        super().__init__()
        self._hooks = hooks
        self._types = progs
        self._targets = dict(INDEX)
        self._fds[""] = 0
        self._links: dict[str, str] = {}  # name: hook
        self._names: dict[int, str] = {}
        self._away: set[str] = set()
        self._spares = 0
        self._attach, self._create = ProgAttach(), LinkCreateMprog()
        self._update, self._detach, self._query = LinkUpdate(), LinkDetach(), ProgQuery()
        self._prog_ids = (ctypes.c_uint32 * (CAPACITY + 1))()
        self._link_ids = (ctypes.c_uint32 * (CAPACITY + 1))()

    # Setting and clearing the stage

    def _set(self) -> None:
        used = {target for target, _ in self._hooks.values()}
        self._ns = self._stack.enter_context(NetNamespace.create())
        self._other_ns: NetNamespace | None = None
        self._stack.enter_context(self._ns.entered())
        requests = []
        if used & {"d0", "d1"}:
            requests.append(new_veth("d0", INDEX["d0"], MACS[0], "d1", INDEX["d1"], MACS[1], self._ns.fd))
        if used & {"nk", "nk_peer"}:
            requests.append(
                new_netkit(
                    "nk", INDEX["nk"], "nk_peer", INDEX["nk_peer"], self._ns.fd, policy=uapi.NETKIT_PASS
                )
            )
        if requests:
            self._ns.rtnl.request(*requests)
        self._devices = [name for name in ("d0", "nk") if used & {name, "d1" if name == "d0" else "nk_peer"}]
        self._groups: list[Path] = []
        if used & {"cg", "cg/sub"}:
            root = CGROUPS / f"kernrig-player-{os.getpid()}"
            for name, path in (("cg", root), ("cg/sub", root / "sub")):
                path.mkdir()
                self._groups.insert(0, path)
                self._targets[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                self._stack.callback(os.close, self._targets[name])
            self._stack.callback(self._remove_groups)
        a_map = self._stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1))
        self._fds["a_map"] = a_map.fd
        self._stack.callback(self._let_go)
        for name, type in self._types.items():
            self._load(name, type)

    def _load(self, name: str, type: str) -> None:
        self._know(name, Prog.load(_CODE, _TYPES[type], name=name))

    def _know(self, name: str, prog: Prog) -> None:
        self._names[prog.id] = name
        self._remember(name, prog)

    def _kind_of(self, name: str) -> type[Descriptor]:  # noqa: ARG002
        return Link  # whatever it is

    def _remove_groups(self) -> None:
        while self._groups:
            self._groups.pop(0).rmdir()

    # Calls

    def do(self, call: dict[str, Any]) -> list[Any]:
        """[errno, view]: carry out one call, and look at its hook afterwards."""
        op = call["op"]
        if op == "query":
            view = self.view(call["hook"], call)
            return [view[0], view]
        hook = call.get("hook") or self._links.get(call.get("link") or call.get("name") or "")
        error = getattr(self, f"_do_{op}")(call)
        return [error, self.view(hook) if hook else None]

    def _do_attach(self, call: dict[str, Any]) -> int:
        return self._change(uapi.BPF_PROG_ATTACH, call, self._fd(call["replace"]))

    def _do_detach(self, call: dict[str, Any]) -> int:
        return self._change(uapi.BPF_PROG_DETACH, call, 0)

    def _change(self, cmd: int, call: dict[str, Any], replace: int) -> int:
        target, attach_type = self._hooks[call["hook"]]
        attr = self._attach
        attr.target_fd = self._targets[target]
        attr.attach_bpf_fd = self._fd(call["prog"])
        attr.attach_type = attach_type
        attr.attach_flags = flags = call["flags"]
        attr.replace_bpf_fd = replace
        attr.relative_fd = self._number(call["anchor"], flags)
        attr.expected_revision = call["revision"]
        return -self._bpf(cmd, attr)

    def _do_link(self, call: dict[str, Any]) -> int:
        target, attach_type = self._hooks[call["hook"]]
        attr = self._create
        attr.prog_fd = self._fd(call["prog"])
        attr.target_fd = self._targets[target]
        attr.attach_type = attach_type
        attr.flags = flags = call["flags"]
        attr.relative_fd = self._number(call["anchor"], flags)
        attr.expected_revision = call["revision"]
        fd = self._bpf(uapi.BPF_LINK_CREATE, attr)
        if fd < 0:
            return -fd
        self._remember(call["link"], Link(fd))
        self._links[call["link"]] = call["hook"]
        return 0

    def _do_update(self, call: dict[str, Any]) -> int:
        attr = self._update
        attr.link_fd = self._fd(call["link"])
        attr.new_prog_fd = self._fd(call["prog"])
        attr.flags = call["flags"]
        attr.old_prog_fd = self._fd(call["old"])
        return -self._bpf(uapi.BPF_LINK_UPDATE, attr)

    def _do_link_detach(self, call: dict[str, Any]) -> int:
        self._detach.link_fd = self._fd(call["link"])
        return -self._bpf(uapi.BPF_LINK_DETACH, self._detach)

    def _do_fill(self, call: dict[str, Any]) -> int:
        hook = call["hook"]
        type = "cgroup_skb" if self._hooks[hook][0].startswith("cg") else "sched_cls"
        request = {"hook": hook, "anchor": None, "replace": None, "revision": 0}
        request["flags"] = uapi.BPF_F_ALLOW_MULTI if type == "cgroup_skb" else 0
        error = 0
        while error == 0 and 0 <= self.view(hook)[2] < call["size"]:
            name = f"spare{self._spares}"
            self._load(name, type)
            self._spares += 1
            error = self._do_attach(request | {"prog": name})
        return error

    def _do_unpin(self, call: dict[str, Any]) -> int:
        name = call["name"]
        if name not in self._pins or name in self._fds:
            return super()._do_unpin(call)
        with Link.from_id(self.ids[name]) as link:
            info = link.info()
        hook = self._links[name]
        before = self._view_where_it_is(hook)
        error = super()._do_unpin(call)
        # The kernel releases the link some time later.
        settled(lambda: self._is_gone(name), bool, SETTLE_SECONDS)
        if info.ifindex or info.cgroup_id:
            settled(lambda: self._view_where_it_is(hook), lambda view: view != before, SETTLE_SECONDS)
        return error

    def _do_add_qdisc(self, call: dict[str, Any]) -> int:
        return self._configure(new_ingress_side(INDEX[call["device"]], call["kind"]))

    def _do_delete_qdisc(self, call: dict[str, Any]) -> int:
        return self._configure(delete_ingress_side(INDEX[call["device"]], call["kind"]))

    def _do_remove_device(self, call: dict[str, Any]) -> int:
        return self._configure(delete_link(INDEX[call["device"]]))

    def _do_move_device(self, call: dict[str, Any]) -> int:
        device = call["device"]
        if self._other_ns is None:
            self._other_ns = self._stack.enter_context(NetNamespace.create())
        there, to = self._ns, self._other_ns
        if device in self._away:
            there, to = to, there
        error = self._configure(move_link(INDEX[device], to.fd), there)
        if error == 0:
            self._away ^= {device}
        return error

    def _configure(self, request: Request, ns: NetNamespace | None = None) -> int:
        return errno_of(lambda: (ns or self._ns).rtnl.request(request))

    def _view_where_it_is(self, hook: str) -> list[Any]:
        """The view from the namespace in which the hook's device is."""
        if self._hooks[hook][0] in self._away and self._other_ns is not None:
            return self._other_ns.run(self.view, hook)
        return self.view(hook)

    def _number(self, name: str | None, flags: int) -> int:
        if name is None:
            return 0
        return self.ids.get(name, NO_ID) if flags & uapi.BPF_F_ID else self._fd(name)

    def view(self, hook: str, call: dict[str, Any] | None = None) -> list[Any]:
        """What a query of the hook shows: with large arrays, or as `call` asks."""
        target, attach_type = self._hooks[hook]
        attr, ids, links = self._query, self._prog_ids, self._link_ids
        attr.target_fd = self._targets[target]
        attr.attach_type = attach_type
        attr.query_flags = call["flags"] if call else 0
        attr.attach_flags = call["attach_flags"] if call else 0
        attr.count = room = call["count"] if call else CAPACITY
        attr.revision = 0
        attr.prog_ids = ctypes.addressof(ids) if call is None or call["with_ids"] else 0
        plain = target.startswith("cg")
        attr.link_ids = 0 if plain else ctypes.addressof(links)
        if call:
            for place in range(CAPACITY + 1):
                ids[place] = links[place] = UNTOUCHED
        error = -self._bpf(uapi.BPF_PROG_QUERY, attr)
        shown = min(room, attr.count) if attr.prog_ids and error in (0, errno.ENOSPC) else 0
        if call and any(number != UNTOUCHED for number in (*ids[shown:], *links[0 if plain else shown :])):
            error = -1  # the kernel wrote behind the end
        return [
            error,
            attr.revision,
            attr.count,
            attr.attach_flags,
            ids[:shown],
            None if plain else links[:shown],
        ]

    # The end

    def link_infos(self) -> dict[str, list[Any]]:
        """[program id, whether it is attached] of each open link."""
        infos = {name: link_info(self._fds[name]) for name in self._links if name in self._fds}
        return {name: [info.prog_id, bool(info.ifindex or info.cgroup_id)] for name, info in infos.items()}

    def close_programs(self, alive: list[str]) -> list[str]:
        """Close all programs; those that then exist, as soon as they are just `alive` or after some time."""
        for name in [name for name in self._fds if name in self.ids and name not in self._links]:
            self._do_close({"name": name})
        return self._settle(set(alive))

    def remove_targets(self) -> dict[str, list[Any]]:
        """Remove all devices and cgroups; the links' infos when they have noticed, or after some time."""
        for device in self._devices:
            self._configure(delete_link(INDEX[device]), self._other_ns if device in self._away else None)
        self._remove_groups()
        return settled(
            self.link_infos, lambda infos: not any(attached for _, attached in infos.values()), SETTLE_SECONDS
        )

    def close_links(self) -> list[str]:
        """Let go of all links; programs and links that exist still, as soon as there are none or after some time."""
        self._let_go()
        return self._settle(set())

    def _settle(self, wanted: set[str]) -> list[str]:
        kept = {name for name in self._links if name in self._fds or name in self._pins}
        return sorted(settled(self._existing, lambda found: found == wanted | kept, SETTLE_SECONDS) - kept)
