# SPDX-License-Identifier: MIT
"""Several threads carry out calls about the same ordered lists at once while frames pass, and tell what they saw.

The calls are those of `harness.oracle.mprog_calls` as JSON, but what a user would take from what it saw last is left
open until the call is made (`Memory`); the calls that come back have it filled in. Programs journal each frame: its
mark says where.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    add,
    and_,
    asm,
    exit_,
    ld_map_value,
    ldxdw,
    ldxw,
    lsh,
    mov,
    or_,
    r0,
    r1,
    r2,
    r3,
    stxdw,
)
from harness.guest.bpf.attrs import Attr
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.errnos import errno_of
from harness.guest.mprog_frames import MOST_FRAMES, PATHS, Sender
from harness.guest.mprog_player import INDEX, Player
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import Request, RtnlSocket, link_up

# What a call may leave open: a revision, and names that begin so.
SEEN = -1
SLOT, YOUNGEST = "@", "^"
CLOSED = "closed"

# Descriptors of links get numbers that are never used again, so that a closed one stays closed.
FIRST_DESCRIPTOR = 1024
MOST_DESCRIPTORS = 8000
MARK = 8  # struct __sk_buff: u32 mark
JOIN_SECONDS = 20.0
SWITCH_SECONDS = 0.0005


class Memory:
    """What a thread knows when it makes a call: the list as it saw it last, and the links that there are or were."""

    def __init__(self, links: list[tuple[str, str]]) -> None:
        self._links = links  # (name, hook), shared by all threads
        self._seen: dict[str, tuple[int, list[str]]] = {}

    def saw(self, hook: str, revision: int, progs: list[str]) -> None:
        """Remember what a query showed."""
        self._seen[hook] = (revision, progs)

    def changed(self, hook: str) -> None:
        """Remember that a call with the revision seen last was accepted."""
        revision, progs = self._seen.get(hook, (1, []))
        self._seen[hook] = (revision + 1, progs)

    def resolve(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call with everything filled in: SEEN, "@2" for the program in slot 2 (modulo length) as seen last, and
        "^0" for the youngest link that a thread has told of (at the call's hook, if it has one)."""
        hook = call.get("hook")
        revision, progs = self._seen.get(hook or "", (1, []))
        found = dict(call)
        for key, value in call.items():
            if key == "revision" and value == SEEN:
                found[key] = revision
            elif isinstance(value, str) and value.startswith(SLOT):
                found[key] = progs[int(value[1:]) % len(progs)] if progs else CLOSED
            elif isinstance(value, str) and value.startswith(YOUNGEST):
                links = [name for name, where in list(self._links) if hook in (None, where)]
                back = int(value[1:])
                found[key] = links[-1 - back] if back < len(links) else CLOSED
        return found


def race(
    hooks: dict[str, tuple[str, int]],
    progs: dict[str, str],
    prelude: list[dict[str, Any]],
    threads: list[list[dict[str, Any]]],
) -> dict[str, Any]:
    """Carry out the prelude, then the lists of calls at once, one thread for each; frames pass all the while.

    Returns "operations", each [thread, call, ns before, ns after, errno, what it saw or null], the prelude's and the
    last look at everything by the thread "main"; "frames", each [hook, ns before, ns after, the programs it met];
    "lost" and "doubled" frames; "ids" of all names; "wanted" and "alive", the programs that lists and links hold and
    those that exist when their descriptors are closed; "defunct", what links say when all devices are gone; "left",
    programs and links that exist when everything is closed; "seconds" of the race. Raises OSError when the stage
    can't be set, and what a thread has raised.
    """
    arena = Arena(hooks, progs)
    with arena:
        return arena.race(prelude, threads)


