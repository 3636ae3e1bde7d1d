# SPDX-License-Identifier: MIT
"""Ways in which traffic goes to a program of upgrade.bpf.c, and from it to the next one."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from contextlib import ExitStack

from harness.guest.bpf import cgroup, tcx, uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.object import Object
from harness.guest.bpf.prog import Prog
from harness.guest.netns import LOOPBACK_IFINDEX, NetNamespace
from scenarios.map_trace.actors import SMALLEST_PACKET

AT_A_TIME = 500
SENT_AT_A_TIME = 50
PACKET = bytes(64)


class Way(ABC):
    """How the old and the new program get their packets."""

    OLD, NEW = "old_program", "new_program"
    NEEDED: tuple[str, ...] = ()

    def __init__(self, stack: ExitStack, programs: Object) -> None:
        self._stack, self._programs = stack, programs
        self._old, self._new = self._prog(self.OLD), self._prog(self.NEW)

    def _prog(self, name: str) -> Prog:
        return self._stack.enter_context(self._programs.prog(name))

    def give_to_old(self) -> None:
        """Let the old program have the packets from now on, on all CPUs."""
        self._give_to(self._old)

    def give_to_new(self) -> None:
        """Let the new program have them."""
        self._give_to(self._new)

    @abstractmethod
    def _give_to(self, prog: Prog) -> None: ...

    @abstractmethod
    def send(self) -> None:
        """Some packets, on this CPU."""


class ByProgArray(Way):
    """The traffic is a program that calls the entry of a prog array, which is replaced."""

    def __init__(self, stack: ExitStack, programs: Object) -> None:
        super().__init__(stack, programs)
        self._traffic = self._prog("traffic")
        self._turn = stack.enter_context(programs.map("turn"))

    def _give_to(self, prog: Prog) -> None:
        self._turn.update(0, prog.fd)

    def send(self) -> None:
        self._traffic.test_run(SMALLEST_PACKET, repeat=AT_A_TIME)


class _AtDevice(Way):
    """The traffic is a program that sends copies of its packet out of a device."""

    NEEDED = ("tcx",)

    def __init__(self, stack: ExitStack, programs: Object) -> None:
        super().__init__(stack, programs)
        self._traffic = self._prog("traffic_of_device")
        stack.enter_context(stack.enter_context(NetNamespace.create(loopback=True)).entered())

    def send(self) -> None:
        self._traffic.test_run(PACKET, repeat=AT_A_TIME)


class ByTcxReplace(_AtDevice):
    """BPF_PROG_ATTACH with BPF_F_REPLACE puts a program into the other's place in a device's list."""

    _there: Prog | None = None

    def _give_to(self, prog: Prog) -> None:
        if self._there is None:
            self._stack.callback(self._detach)
        if prog is not self._there:
            tcx.attach(LOOPBACK_IFINDEX, prog, attach_type=uapi.BPF_TCX_EGRESS, replace=self._there)
        self._there = prog

    def _detach(self) -> None:
        tcx.detach(LOOPBACK_IFINDEX, self._there, attach_type=uapi.BPF_TCX_EGRESS)


class LinkedWay(Way):
    """BPF_LINK_UPDATE gives a link another program; or a second link joins the first one, which then goes."""

    _link: Link | None = None
    _joined: Link | None = None

    @abstractmethod
    def _attach(self, prog: Prog) -> Link: ...

    def _give_to(self, prog: Prog) -> None:
        if self._link is None:
            self._link = self._stack.enter_context(self._attach(prog))
        else:
            self._link.update(prog)

    def join(self) -> None:
        """Let the new program have the packets as well as the old one, behind it."""
        self._joined = self._stack.enter_context(self._attach(self._new))

    def part(self) -> None:
        """Let just the new program go on."""
        assert self._link is not None
        self._link.close()
        self._link = self._joined


class ByTcxLink(LinkedWay, _AtDevice):
    """A link at a device."""

    def _attach(self, prog: Prog) -> Link:
        return tcx.link(LOOPBACK_IFINDEX, prog, attach_type=uapi.BPF_TCX_EGRESS)


class ByCgroupLink(LinkedWay):
    """A link at a cgroup; the traffic is a socket's that sends to itself."""

    OLD, NEW = "old_egress", "new_egress"

    def __init__(self, stack: ExitStack, programs: Object) -> None:
        super().__init__(stack, programs)
        stack.enter_context(stack.enter_context(NetNamespace.create(loopback=True)).entered())
        self._group = stack.enter_context(cgroup.Cgroup.create("upgrade"))
        # A packet comes here before it comes to the others, which are linked later.
        stack.enter_context(cgroup.link(self._group, self._prog("traffic_of_sockets")))
        with self._group.entered():
            self._socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(self._socket.getsockname())

    def _attach(self, prog: Prog) -> Link:
        return cgroup.link(self._group, prog)

    def send(self) -> None:
        for _ in range(SENT_AT_A_TIME):
            self._socket.send(b"x")


WAYS: dict[str, type[Way]] = {
    "prog array": ByProgArray,
    "cgroup link": ByCgroupLink,
    "tcx link": ByTcxLink,
    "tcx replace": ByTcxReplace,
}
