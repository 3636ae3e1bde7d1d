# SPDX-License-Identifier: MIT
"""Carries out a whole sequence of calls about congestion controls in one job, and tells what the kernel answered.

The calls are those of `harness.oracle.struct_ops_calls` as JSON, in terms of names; the answers are numbers, with the
ids that the names have got. Under TCG every line of Python counts, so attributes and buffers are made once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import time
from pathlib import Path
from typing import Any

from harness.guest import tcp
from harness.guest.bpf import btf, probe, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import InfoByFd, LinkCreate, LinkDetach, LinkUpdate, MapCreate, MapElem
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.info import RawLinkInfo
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.errnos import errno_of
from harness.guest.netns import NetNamespace
from harness.guest.playing import NO_ID, UNTRIED, Staged, settled

TYPE = "tcp_congestion_ops"
DEFAULT = "reno"
SYSCTLS = Path("/proc/sys/net/ipv4")
MODPROBE = Path("/proc/sys/kernel/modprobe")
TRUE_TYPE, NO_TYPE = 1, 2
WORD = b"a word between sockets"
TALK_SECONDS = 0.5
SETTLE_SECONDS = 0.5  # RCU-tasks grace periods

_CODE = asm(mov(r0, 10), exit_())


def features() -> dict[str, Any]:
    """The fields of harness.oracle.struct_ops:Features; null if the kernel has no such maps at all.

    A kernel in which `refused_default_leaks` keeps a map for ever: the machine is not to be used any more.
    """
    if not probe.has("struct_ops"):
        return {}
    names = [member.name for member in btf.vmlinux().members(btf.vmlinux().struct(TYPE))]
    has = {name: probe.has(name) for name in ("struct_ops_link", "struct_ops_link_detach")}
    return {**has, "members": names, "refused_default_leaks": _refused_default_leaks()}


def _refused_default_leaks() -> bool:
    """Whether a namespace that may not take an algorithm as its default keeps a reference to it all the same
    (net/ipv4/tcp_cong.c:tcp_set_default_congestion_control)."""
    with Player({"ssthresh_a": TYPE, "cong_avoid_a": TYPE, "undo_cwnd_a": TYPE}) as player:
        player.do({"op": "create", "map": "m"} | _USUAL)
        fill = {member: f"{member}_a" for member in ("ssthresh", "cong_avoid", "undo_cwnd")}
        player.do({"op": "update", "map": "m", "name": "kr_probe", "bits": 0, "stray": None, **_AT_0, **fill})
        player.do({"op": "default", "name": "kr_probe"})
        leaks = player.look()[1]["m"][1] != 1
        player.clear()
    return bool(leaks)


_USUAL = {"flags": 0, "key_size": 4, "entries": 1, "value_type": TRUE_TYPE, "oversize": 0}
_AT_0 = {"key": 0, "flags": 0}


def play(
    calls: list[dict[str, Any]], progs: dict[str, str], untried: list[int], alive: list[str]
) -> dict[str, Any]:
    """Carry out the calls but those at the places `untried`; `progs` gives a type for each program's name,
    `alive` those that shall still exist when user space has closed all programs.

    Returns "answers", for each call [errno, look or null: refused, or all as before], a look being [available names
    in order, {map: [state, refcnt]}, {link: [map's id, whether poll says it hung up]}]; "ids" of names; at the end
    "values" {map: [{member: program's id}, algorithm's name]}, "socks" {socket: algorithm}, "default", "alive", and
    "left" when all is closed; "seconds".
    """
    with Player(progs) as player:
        begin = time.monotonic()
        answers = []
        before: list[Any] = []
        for place, call in enumerate(calls):
            error = UNTRIED if place in untried else player.do(call)
            # What a refused call changes shows after the next one.
            look = before if error and place != len(calls) - 1 else player.look()
            answers.append([error, None if look == before else look])
            before = look
        seconds = time.monotonic() - begin
        told = {
            "answers": answers,
            "values": player.values(),
            "socks": player.socks(),
            "default": player.default(),
            "alive": player.close_programs(alive),
            "seconds": seconds,
        }
        told["left"] = player.clear()
        return {**told, "ids": player.ids}


class Player(Staged):
    """The stage, and how each call is made on it."""

    def __init__(self, progs: dict[str, str]) -> None:
        super().__init__()
        self._types = progs
        self._socks: dict[str, socket.socket] = {}
        self._peers: dict[str, str] = {}
        self._polls: dict[str, select.poll] = {}
        self._elem, self._create, self._link = MapElem(), MapCreate(), LinkCreate()
        self._update, self._detach = LinkUpdate(), LinkDetach()
        self._info, self._raw_info = InfoByFd(), RawLinkInfo()
        self._key, self._next = ctypes.c_uint32(), ctypes.c_uint32()

    # Setting and clearing the stage

    def _set(self) -> None:
        ns = self._stack.enter_context(NetNamespace.create(loopback=True))
        self._stack.enter_context(ns.entered())
        # An unknown name must not start modprobe: net/ipv4/tcp_cong.c:tcp_ca_find_autoload
        before = MODPROBE.read_text()
        MODPROBE.write_text("\n")
        self._stack.callback(MODPROBE.write_text, before)
        names = ("tcp_available_congestion_control", "tcp_congestion_control")
        self._available, self._default = (self._sysctl(name) for name in names)
        os.pwrite(self._default, DEFAULT.encode(), 0)
        self._built_in = len(self._names())
        types = btf.vmlinux()
        self._value_type = types.struct(f"bpf_struct_ops_{TYPE}")
        own = BtfBuilder()
        own.integer("int", 4)
        self._own = self._stack.enter_context(own.load())
        with StructOps.create(TYPE) as ops:
            self._size = ops.map.shape.value_size
            self._members = {name: ops.data_offset + member.offset for name, member in ops.members.items()}
            head = types.members(self._value_type)[0].name
            prefix = "common." if head == "common" else ""
            self._head = {
                name: types.member(self._value_type, prefix + name).offset for name in ("state", "refcnt")
            }
            self._data = ops.data_offset
        self._value = bytearray(self._size)
        self._buffer = (ctypes.c_char * self._size).from_buffer(self._value)
        self._elem.key = ctypes.addressof(self._key)
        self._info.info, self._info.info_len = ctypes.addressof(self._raw_info), ctypes.sizeof(self._raw_info)
        self._link.attach_type = uapi.BPF_STRUCT_OPS
        self._stack.callback(self.clear)
        for name, type in self._types.items():
            self._remember(name, self._load(name, type))

    def _sysctl(self, name: str) -> int:
        fd = os.open(SYSCTLS / name, os.O_RDWR if name == "tcp_congestion_control" else os.O_RDONLY)
        self._stack.callback(os.close, fd)
        return fd

    def _load(self, name: str, type: str) -> Prog:
        if type == "sched_cls":
            return Prog.load(_CODE, uapi.BPF_PROG_TYPE_SCHED_CLS, name=name)
        if type == "bpf_dummy_ops":
            return load_struct_ops_prog(type, "test_1", _CODE, name=name)
        return Prog.load(
            _CODE,
            uapi.BPF_PROG_TYPE_STRUCT_OPS,
            name=name,
            expected_attach_type=list(self._members).index(name.rpartition("_")[0]),
            attach_btf_id=btf.vmlinux().struct(TYPE),
        )

    def clear(self) -> list[str]:
        """Unregister and let go of everything; what still exists of it then, or after some time."""
        while self._socks:
            tcp.abort(self._socks.popitem()[1])
        os.pwrite(self._default, DEFAULT.encode(), 0)
        for name in [name for name in self._pins if self._kinds[name] is Link]:
            self._do_unpin({"name": name})
        for kind in (Link, Map):
            for name in [name for name, each in self._kinds.items() if each is kind]:
                if kind is Map and name not in self._fds:
                    self._do_reopen({"name": name, "by_id": True})
                if kind is Map and name in self._fds:
                    self._do_delete({"map": name, "key": 0})
                self._do_close({"name": name})
        self._let_go()
        return self._settle(set())

    # Calls

    def do(self, call: dict[str, Any]) -> int:
        """Carry out one call: 0, its errno, or what it returned instead as a negative number."""
        error: int = getattr(self, f"_do_{call['op']}")(call)
        return error

    def _do_create(self, call: dict[str, Any]) -> int:
        attr = self._create
        attr.map_type = uapi.BPF_MAP_TYPE_STRUCT_OPS
        attr.key_size, attr.max_entries = call["key_size"], call["entries"]
        attr.value_size = self._size + call["oversize"]
        attr.map_flags = call["flags"]
        attr.map_name = call["map"].encode()
        attr.btf_fd = self._own.fd
        attr.btf_vmlinux_value_type_id = {TRUE_TYPE: self._value_type, NO_TYPE: 1}.get(call["value_type"], 0)
        return self._keep(call["map"], Map, self._bpf(uapi.BPF_MAP_CREATE, attr))

    def _keep(self, name: str, kind: type[Map | Link], made: int) -> int:
        """0, and what was made has a name; or the errno."""
        if made < 0:
            return -made
        self._remember(name, kind(made))
        return 0

    def _do_update(self, call: dict[str, Any]) -> int:
        raw = self._value
        raw[:] = bytes(self._size)
        for name, at in self._members.items():
            if (prog := call.get(name)) is not None and name not in ("name", "key", "flags"):
                self._write(at, 8, self._fd(prog))
        at = self._members["name"]
        raw[at : at + 16] = call["name"].encode()[:16].ljust(16, b"\0")
        self._write(self._members["flags"], 4, call["bits"])
        if (stray := call["stray"]) == "padding":
            raw[self._data - 1] = 1
        elif stray is not None:
            self._write(self._head.get(stray, self._members.get(stray, 0)), 4, 1)
        return self._at_key(uapi.BPF_MAP_UPDATE_ELEM, call, call["flags"])

    def _write(self, at: int, size: int, number: int) -> None:
        self._value[at : at + size] = number.to_bytes(size, "little")

    def _do_delete(self, call: dict[str, Any]) -> int:
        return self._at_key(uapi.BPF_MAP_DELETE_ELEM, call)

    def _do_lookup(self, call: dict[str, Any]) -> int:
        return self._at_key(uapi.BPF_MAP_LOOKUP_ELEM, call)

    def _do_lookup_and_delete(self, call: dict[str, Any]) -> int:
        return self._at_key(uapi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, call | {"key": 0})

    def _at_key(self, command: int, call: dict[str, Any], flags: int = 0) -> int:
        attr = self._elem
        attr.map_fd = self._fd(call["map"])
        self._key.value = call["key"]
        # a delete has no value
        attr.value = 0 if command == uapi.BPF_MAP_DELETE_ELEM else ctypes.addressof(self._buffer)
        attr.flags = flags
        return -self._bpf(command, attr)

    def _do_next_key(self, call: dict[str, Any]) -> int:
        attr = MapElem(map_fd=self._fd(call["map"]), value=ctypes.addressof(self._next))
        if call["key"] is not None:
            self._key.value = call["key"]
            attr.key = ctypes.addressof(self._key)
        self._next.value = NO_ID
        error = -self._bpf(uapi.BPF_MAP_GET_NEXT_KEY, attr)
        return error or self._next.value

    def _do_freeze(self, call: dict[str, Any]) -> int:
        return -self._bpf(uapi.BPF_MAP_FREEZE, MapElem(map_fd=self._fd(call["map"])))

    def _do_link(self, call: dict[str, Any]) -> int:
        self._link.map_fd = self._fd(call["map"])
        self._link.flags = call["flags"]
        return self._keep(call["link"], Link, self._bpf(uapi.BPF_LINK_CREATE, self._link))

    def _hold(self, name: str, fd: int) -> None:
        super()._hold(name, fd)
        if self._kinds[name] is Link:
            self._polls[name] = select.poll()
            self._polls[name].register(fd, 0)

    def _do_relink(self, call: dict[str, Any]) -> int:
        attr = self._update
        attr.link_fd, attr.new_map_fd = self._fd(call["link"]), self._fd(call["map"])
        attr.flags, attr.old_map_fd = call["flags"], self._fd(call["old"]) if call["old"] else 0
        if call["map"] in self._fds and self._map_of(call["link"]) == self.ids[call["map"]]:
            return UNTRIED  # STOPS-QUIRK-002, also when the model is wrong
        return -self._bpf(uapi.BPF_LINK_UPDATE, attr)

    def _do_detach(self, call: dict[str, Any]) -> int:
        self._detach.link_fd = self._fd(call["link"])
        return -self._bpf(uapi.BPF_LINK_DETACH, self._detach)

    # Descriptors and pins

    def _fd(self, name: str | None) -> int:
        if name in self._socks:
            return self._socks[name].fileno()
        return super()._fd(name)

    def _do_close(self, call: dict[str, Any]) -> int:
        name = call["name"]
        if name in self._socks:
            tcp.abort(self._socks.pop(name))
            return 0
        self._polls.pop(name, None)
        return super()._do_close(call)

    def _do_unpin(self, call: dict[str, Any]) -> int:
        name = call["name"]
        if name not in self._pins or name in self._fds or self._kinds[name] is not Link:
            return super()._do_unpin(call)
        with Link.from_id(self.ids[name]) as link:
            map_id = link.info().map_id or 0
        before, names = self._head_of(map_id), self._names()
        error = super()._do_unpin(call)
        if before is not None:  # then the kernel unregisters some time later
            settled(lambda: self._head_of(map_id) != before and self._names() != names, bool, SETTLE_SECONDS)
        settled(lambda: self._is_gone(name), bool, SETTLE_SECONDS)
        return error

    def _head_of(self, map_id: int) -> list[int] | None:
        """[state, refcnt] of a map; None if there is no such map."""
        try:
            with Map.from_id(map_id) as map:
                return self._state(map.fd)
        except OSError:
            return None

    # Sockets

    def _do_listen(self, call: dict[str, Any]) -> int:
        sock = socket.socket()
        if call["name"] is not None and (error := errno_of(lambda: tcp.set_congestion(sock, call["name"]))):
            sock.close()
            return error
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        self._socks[call["sock"]] = sock
        return 0

    def _do_connect(self, call: dict[str, Any]) -> int:
        listener = self._socks.get(call["listener"])
        if listener is None or call["listener"] in self._peers:
            return errno.EBADF
        client = socket.socket()
        if call["name"] is not None and (error := errno_of(lambda: tcp.set_congestion(client, call["name"]))):
            client.close()
            return error
        client.connect(listener.getsockname())
        child = listener.accept()[0]
        for sock in (client, child):
            sock.setblocking(False)
        self._socks[call["sock"]], self._socks[call["child"]] = client, child
        self._peers |= {call["sock"]: call["child"], call["child"]: call["sock"]}
        return 0

    def _do_choose(self, call: dict[str, Any]) -> int:
        if call["sock"] not in self._socks:
            return errno.EBADF
        return errno_of(lambda: tcp.set_congestion(self._socks[call["sock"]], call["name"]))

    def _do_talk(self, call: dict[str, Any]) -> int:
        here, there = (self._socks.get(name or "") for name in (call["sock"], self._peers.get(call["sock"])))
        if here is None or there is None:
            return errno.EBADF
        return errno_of(lambda: tcp.TcpPair(here, there, None).transfer(len(WORD), timeout=TALK_SECONDS))

    def _do_default(self, call: dict[str, Any]) -> int:
        return errno_of(lambda: os.pwrite(self._default, call["name"].encode(), 0))

    # Looks

    def look(self) -> list[Any]:
        """What user space sees: the names that maps registered, all open maps, all open links."""
        maps = {
            name: self._state(self._fds[name])
            for name, kind in self._kinds.items()
            if kind is Map and name in self._fds
        }
        links = {name: [self._map_of(name), bool(poll.poll(0))] for name, poll in self._polls.items()}
        return [self._names()[self._built_in :], maps, links]

    def _names(self) -> list[str]:
        return os.pread(self._available, 4096, 0).decode().split()

    def _state(self, fd: int) -> list[int]:
        self._read(fd)
        return [self._number(self._head[name], 4) for name in ("state", "refcnt")]

    def _read(self, fd: int) -> None:
        attr = self._elem
        attr.map_fd, attr.value, attr.flags = fd, ctypes.addressof(self._buffer), 0
        self._key.value = 0
        if error := -self._bpf(uapi.BPF_MAP_LOOKUP_ELEM, attr):
            raise OSError(error, "look-up of an open map")

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._value[at : at + size], "little")

    def _map_of(self, link: str) -> int:
        """The id of the link's map; 0 if it has none, or is not open."""
        if link not in self._polls:
            return 0
        raw = self._raw_info
        ctypes.memset(ctypes.addressof(raw), 0, ctypes.sizeof(raw))
        self._info.bpf_fd = self._fds[link]
        if error := -self._bpf(uapi.BPF_OBJ_GET_INFO_BY_FD, self._info):
            raise OSError(error, "info of an open link")
        return int.from_bytes(bytes(raw.arm)[:4], "little")

    # The end

    def values(self) -> dict[str, Any]:
        """{map: [{member: number}, name]} of all open maps; only what is not zero."""
        told = {}
        for name in [name for name, kind in self._kinds.items() if kind is Map and name in self._fds]:
            self._read(self._fds[name])
            numbers = {
                member: number
                for member, at in self._members.items()
                if member != "name" and (number := self._number(at, 4 if member in ("key", "flags") else 8))
            }
            at = self._members["name"]
            told[name] = [numbers, self._value[at : at + 16].rstrip(b"\0").decode()]
        return told

    def socks(self) -> dict[str, str]:
        """By which name each open socket calls its algorithm."""
        return {name: tcp.congestion(sock) for name, sock in self._socks.items()}

    def default(self) -> str:
        """The namespace's default."""
        return os.pread(self._default, 64, 0).decode().strip()

    def close_programs(self, alive: list[str]) -> list[str]:
        """Close all programs; those that then exist, as soon as they are just `alive` or after some time."""
        for name in [name for name in self._fds if self._kinds[name] is Prog]:
            self._do_close({"name": name})
        held = {name for name, kind in self._kinds.items() if kind is not Prog}
        return [name for name in self._settle(set(alive), held) if name not in held]

    def _settle(self, wanted: set[str], aside: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """The names of what exists, when that is just what is wanted (and what is put aside), or after some time."""
        existing = settled(self._existing, lambda found: found - aside == wanted, SETTLE_SECONDS)
        return sorted(existing)
