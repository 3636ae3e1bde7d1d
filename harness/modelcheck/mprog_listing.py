# SPDX-License-Identifier: MIT
"""A sequence of calls as the text of a scenario that can be pasted into scenarios/mprog."""

from __future__ import annotations

import errno as errno_numbers
import re
from collections.abc import Sequence

from harness.guest.bpf import uapi
from harness.modelcheck.facility import by_op
from harness.oracle import mprog_calls as all_calls
from harness.oracle.calls import CLOSED, Call, Close, Pin, Reopen, Unpin
from harness.oracle.families import HOOKS, Features
from harness.oracle.mprog_calls import (
    MAP,
    AddQdisc,
    Attach,
    DeleteQdisc,
    Detach,
    Fill,
    LinkCreate,
    LinkDetach,
    LinkUpdate,
    MoveDevice,
    Query,
    RemoveDevice,
    named_by,
)
from harness.oracle.objects import PROGRAMS
from harness.oracle.world import World

_FLAGS = (
    "BPF_F_ALLOW_OVERRIDE",
    "BPF_F_ALLOW_MULTI",
    "BPF_F_REPLACE",
    "BPF_F_BEFORE",
    "BPF_F_AFTER",
    "BPF_F_ID",
    "BPF_F_PREORDER",
    "BPF_F_LINK",
)
KINDS = by_op(all_calls)


def scenario(calls: Sequence[Call], features: Features) -> str:
    """The imports and a test function that makes the calls and asserts what the model says.

    Its fixtures are those of scenarios/mprog/conftest.py.
    """
    text = "\n".join(_Text(calls, features).lines()) + "\n"
    imports = [line for line, pattern in _IMPORTS.items() if re.search(pattern, text)]
    flags = sorted(set(re.findall(r"\bBPF_(?:F|TCX|NETKIT|CGROUP)_\w+", text)))
    if flags:
        imports.append(f"from harness.guest.bpf.uapi import {', '.join(flags)}")
    return "\n".join([*imports, "", "", text])


# A line, and the pattern of what needs it.
_IMPORTS = {
    "import errno": r"\berrno\.",
    "from harness.guest import qdisc": r"\bqdisc\.",
    "from harness.guest.bpf import cgroup": r"\bcgroup\.",
    "from harness.guest.bpf import netkit": r"\bnetkit\.",
    "from harness.guest.bpf import tcx": r"\btcx\.",
    "from harness.guest.bpf import uapi": r"\buapi\.",
    "from harness.guest.bpf.attrs import LinkDetach": r"\bLinkDetach\(",
    "from harness.guest.bpf.attrs import LinkUpdate": r"\bLinkUpdate\(",
    "from harness.guest.bpf.map import Map": r"\bMap\.",
    "from harness.guest.bpf.prog import Prog": r"\bProg\b",
    "from harness.guest.bpf.syscall import bpf": r"\bbpf\(",
    "from harness.guest.bpf.syscall import refused": r"\brefused\(",
    "from harness.guest.bpf.link import Link": r"\bLink[.(]",
    "from harness.guest.net import Device": r"\bDevice\b",
    "from harness.guest.netns import NetNamespace": r"\bNetNamespace\b",
    "from harness.guest.rtnl import delete_link": r"\bdelete_link\(",
    "from harness.guest.rtnl import move_link": r"\bmove_link\(",
    "from harness.guest.waiting import wait_until": r"\bwait_until\(",
    "from pathlib import Path": r"\bPath\b",
    "from scenarios.conftest import LoadSchedCls": r"\bLoadSchedCls\b",
    "from scenarios.mprog.conftest import LoadCgroupSkb": r"\bLoadCgroupSkb\b",
    "from scenarios.mprog.conftest import ids": r"\bids\(",
}
# Longer lists are told by their length.
_MANY = 8
_SPARE = re.compile(r"\bspare(\d+)\b")
# What nothing has: a descriptor, an id, a device.
_NOT_OPEN, _NO_ID, _NO_DEVICE = "8191", "0x7FFFFFFF", "199"
_DEFAULTS = {"tcx": "BPF_TCX_INGRESS", "netkit": "BPF_NETKIT_PRIMARY", "cgroup": "BPF_CGROUP_INET_EGRESS"}
_TARGETS = {"cg": "groups[0]", "cg/sub": "groups[1]", "gone": _NO_DEVICE}


