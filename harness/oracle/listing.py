# SPDX-License-Identifier: MIT
"""A sequence of calls as JSON, and as the text of a scenario that can be pasted into scenarios/mprog."""

from __future__ import annotations

import errno as errno_numbers
from collections.abc import Mapping, Sequence
from typing import Any

from harness.guest.bpf import uapi
from harness.oracle import calls as all_calls
from harness.oracle.calls import (
    CLOSED,
    MAP,
    AddClsact,
    Attach,
    Call,
    Close,
    DeleteClsact,
    Detach,
    Fill,
    LinkCreate,
    LinkDetach,
    LinkUpdate,
    Query,
    RemoveDevice,
)
from harness.oracle.families import HOOKS, Features
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
_OPS = {
    call.op: call
    for call in vars(all_calls).values()
    if isinstance(call, type) and issubclass(call, Call) and call is not Call
}


def from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    """The calls that `Call.to_json` described. Raises KeyError, TypeError for what is none."""
    made = []
    for row in data:
        fields = dict(row)
        made.append(_OPS[fields.pop("op")](**fields))
    return tuple(made)


def scenario(calls: Sequence[Call], features: Features) -> str:
    """A test function that makes the calls and asserts what the model says."""
    return "\n".join(_Text(calls, features).lines()) + "\n"


class _Text:
    """`targets` and the like are expressions of the scenario."""

    def __init__(self, calls: Sequence[Call], features: Features) -> None:
        self._calls = calls
        self._world = World(features)
        self._words = {word for call in calls for word in call.to_json().values() if isinstance(word, str)}
        families = {HOOKS[word].family for word in self._words if word in HOOKS}
        self._netkit = "netkit" in families or "nk" in self._words
        self._cgroup = "cgroup" in families

    def lines(self) -> list[str]:
        body = [line for call in self._calls for line in self._call(call)]
        fixtures = ["veth: VethPair", "sched_cls: LoadSchedCls"]
        if self._netkit:
            fixtures.append("netkit_pair: NetkitPair")
        if self._cgroup:
            fixtures += ["cgroups: tuple[Path, Path]", "cgroup_skb: LoadSchedCls"]
        return [
            f"def test_as_the_model_says({', '.join(fixtures)}) -> None:",
            *(f"    {line}" for line in (*self._set_up(), *body)),
        ]

    def _set_up(self) -> list[str]:
        lines = []
        if self._words & {"in", "out", "no_netkit", "d0", "other", "d1"}:
            lines.append("d0, d1 = veth.b, veth.a  # give both ends one namespace when d1 is used")
        if self._netkit:
            lines.append("pair = netkit_pair()")
            lines.append("nk, nk_peer = pair.a, pair.b")
        if self._cgroup:
            lines.append("cg, cg_sub = cgroups")
        for type, factory in (("sched_cls", "sched_cls"), ("cgroup_skb", "cgroup_skb")):
            names = [name for name in PROGRAMS if name in self._words and PROGRAMS[name] == type]
            if names:
                lines.append(f"{', '.join(names)} = {', '.join([f'{factory}()'] * len(names))}")
        if MAP in self._words:
            lines.append(f"{MAP} = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1)")
        return lines

    def _call(self, call: Call) -> list[str]:
        links = self._world.objects.links
        hook = getattr(call, "hook", None)
        for name in (getattr(call, "link", None), getattr(call, "name", None)):
            hook = hook or (links[name].hook if name in links else None)
        outcome = self._world.do(call)
        line = self._line(call)
        if outcome.errno:
            rule = f"  # {outcome.rule}"
            if isinstance(call, LinkCreate):
                line = line.partition(" = ")[2]
            return [f"with refused(errno.{errno_numbers.errorcode[outcome.errno]}):{rule}", f"    {line}"]
        seen = self._world.do(Query(hook)) if hook else None
        if hook is None or seen is None or seen.view is None or isinstance(call, Query):
            return [line]
        shown = f"{self._family(hook)}.query({self._at(hook)})"
        return [
            line,
            f"assert ({shown}.revision, {shown}.prog_ids) == ({seen.view.revision}, ids({', '.join(seen.view.progs)}))",
        ]

    def _line(self, call: Call) -> str:
        match call:
            case Attach():
                words = [self._at(call.hook), call.prog, *self._options(call)]
                if call.replace is not None:
                    words.append(f"replace_fd={self._fd(call.replace)}")
                return f"{self._family(call.hook)}.attach({', '.join(words)})"
            case Detach():
                words = [self._at(call.hook), *([call.prog] if call.prog else []), *self._options(call)]
                return f"{self._family(call.hook)}.detach({', '.join(words)})"
            case LinkCreate():
                words = [self._at(call.hook), call.prog, *self._options(call)]
                return f"{call.link} = {self._family(call.hook)}.link({', '.join(words)})"
            case LinkUpdate():
                fields = f"link_fd={self._fd(call.link)}, new_prog_fd={self._fd(call.prog)}, flags={_flags(call.flags)}"
                return f"bpf(uapi.BPF_LINK_UPDATE, LinkUpdate({fields}, old_prog_fd={self._fd(call.old)}))"
            case LinkDetach():
                return f"{call.link}.detach()"
            case Close():
                return f"{call.name}.close()"
            case Query():
                arrays = "" if call.with_ids else ", arrays=()"
                asked = f"count={call.count}, flags={call.flags}, attach_flags={call.attach_flags}{arrays}"
                return f"{self._family(call.hook)}.query({self._at(call.hook)}, {asked})"
            case AddClsact():
                return f"qdisc.add_clsact({call.device})"
            case DeleteClsact():
                return f"qdisc.delete_clsact({call.device})"
            case RemoveDevice():
                return f"{call.device}.ns.rtnl.request(delete_link({call.device}.ifindex))"
            case Fill():
                factory = "cgroup_skb" if HOOKS[call.hook].family == "cgroup" else "sched_cls"
                each = f"{self._family(call.hook)}.attach({self._at(call.hook)}, {factory}())"
                return f"while {self._family(call.hook)}.query({self._at(call.hook)}).count < {call.size}: {each}"
        raise TypeError(f"no text for {call}")

    def _family(self, hook: str) -> str:
        return HOOKS[hook].family

    def _at(self, hook: str) -> str:
        place = HOOKS[hook]
        target = {"cg/sub": "cg_sub", "gone": "NO_DEVICE"}.get(place.target, place.target)
        return f"{target}, attach_type={place.attach_type}"

    def _options(self, call: Attach | Detach | LinkCreate) -> list[str]:
        """The keywords of attach, detach and link that are not at their default."""
        options = []
        if call.flags:
            options.append(f"flags={_flags(call.flags)}")
        if call.anchor is not None:
            if call.flags & uapi.BPF_F_ID:
                options.append("relative_id=" + ("NO_ID" if call.anchor == CLOSED else f"{call.anchor}.id"))
            else:
                options.append(f"relative_fd={self._fd(call.anchor)}")
        if call.revision:
            options.append(f"expected_revision={call.revision}")
        return options

    def _fd(self, name: str | None) -> str:
        if name is None:
            return "0"
        closed = name == CLOSED or (name not in self._world.objects.links and name not in (*PROGRAMS, MAP))
        return "NOT_OPEN" if closed else f"{name}.fd"


def _flags(flags: int) -> str:
    """BPF_F_BEFORE | BPF_F_ID, unknown bits in hex."""
    names = [name for name in _FLAGS if flags & getattr(uapi, name)]
    rest = flags & ~sum(getattr(uapi, name) for name in names)
    return " | ".join([*names, *([hex(rest)] if rest or not names else [])]) if flags else "0"
