# SPDX-License-Identifier: MIT
"""What runs in a cgroup, in which order, and who decides: programs at connect(2), socket(2) and on packets."""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.guest.bpf import cgroup, uapi
from harness.guest.bpf.asm import Item, asm, exit_, mov, r0
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import BPF_F_ALLOW_MULTI as MULTI
from harness.guest.bpf.uapi import BPF_F_ALLOW_OVERRIDE as OVERRIDE
from harness.guest.bpf.uapi import BPF_F_BEFORE as BEFORE
from harness.guest.bpf.uapi import BPF_F_PREORDER as PREORDER
from harness.guest.netns import NetNamespace
from harness.guest.waiting import wait_until
from scenarios.mprog.conftest import Journal

CONNECT4, SOCK_CREATE = uapi.BPF_CGROUP_INET4_CONNECT, uapi.BPF_CGROUP_INET_SOCK_CREATE
EGRESS, INGRESS = uapi.BPF_CGROUP_INET_EGRESS, uapi.BPF_CGROUP_INET_INGRESS
TYPES = {
    CONNECT4: uapi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
    SOCK_CREATE: uapi.BPF_PROG_TYPE_CGROUP_SOCK,
    EGRESS: uapi.BPF_PROG_TYPE_CGROUP_SKB,
    INGRESS: uapi.BPF_PROG_TYPE_CGROUP_SKB,
}
ALLOW, DENY = 1, 0


class Calls:
    """Programs with numbers at the hooks of cgroups, CONNECT4 unless another is given, and calls that run them."""

    def __init__(self, notes: Map, stack: ExitStack) -> None:
        self._stack = stack
        self._journals = {hook: Journal(notes, functools.partial(self._load, hook)) for hook in TYPES}

    def _load(self, hook: int, *items: Item, verdict: int = ALLOW, name: str = "") -> Prog:
        code = asm(*items, mov(r0, verdict), exit_())
        return self._stack.enter_context(Prog.load(code, TYPES[hook], name=name, expected_attach_type=hook))

    def prog(self, number: int, verdict: int = ALLOW, hook: int = CONNECT4) -> Prog:
        """A program that notes its number."""
        return self._journals[hook].prog(number, verdict)

    def attach(
        self,
        group: Cgroup,
        number: int,
        verdict: int = ALLOW,
        *,
        flags: int = MULTI,
        hook: int = CONNECT4,
        relative: Prog | None = None,
    ) -> Prog:
        """Such a program, attached."""
        prog = self.prog(number, verdict, hook)
        cgroup.attach(group, prog, attach_type=hook, flags=flags, relative=relative)
        return prog

    def detach(self, group: Cgroup, prog: Prog | None = None) -> None:
        """Detach from CONNECT4."""
        cgroup.detach(group, prog, attach_type=CONNECT4)

    def link(self, group: Cgroup, prog: Prog) -> Link:
        """A link at CONNECT4."""
        return self._stack.enter_context(cgroup.link(group, prog, attach_type=CONNECT4))

    def udp_socket(self, group: Cgroup) -> socket.socket:
        """A UDP socket of the cgroup."""
        with group.entered():
            return self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def ran(self) -> list[int]:
        """The numbers of the programs that ran since this was last asked, in order."""
        return self._journals[CONNECT4].read()

    def connect(self, sock: socket.socket) -> tuple[list[int], int]:
        """What connect(2) ran, and its errno."""
        failure = sock.connect_ex(("127.0.0.1", 9))
        return self.ran(), failure


@pytest.fixture
def calls(group: Cgroup) -> Iterator[Calls]:
    with (
        NetNamespace.create(loopback=True) as namespace,
        namespace.entered(),
        Map.create(uapi.BPF_MAP_TYPE_ARRAY, name="journal") as notes,
        ExitStack() as stack,
    ):
        yield Calls(notes, stack)


