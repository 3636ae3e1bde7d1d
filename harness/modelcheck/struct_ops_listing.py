# SPDX-License-Identifier: MIT
"""A sequence of calls about congestion controls as the text of a scenario for scenarios/struct_ops."""

from __future__ import annotations

import errno as errno_numbers
import re
from collections.abc import Sequence

from harness.guest.bpf.uapi import BPF_F_LINK
from harness.modelcheck.facility import by_op
from harness.oracle import struct_ops_calls as all_calls
from harness.oracle.calls import Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.refusal import ENOTSUPP, UNTRIED
from harness.oracle.struct_ops import RETURNED_ONE, Features, Outcome, World
from harness.oracle.struct_ops_calls import (
    FUNCTIONS,
    OTHER_STRUCT,
    OTHER_TYPE,
    PROGRAMS,
    Choose,
    Connect,
    Create,
    Default,
    Detach,
    Link,
    Listen,
    Lookup,
    LookupAndDelete,
    NextKey,
    Relink,
    Talk,
    Update,
)

KINDS = by_op(all_calls)

# A line, and the pattern of what needs it.
_IMPORTS = {
    "import errno": r"\berrno\.",
    "import socket": r"\bsocket\.",
    "from pathlib import Path": r"\bPath\b",
    "import pytest": r"\bpytest\.",
    "from harness.guest import tcp": r"\btcp\.",
    "from harness.guest.bpf import btf": r"\bbtf\.",
    "from harness.guest.bpf import uapi": r"\buapi\.",
    "from harness.guest.bpf.asm import asm, exit_, mov, r0": r"\basm\(",
    "from harness.guest.bpf.attrs import LinkDetach": r"\bLinkDetach\(",
    "from harness.guest.bpf.attrs import LinkUpdate": r"\bLinkUpdate\(",
    "from harness.guest.bpf.attrs import MapElem": r"\bMapElem\(",
    "from harness.guest.bpf.link import Link": r"\bLink[.(]",
    "from harness.guest.bpf.map import Map": r"\bMap\.",
    "from harness.guest.bpf.prog import Prog": r"\bProg\.",
    "from harness.guest.bpf.struct_ops import StructOps": r"\bStructOps\b",
    "from harness.guest.bpf.struct_ops import load_struct_ops_prog": r"\bload_struct_ops_prog\b",
    "from harness.guest.bpf.syscall import bpf": r"\bbpf\(",
    "from harness.guest.bpf.syscall import refused": r"\brefused\(",
    "from harness.guest.netns import NetNamespace": r"\bNetNamespace\b",
    "from scenarios.struct_ops.algorithms import TYPE": r"\bTYPE\b",
    "from scenarios.struct_ops.algorithms import Seen, seen": r"\bSeen\(",
    "from scenarios.struct_ops.conftest import NewOps": r"\bNewOps\b",
}
_NOT_OPEN = "8191"
_SOCKETS = (Listen, Connect, Choose, Talk, Default)
_NOTHING = (Lookup, NextKey)  # whose ENOENT the guest library turns into None
_DEFAULT = "net.ipv4.tcp_congestion_control"


def scenario(calls: Sequence[Call], features: Features) -> str:
    """The imports and a test function that makes the calls and asserts what the model says.

    Its fixtures are those of scenarios/struct_ops/conftest.py.
    """
    text = "\n".join(_Text(calls, features).lines()) + "\n"
    imports = [line for line, pattern in _IMPORTS.items() if re.search(pattern, text)]
    return "\n".join([*imports, "", "", text])


