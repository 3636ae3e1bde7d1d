# SPDX-License-Identifier: MIT
"""libbpf's interface to filters of clsact, as tools of before tcx use it; tcx stands in front of them unseen."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.asm import add, jgt, label, ldxb, ldxw, r1, r2, r3, r6
from harness.guest.bpf.libbpf import checked, libbpf, messages
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS, TCX_NEXT
from harness.guest.net import Device, VethPair, veth_pair
from harness.guest.netns import NetNamespace
from harness.guest.privilege import CAP_PERFMON, CAP_SYS_ADMIN, without
from harness.guest.traffic import send_frames
from scenarios.mprog.conftest import Journal, ids

P = ParamSpec("P")
T = TypeVar("T")

# tools/lib/bpf/libbpf.h: enum bpf_tc_attach_point, bpf_tc_flags
INGRESS, EGRESS = 1, 2
REPLACE = 1
DATA, DATA_END = 76, 80  # struct __sk_buff, include/uapi/linux/bpf.h


class _Hook(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    )


class Hook:
    """A direction of a device in the current namespace; libbpf's errors are raised as BpfError."""

    def __init__(self, dev: Device, point: int) -> None:
        self._hook = _Hook(ctypes.sizeof(_Hook), dev.ifindex, point, 0)

    def create(self) -> None:
        self._call("bpf_tc_hook_create")

    def destroy(self) -> None:
        """Removes the qdisc when the hook is both directions, else this direction's filters only."""
        self._call("bpf_tc_hook_destroy")

    def attach(self, prog: Prog, handle: int, *, flags: int = 0) -> int:
        """The id of the program that libbpf says is attached."""
        options = self._options(handle, prog_fd=prog.fd, flags=flags)
        self._call("bpf_tc_attach", options)
        return int(options.prog_id)

    def query(self, handle: int) -> int:
        """The id of the filter's program."""
        options = self._options(handle)
        self._call("bpf_tc_query", options)
        return int(options.prog_id)

    def detach(self, handle: int) -> None:
        self._call("bpf_tc_detach", self._options(handle))

    def _options(self, handle: int, *, prog_fd: int = 0, flags: int = 0) -> _Options:
        return _Options(ctypes.sizeof(_Options), prog_fd, flags, 0, handle, 1)

    def _call(self, function: str, *options: _Options) -> None:
        with messages() as log:
            arguments = (ctypes.byref(each) for each in (self._hook, *options))
            checked(getattr(libbpf(), function)(*arguments), function, log)


@pytest.fixture
def initial() -> Iterator[VethPair]:
    """A veth pair in the initial namespace."""
    with NetNamespace.current() as here:
        # So that nobody sends but the scenario.
        here.set_sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        with veth_pair(ns_a=here, ns_b=here) as pair:
            yield pair


def as_root(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


def with_two_capabilities(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """CAP_BPF and CAP_NET_ADMIN are what is left of those that bpf(2) and rtnetlink ask for."""
    return without((CAP_SYS_ADMIN, CAP_PERFMON), function, *args, **kwargs)


# Without CAP_PERFMON the verifier is stricter about pointers; comparing those into the packet must stay possible.
READING = (
    ldxw(r2, r6, DATA),
    ldxw(r3, r6, DATA_END),
    add(r2, 1),
    jgt(r2, r3, "short"),
    ldxb(r1, r2, -1),
    label("short"),
)


@pytest.mark.parametrize("user", [as_root, with_two_capabilities])
def test_libbpf_manages_filters_beside_tcx(
    initial: VethPair, journal: Journal, user: Callable[..., Any]
) -> None:
    """MPROG-LEGACY-008, -001: no query of tcx lists them (1, 2), which run behind it (9); in the initial namespace."""
    dev, in_front = initial.b, journal.prog(9)
    first, second = user(journal.prog, 1, TCX_NEXT, READING), user(journal.prog, 2, TCX_NEXT, READING)
    both = Hook(dev, INGRESS | EGRESS)
    user(both.create)
    with refused(errno.EEXIST):
        user(both.create)
    for point, attach_type, way in (
        (INGRESS, BPF_TCX_INGRESS, initial),
        (EGRESS, BPF_TCX_EGRESS, initial.flipped),
    ):
        hook = Hook(dev, point)
        assert user(hook.attach, first, 1) == first.id
        with refused(errno.EEXIST):
            user(hook.attach, second, 1)
        assert user(hook.query, 1) == first.id
        assert user(hook.attach, second, 1, flags=REPLACE) == user(hook.query, 1) == second.id
        assert user(hook.attach, first, 2) == first.id
        assert tcx.query(dev, attach_type=attach_type).count == 0
        with tcx.link(dev, in_front, attach_type=attach_type):
            assert tcx.query(dev, attach_type=attach_type).prog_ids == ids(in_front)
            assert send_frames(way, 1) == 1
            met = journal.read()
            assert (met[0], sorted(met)) == (9, [1, 2, 9])
        user(hook.detach, 1)
        with refused(errno.ENOENT):
            user(hook.query, 1)
        assert send_frames(way, 1) == 1
        assert journal.read() == [1]
        user(hook.destroy)
        assert send_frames(way, 1) == 1
        assert journal.read() == []
    user(both.destroy)
    assert "clsact" not in qdisc.kinds(dev)