class Arena(Player):
    """The stage, with devices that are up and programs that journal."""

    def __init__(self, hooks: dict[str, tuple[str, int]], progs: dict[str, str]) -> None:
        super().__init__(hooks, progs)
        self.links: list[tuple[str, str]] = []
        self.closed: set[str] = set()
        self.numbers = itertools.count(FIRST_DESCRIPTOR)
        self.operations: list[list[Any]] = []

    def _set(self) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY and most < MOST_DESCRIPTORS:
            most = MOST_DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, most))
        self._notes = self._stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8 * MOST_FRAMES, 1))
        super()._set()
        used = {target for target, _ in self._hooks.values()}
        ends = [end for path in PATHS.values() for end in path if used & set(path)]
        if ends:
            self._ns.rtnl.request(*(link_up(INDEX[end]) for end in dict.fromkeys(ends)))

    def _load(self, name: str, type: str) -> None:
        if type != "sched_cls" or name not in self._types:
            super()._load(name, type)
            return
        number = list(self._types).index(name) + 1
        code = asm(
            *(ldxw(r2, r1, MARK), and_(r2, MOST_FRAMES - 1), lsh(r2, 3)),
            *(ld_map_value(r1, self._notes), add(r1, r2), ldxdw(r3, r1), lsh(r3, 4), or_(r3, number)),
            *(stxdw(r1, 0, r3), mov(r0, uapi.TCX_NEXT), exit_()),
        )
        self._know(name, Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, name=name))

    def race(self, prelude: list[dict[str, Any]], threads: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """See the function of this name."""
        main = self._stack.enter_context(Racer(self, "main"))
        for call in prelude:
            main.go(call)
        racers = [self._stack.enter_context(Racer(self, f"t{number}")) for number in range(len(threads))]
        with Sender(list(self._hooks)) as sender:
            seconds = _run(
                [_each(racer.go, calls) for racer, calls in zip(racers, threads, strict=True)], sender
            )
        for name in self.closed:
            del self._fds[name]
        for hook in self._hooks:
            main.go({"op": "query", "hook": hook})
        infos = self.link_infos()
        for name in infos:
            main.go({"op": "info", "link": name})
        held = {id for hook in self._hooks for id in self.view(hook)[4]} | {id for id, _ in infos.values()}
        wanted = sorted(self._names[id] for id in held)
        journal = memoryview(self._notes.lookup(0) or b"").cast("Q")
        return {
            "operations": self.operations,
            "frames": [
                [hook, begin, end, self._met(journal[number])] for hook, begin, end, number in sender.frames
            ],
            "lost": sender.lost,
            "doubled": sender.doubled,
            "seconds": seconds,
            "wanted": wanted,
            "alive": self.close_programs(wanted),
            "defunct": self.remove_targets(),
            "left": self.close_links(),
            "ids": self.ids,
        }

    def _met(self, notes: int) -> list[str]:
        names = list(self._types)
        return [names[int(digit, 16) - 1] for digit in f"{notes:x}"] if notes else []


class Racer(Player):
    """One thread's calls on an arena; a context manager that lets go of its netlink socket."""

    def __init__(self, arena: Arena, thread: str) -> None:
        super().__init__(arena._hooks, arena._types)
        self._arena = arena
        self._thread = thread
        self._targets, self._fds, self._links = arena._targets, arena._fds, arena._links
        self._names, self._kinds, self.ids = arena._names, arena._kinds, arena.ids
        self._memory = Memory(arena.links)
        self._invoked = self._returned = 0

    def __enter__(self) -> Racer:
        self._rtnl = RtnlSocket()
        return self

    def __exit__(self, *exc: object) -> None:
        self._rtnl.close()

    def go(self, call: dict[str, Any]) -> None:
        """Make the call, with everything filled in, and write it down."""
        call = self._memory.resolve(call)
        op, hook = call["op"], call.get("hook")
        seen = None
        if op == "query":
            seen = self.view(call["hook"])
            error = seen[0]
            self._memory.saw(call["hook"], seen[1], [self._names.get(id, CLOSED) for id in seen[4]])
        elif op == "info":
            seen = self._timed(lambda: self.link_infos()[call["link"]])
            error = 0
        else:
            error = getattr(self, f"_do_{op}")(call)
        if error == 0 and op == "link":
            self._arena.links.append((call["link"], call["hook"]))
        if error == 0 and hook and call.get("revision"):
            self._memory.changed(hook)
        self._arena.operations.append([self._thread, call, self._invoked, self._returned, error, seen])

    def _bpf(self, command: int, attr: Attr) -> int:
        self._invoked = time.monotonic_ns()
        result = super()._bpf(command, attr)
        self._returned = time.monotonic_ns()
        if command == uapi.BPF_LINK_CREATE and result >= 0:
            lowest = result
            result = fcntl.fcntl(lowest, fcntl.F_DUPFD_CLOEXEC, next(self._arena.numbers))
            os.close(lowest)
        return result

    def _timed(self, act: Callable[[], Any]) -> Any:
        self._invoked = time.monotonic_ns()
        try:
            return act()
        finally:
            self._returned = time.monotonic_ns()

    def _do_close(self, call: dict[str, Any]) -> int:
        name = call["name"]
        number = self._fd(name)
        error = errno_of(lambda: self._timed(lambda: os.close(number)))
        if error == 0:
            self._arena.closed.add(name)
        return error

    def _configure(self, request: Request, ns: NetNamespace | None = None) -> int:
        assert ns is None, "racers move no devices"
        return errno_of(lambda: self._timed(lambda: self._rtnl.request(request)))


def _each(act: Callable[[dict[str, Any]], None], calls: list[dict[str, Any]]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            act(call)

    return run


def _run(bodies: list[Callable[[], None]], sender: Sender) -> float:
    """Run the bodies at once, each in a thread, and the sender while they run; seconds from first to last."""
    start = threading.Barrier(len(bodies) + 1)
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None], *, wait: bool) -> Callable[[], None]:
        def run() -> None:
            try:
                if wait:
                    start.wait(JOIN_SECONDS)
                body()
            except BaseException as failure:
                failures.append(failure)

        return run

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        traffic = threading.Thread(target=guarded(sender.send, wait=False))
        racers = [threading.Thread(target=guarded(body, wait=True)) for body in bodies]
        for thread in (traffic, *racers):
            thread.start()
        start.wait(JOIN_SECONDS)
        begin = time.monotonic()
        for thread in racers:
            thread.join()
        seconds = time.monotonic() - begin
        sender.stop()
        traffic.join()
    finally:
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]
    return seconds