class _Text:
    """The model goes along, so that each line says what comes of its call."""

    def __init__(self, calls: Sequence[Call], features: Features) -> None:
        self._calls = calls
        self._world = World(features)
        self._words = {word for call in calls for word in call.to_json().values() if isinstance(word, str)}

    def lines(self) -> list[str]:
        body = [f"{name} = {self._load(name)}" for name in PROGRAMS if name in self._words]
        for call in self._calls:
            body += self._told(call)
        if any(isinstance(call, _SOCKETS) for call in self._calls):
            body = [
                "with NetNamespace.create(loopback=True) as ns, ns.entered():",
                *(f"    {line}" for line in [f'ns.set_sysctl("{_DEFAULT}", "reno")', *body]),
            ]
        return [
            "def test_as_the_model_says(new_ops: NewOps) -> None:",
            *(f"    {line}" for line in body or ["pass"]),
        ]

    @staticmethod
    def _load(name: str) -> str:
        code = "asm(mov(r0, 10), exit_())"
        if name == OTHER_TYPE:
            return f"Prog.load({code}, uapi.BPF_PROG_TYPE_SCHED_CLS)"
        if name == OTHER_STRUCT:
            return f'load_struct_ops_prog("bpf_dummy_ops", "test_1", {code})'
        return f'load_struct_ops_prog(TYPE, "{name[:-2]}", {code})'

    def _told(self, call: Call) -> list[str]:
        text = self._text(call).split("\n")
        before = self._world.look()
        outcome = self._world.do(call)
        look = self._world.look()
        lines = [*self._expected(call, outcome, text)]
        made = getattr(call, call.op if call.op == "link" else "map", "")
        if isinstance(call, Create | Link) and Reopen(made, by_id=True) in self._calls and not outcome.errno:
            lines.append(f"{made}_id = {self._map(made)}.id")
        for name, head in look.maps.items():
            if before.maps.get(name) != head:
                lines.append(f"assert seen({name}) == Seen{head}")
        for name, map in look.links.items():
            if before.links.get(name) != map:
                lines.append(f"assert {name}.info().map_id == {f'{map}.map.id' if map else 0}")
        return lines

    @staticmethod
    def _expected(call: Call, outcome: Outcome, text: list[str]) -> list[str]:
        if outcome.errno == UNTRIED:
            return [f"# {outcome.rule}: {line}" for line in text]
        if outcome.errno == errno_numbers.EBADF and not isinstance(call, Link | Relink | Detach | Update):
            return [f"# nothing is open there: {call}"]
        if isinstance(call, _NOTHING) and outcome.errno == errno_numbers.ENOENT:
            return [f"assert {text[0]} is None  # {outcome.rule}"]
        if outcome.errno == RETURNED_ONE:
            return [f"# {outcome.rule}: it returns 1, and writes nothing", *text]
        if not outcome.errno:
            return text
        number = outcome.errno
        name = f"errno.{errno_numbers.errorcode[number]}" if number != ENOTSUPP else str(number)
        other = isinstance(call, (*_SOCKETS, Unpin))
        how = "pytest.raises(OSError)" if other else f"refused({name})"
        note = f"{name}, " if other else ""
        return [f"with {how}:  # {note}{outcome.rule}", *(f"    {line}" for line in text)]

    def _text(self, call: Call) -> str:
        match call:
            case Create():
                if call == Create(call.map, call.flags) and call.flags in (0, BPF_F_LINK):
                    return f"{call.map} = new_ops({'uapi.BPF_F_LINK' if call.flags else ''})"
                type = {0: "0", 1: "value_type"}.get(call.value_type, "1")
                size = f"btf.vmlinux().size(value_type) + {call.oversize}"
                rest = f"{call.entries}, flags={call.flags:#x}, btf_vmlinux_value_type_id={type}"
                return (
                    f'value_type = btf.vmlinux().struct(f"bpf_struct_ops_{{TYPE}}")\n'
                    f"Map.create(uapi.BPF_MAP_TYPE_STRUCT_OPS, {call.key_size}, {size}, {rest})"
                )
            case Update():
                return self._update(call)
            case Delete():
                return f"{self._map(call.map)}.delete({_key(call.key)})"
            case Lookup():
                return f"{self._map(call.map)}.lookup({_key(call.key)})"
            case NextKey():
                return f"{self._map(call.map)}.next_key({'' if call.key is None else _key(call.key)})"
            case Freeze():
                return f"{self._map(call.map)}.freeze()"
            case LookupAndDelete():
                return f"{self._map(call.map)}.lookup_and_delete({_key(0)})"
            case Link():
                return f"{call.link} = Link.struct_ops({self._fd(call.map)}{_also(flags=call.flags)})"
            case Relink():
                fds = f"link_fd={self._fd(call.link)}, new_prog_fd={self._fd(call.map)}"
                rest = f"flags={call.flags}, old_prog_fd={self._fd(call.old)}"
                return f"bpf(uapi.BPF_LINK_UPDATE, LinkUpdate({fds}, {rest}))"
            case Detach():
                return f"bpf(uapi.BPF_LINK_DETACH, LinkDetach(link_fd={self._fd(call.link)}))"
            case Close():
                return f"tcp.abort({call.name})" if call.name in self._world.socks else f"{call.name}.close()"
            case Pin():
                held = f"{call.name}.map" if call.name in self._world.maps else call.name
                return f"{held}.pin({_pin(call.name)})"
            case Unpin():
                return f"{_pin(call.name)}.unlink()"
            case Reopen():
                return self._reopen(call)
            case Listen():
                chosen = f', congestion="{call.name}"' if call.name is not None else ""
                return f'{call.sock} = tcp.listening(ns, "127.0.0.1"{chosen})'
            case Connect():
                lines = [f"{call.sock} = socket.socket()"]
                if call.name is not None:
                    lines.append(f'tcp.set_congestion({call.sock}, "{call.name}")')
                lines.append(f"{call.sock}.connect({call.listener}.getsockname())")
                lines.append(f"{call.child}, _ = {call.listener}.accept()")
                return "\n".join(lines)
            case Choose():
                return f'tcp.set_congestion({call.sock}, "{call.name}")'
            case Talk():
                sock = self._world.socks.get(call.sock)
                return f"tcp.TcpPair({call.sock}, {sock.peer if sock else None}, None).transfer(22)"
            case Default():
                return f'ns.set_sysctl("{_DEFAULT}", "{call.name}")'
        raise TypeError(f"no text for {call}")

    def _update(self, call: Update) -> str:
        progs = [
            f'"{member}": {self._prog(prog)}' for member in FUNCTIONS if (prog := call.progs.get(member))
        ]
        rest = [f'"name": "{call.name}"', *([f'"flags": {call.bits}'] if call.bits else [])]
        if call.stray in ("owner", "key"):
            rest.append(f'"{call.stray}": 1')
        value = f"{{{', '.join([*progs, *rest])}}}"
        if self._fd(call.map) != f"{call.map}.map.fd":
            attr = f"map_fd={self._fd(call.map)}, flags={call.flags}"
            return f"bpf(uapi.BPF_MAP_UPDATE_ELEM, MapElem({attr}))"
        if call.stray in ("padding", "refcnt", "state", "list"):
            at = {"padding": f"{call.map}.data_offset - 1", "refcnt": "0", "state": "4"}.get(
                call.stray, f'{call.map}.data_offset + {call.map}.members["list"].offset'
            )
            lines, value = [f"raw = bytearray({call.map}.value({value}))", f"raw[{at}] = 1"], "bytes(raw)"
        else:
            lines, value = [], f"{call.map}.value({value})"
        lines.append(f"{call.map}.map.update({_key(call.key)}, {value}{_also(flags=call.flags)})")
        return "\n".join(lines)

    def _reopen(self, call: Reopen) -> str:
        kind = "Link" if call.name.startswith("l") else "Map"
        how = f"from_id({call.name}_id)" if call.by_id else f"get({_pin(call.name)})"
        text = f"{kind}.{how}"
        return f"{call.name} = {text if kind == 'Link' else f'StructOps.of({text}, TYPE)'}"

    def _map(self, name: str) -> str:
        return f"{name}.map" if name in self._world.maps else name

    def _prog(self, name: str) -> str:
        return name if name in self._world.progs else self._fd(name)

    def _fd(self, name: str | None) -> str:
        if name is None:
            return "0"
        if name in self._world.maps and self._world.maps[name].open:
            return f"{name}.map.fd"
        if name in self._world.socks:
            return f"{name}.fileno()"
        link = self._world.links.get(name)
        return f"{name}.fd" if name in self._world.progs or (link and link.open) else _NOT_OPEN


def _key(key: int) -> str:
    return f"({key}).to_bytes(4, 'little')" if key else "bytes(4)"


def _also(**words: int) -> str:
    return "".join(f", {name}={value}" for name, value in words.items() if value)


def _pin(name: str) -> str:
    return f'Path("/sys/fs/bpf/{name}")'