class _Text:
    """The model goes along, so that each line says what comes of its call."""

    def __init__(self, calls: Sequence[Call], features: Features) -> None:
        self._calls = calls
        self._world = World(features)
        self._words = {word for call in calls for word in call.to_json().values() if isinstance(word, str)}
        self._targets = {HOOKS[word].target for word in self._words if word in HOOKS} | self._words
        self._held = {call.name for call in calls if isinstance(call, Pin | Reopen)}
        self._spare_types = {HOOKS[call.hook].family == "cgroup" for call in calls if isinstance(call, Fill)}

    def lines(self) -> list[str]:
        fixtures, set_up = [], []
        if self._targets & {"d0", "d1"}:
            fixtures.append("ends: tuple[Device, Device]")
            set_up.append("d0, d1 = ends")
        if self._targets & {"nk", "nk_peer"}:
            fixtures.append("netkit_ends: tuple[Device, Device]")
            set_up.append("nk, nk_peer = netkit_ends")
        if self._targets & {"cg", "cg/sub"}:
            fixtures.append("groups: tuple[Path, Path]")
        for type, loader, cgroup in (
            ("sched_cls", "LoadSchedCls", False),
            ("cgroup_skb", "LoadCgroupSkb", True),
        ):
            names = [name for name in PROGRAMS if name in self._words and PROGRAMS[name] == type]
            if names or cgroup in self._spare_types:
                fixtures.append(f"{type}: {loader}")
            if names:
                set_up.append(f"{', '.join(names)} = {', '.join([f'{type}()'] * len(names))}")
        if any(isinstance(call, MoveDevice) for call in self._calls):
            fixtures.append("netns: NetNamespace, elsewhere: NetNamespace")
        if MAP in self._words:
            set_up.append(f"{MAP} = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1)")
        if self._spare_types:
            set_up.append("spare: list[Prog] = []")
        body = [_SPARE.sub(r"spare[\1]", line) for call in self._calls for line in self._call(call)]
        body += [f"{_pin(name)}.unlink()" for name, link in self._world.objects.links.items() if link.pinned]
        head = f"def test_as_the_model_says({', '.join(fixtures)}) -> None:"
        return [head, *(f"    {line}" for line in (*set_up, *body))]

    def _call(self, call: Call) -> list[str]:
        links = self._world.objects.links
        link = links.get(named_by(call))
        hook: str | None = link.hook if link else getattr(call, "hook", None)
        line = self._line(call)
        outcome = self._world.do(call)
        if isinstance(call, LinkCreate) and call.link in self._held:
            line += f"\nassert {call.link}.id  # known from now on, open or not"
        if outcome.errno:
            with_link = isinstance(call, LinkCreate)
            expected = f"with refused(errno.{errno_numbers.errorcode[outcome.errno]}):  # {outcome.rule}"
            line = line.partition(" = ")[2] if with_link else line
            return [expected, *(f"    {part}" for part in line.splitlines())]
        if isinstance(call, Query) and outcome.view:
            progs = ", ".join(outcome.view.progs)
            return [
                f"seen = {line}",
                f"assert (seen.count, seen.prog_ids) == ({outcome.view.count}, ids({progs}))",
            ]
        seen = self._world.do(Query(hook)).view if hook else None
        if hook is None or seen is None:
            return line.splitlines()
        query = f"seen = {HOOKS[hook].family}.query({self._at(hook)})"
        shown = f"(seen.revision, seen.count) == ({seen.revision}, {seen.count})"
        if seen.count <= _MANY:
            shown = f"(seen.revision, seen.prog_ids) == ({seen.revision}, ids({', '.join(seen.progs)}))"
        if isinstance(call, Unpin) and link is not None and not link.open:  # the kernel lets go of it later
            awaited = shown.replace("seen.", f"{HOOKS[hook].family}.query({self._at(hook)}).")
            return [*line.splitlines(), f'wait_until(lambda: {awaited}, timeout=1, what="{call.name} to go")']
        return [*line.splitlines(), query, f"assert {shown}"]

    def _line(self, call: Call) -> str:
        match call:
            case Attach():
                replaced = [f"replace_fd={self._fd(call.replace)}"] if call.replace is not None else []
                return self._verb("attach", call, call.prog, replaced)
            case Detach():
                return self._verb("detach", call, call.prog, [])
            case LinkCreate():
                return f"{call.link} = {self._verb('link', call, call.prog, [])}"
            case LinkUpdate():
                fds = f"link_fd={self._fd(call.link)}, new_prog_fd={self._fd(call.prog)}"
                rest = f"flags={_flags(call.flags)}, old_prog_fd={self._fd(call.old)}"
                return f"bpf(uapi.BPF_LINK_UPDATE, LinkUpdate({fds}, {rest}))"
            case LinkDetach():
                return f"bpf(uapi.BPF_LINK_DETACH, LinkDetach(link_fd={self._fd(call.link)}))"
            case Close():
                return f"{call.name}.close()"
            case Query():
                arrays = "" if call.with_ids else ", arrays=()"
                asked = f"count={call.count}, flags={call.flags}, attach_flags={call.attach_flags}{arrays}"
                return f"{HOOKS[call.hook].family}.query({self._at(call.hook)}, {asked}, tolerate=(errno.ENOSPC,))"
            case Pin():
                open_ = self._world.objects.is_open(call.name)
                return f"{call.name if open_ else f'Link({_NOT_OPEN})'}.pin({_pin(call.name)})"
            case Unpin():
                return f"{_pin(call.name)}.unlink()"
            case Reopen():
                how = f"from_id({call.name}.id)" if call.by_id else f"get({_pin(call.name)})"
                return f"{call.name} = Link.{how}"
            case AddQdisc():
                return f"qdisc.add_{call.kind}({call.device})"
            case DeleteQdisc():
                return f"qdisc.delete_{call.kind}({call.device})"
            case MoveDevice():
                there, to = "netns", "elsewhere"
                if call.device in self._world.away:
                    there, to = to, there
                return f"{there}.rtnl.request(move_link({call.device}.ifindex, {to}.fd))"
            case RemoveDevice():
                return f"{call.device}.ns.rtnl.request(delete_link({call.device}.ifindex))"
            case Fill():
                cgroup = HOOKS[call.hook].family == "cgroup"
                prog, flags = ("cgroup_skb()", ", flags=BPF_F_ALLOW_MULTI") if cgroup else ("sched_cls()", "")
                family, at = HOOKS[call.hook].family, self._at(call.hook)
                target, _, rest = at.partition(", ")
                words = ", ".join([target, "spare[-1]", *([rest] if rest else [])])
                return (
                    f"while {family}.query({at}).count < {call.size}:\n"
                    f"    spare.append({prog})\n"
                    f"    {family}.attach({words}{flags})"
                )
        raise TypeError(f"no text for {call}")

    def _verb(self, verb: str, call: Attach | Detach | LinkCreate, prog: str | None, more: list[str]) -> str:
        target, _, attach_type = self._at(call.hook).partition(", ")
        words = [target]
        if prog is not None:
            words.append(prog if self._fd(prog) == f"{prog}.fd" else self._fd(prog))
        words += [attach_type] if attach_type else []
        if call.flags:
            words.append(f"flags={_flags(call.flags)}")
        if call.anchor is not None and call.flags & uapi.BPF_F_ID:
            words.append("relative_id=" + (_NO_ID if call.anchor == CLOSED else f"{call.anchor}.id"))
        elif call.anchor is not None:
            words.append(f"relative_fd={self._fd(call.anchor)}")
        if call.revision:
            words.append(f"expected_revision={call.revision}")
        return f"{HOOKS[call.hook].family}.{verb}({', '.join([*words, *more])})"

    def _at(self, hook: str) -> str:
        """The target, and the attach type where it is not the family's default one."""
        place = HOOKS[hook]
        usual = place.attach_type == _DEFAULTS[place.family]
        return _TARGETS.get(place.target, place.target) + (
            "" if usual else f", attach_type={place.attach_type}"
        )

    def _fd(self, name: str | None) -> str:
        if name is None:
            return "0"
        objects = self._world.objects
        return f"{name}.fd" if objects.is_open(name) else _NOT_OPEN


def _pin(link: str) -> str:
    """Where a link is pinned."""
    return f'Path("/sys/fs/bpf/{link}")'


def _flags(flags: int) -> str:
    """BPF_F_BEFORE | BPF_F_ID, unknown bits in hex."""
    names = [name for name in _FLAGS if flags & getattr(uapi, name)]
    rest = flags & ~sum(getattr(uapi, name) for name in names)
    return " | ".join([*names, *([hex(rest)] if rest or not names else [])]) if flags else "0"