def test_the_cgroups_own_programs_run_before_those_above(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-047: in list order each, for sockets of the cgroup; one above runs its own only."""
    child = group.child("child")
    grandchild = child.child("grandchild")
    for number, there in enumerate((group, child, group, grandchild, child), 1):
        calls.attach(there, number)
    late = grandchild.child("late")
    orders = {there: calls.connect(calls.udp_socket(there))[0] for there in (group, child, grandchild, late)}
    assert orders == {group: [1, 3], child: [2, 5, 1, 3], grandchild: [4, 2, 5, 1, 3], late: [4, 2, 5, 1, 3]}


@pytest.mark.requires("cgroup_mprog")
def test_a_position_counts_within_its_own_cgroup(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-020, -047."""
    child = group.child("child")
    used = calls.udp_socket(child)
    one, two = calls.attach(group, 1), calls.attach(child, 2)
    calls.attach(group, 3, flags=MULTI | BEFORE)
    calls.attach(child, 4, flags=MULTI | BEFORE, relative=two)
    calls.attach(group, 5, flags=MULTI | BEFORE, relative=one)
    assert calls.connect(used) == ([4, 2, 3, 5, 1], 0)


@pytest.mark.requires("cgroup_preorder")
def test_early_programs_run_first_and_those_above_earliest(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-047: list order within a cgroup; ordinary ones follow from below."""
    child = group.child("child")
    used = calls.udp_socket(child)
    calls.attach(child, 1)
    calls.attach(child, 2, flags=MULTI | PREORDER)
    assert calls.connect(used) == ([2, 1], 0)
    calls.attach(group, 3)
    calls.attach(group, 4, flags=MULTI | PREORDER)
    assert calls.connect(used) == ([4, 2, 1, 3], 0)
    calls.attach(child, 5, flags=MULTI | PREORDER)
    calls.attach(group, 6, flags=MULTI | PREORDER)
    assert calls.connect(used) == ([4, 6, 2, 5, 1, 3], 0)


@pytest.mark.requires("cgroup_mprog", "cgroup_preorder")
def test_a_link_keeps_its_turn_when_it_gets_another_program(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-039, -047: early or not, in its cgroup and below."""
    child = group.child("child")
    used = calls.udp_socket(child)
    with (
        cgroup.link(group, calls.prog(1), attach_type=CONNECT4) as ordinary,
        cgroup.link(group, calls.prog(2), attach_type=CONNECT4, flags=PREORDER) as early,
    ):
        calls.attach(group, 3, flags=MULTI | PREORDER)
        calls.attach(child, 4)
        calls.attach(child, 5, flags=MULTI | PREORDER)
        assert calls.connect(used) == ([2, 3, 5, 4, 1], 0)
        ordinary.update(calls.prog(6))
        early.update(calls.prog(7))
        assert calls.connect(used) == ([7, 3, 5, 4, 6], 0)
    assert calls.connect(used) == ([3, 5, 4], 0)


@pytest.mark.parametrize("denying", range(1, 5))
def test_all_must_allow_and_all_run(group: Cgroup, calls: Calls, denying: int) -> None:
    """MPROG-CGROUP-049: even after one that denied, here or above."""
    child = group.child("child")
    used = calls.udp_socket(child)
    for number, there in enumerate((child, child, group, group), 1):
        calls.attach(there, number, DENY if number == denying else ALLOW)
    assert calls.connect(used) == ([1, 2, 3, 4], errno.EPERM)
    assert calls.connect(calls.udp_socket(group)) == ([3, 4], errno.EPERM if denying > 2 else 0)


def test_a_change_above_takes_effect_below_at_once(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-041, -048: but is no change of the lists below."""
    child = group.child("child")
    used = calls.udp_socket(child)
    calls.attach(child, 1)
    below = cgroup.query(child, attach_type=CONNECT4)
    two = calls.attach(group, 2)
    assert calls.connect(used) == ([1, 2], 0)
    owner = calls.link(group, calls.prog(3, DENY))
    assert calls.connect(used) == ([1, 2, 3], errno.EPERM)
    owner.update(calls.prog(4))
    assert calls.connect(used) == ([1, 2, 4], 0)
    calls.detach(group, two)
    owner.detach()
    assert calls.connect(used) == ([1], 0)
    assert cgroup.query(child, attach_type=CONNECT4) == below
    if has("cgroup_mprog"):
        assert cgroup.query(group, attach_type=CONNECT4).revision == 6


def test_an_overriding_program_decides_instead_of_the_one_above(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-008, -009, -013, -047: until it is detached."""
    child = group.child("child")
    used = calls.udp_socket(child)
    calls.attach(group, 1, DENY, flags=OVERRIDE)
    assert calls.connect(used) == ([1], errno.EPERM)
    calls.attach(child, 2, flags=OVERRIDE)
    assert calls.connect(used) == ([2], 0)
    calls.detach(child)
    assert calls.connect(used) == ([1], errno.EPERM)
    calls.attach(child, 3, flags=0)
    calls.detach(group)
    assert calls.connect(used) == ([3], 0)
    calls.attach(child, 4, DENY, flags=0)
    assert calls.connect(used) == ([4], errno.EPERM)


def test_one_program_runs_once_for_each_of_its_attachments(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-021, -037, -039, -040: a chain of cgroups with a link each, mixed with direct attachment."""
    chain = [group]
    for name in ("b", "c", "d"):
        chain.append(chain[-1].child(name))
    used = calls.udp_socket(chain[-1])
    one, two = calls.prog(1), calls.prog(2)
    links = [calls.link(there, one) for there in chain]
    assert calls.connect(used) == ([1] * 4, 0)
    links.pop().close()
    assert calls.connect(used) == ([1] * 3, 0)
    cgroup.attach(chain[-1], one, attach_type=CONNECT4, flags=MULTI)
    links.append(calls.link(chain[-1], one))
    assert calls.connect(used) == ([1] * 5, 0)
    for link in links[1:]:
        link.update(two)
    assert calls.connect(used) == ([1, 2, 2, 2, 1], 0)
    links[0].detach()
    calls.detach(chain[-1], one)
    assert calls.connect(used) == ([2, 2, 2], 0)


def test_programs_run_in_a_removed_cgroup_until_its_last_socket_is_closed(
    group: Cgroup, calls: Calls
) -> None:
    """MPROG-CGROUP-040, -048: also those that are attached above only then."""
    removed = group.child("removed")
    used = calls.udp_socket(removed)
    prog = calls.attach(removed, 1)
    kept = prog.id
    prog.close()
    calls.attach(group, 2)
    removed.path.rmdir()
    calls.attach(group, 3)
    assert calls.connect(used) == ([1, 2, 3], 0)
    assert kept in Prog.ids()
    used.close()
    wait_until(lambda: kept not in Prog.ids(), timeout=5, what="the program that only the cgroup held to go")


def test_a_process_is_subject_to_the_cgroup_that_it_is_in(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-047, -049: its sockets stay subject to the cgroup in which they were made."""
    outside = calls.udp_socket(group)
    child = group.child("child")
    calls.attach(child, 1, DENY)
    inside = calls.udp_socket(child)
    calls.attach(child, 2, DENY, hook=SOCK_CREATE)
    with child.entered():
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert calls.ran() == [2]
        assert calls.connect(outside) == ([], 0)
    assert calls.connect(inside) == ([1], errno.EPERM)


def test_packets_meet_the_programs_of_the_sender_and_of_the_receiver(group: Cgroup, calls: Calls) -> None:
    """MPROG-CGROUP-047 to -049: a datagram over lo; a denied sender is told, a denied receiver gets nothing."""
    near, far = group.child("near"), group.child("far")
    sender, receiver = calls.udp_socket(near), calls.udp_socket(far)
    receiver.bind(("127.0.0.1", 0))
    receiver.setblocking(False)
    calls.attach(group, 1, hook=EGRESS)
    calls.attach(near, 2, hook=EGRESS)
    calls.attach(near, 3, hook=INGRESS)
    calls.attach(far, 4, hook=EGRESS)
    calls.attach(far, 5, hook=INGRESS)
    sender.sendto(b"one", receiver.getsockname())
    assert receiver.recv(16) == b"one"
    assert calls.ran() == [2, 1, 5]
    deny = calls.attach(far, 6, DENY, hook=INGRESS)
    sender.sendto(b"two", receiver.getsockname())
    assert calls.ran() == [2, 1, 5, 6]
    cgroup.detach(far, deny, attach_type=INGRESS)
    calls.attach(near, 7, DENY, hook=EGRESS)
    with pytest.raises(PermissionError):
        sender.sendto(b"three", receiver.getsockname())
    assert calls.ran() == [2, 7, 1]
    with pytest.raises(BlockingIOError):
        receiver.recv(16)
