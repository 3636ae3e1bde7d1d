# SPDX-License-Identifier: MIT
"""A program that was loaded for a device's own processor is none that the host's hooks can run."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.bpf.uapi import BPF_PROG_TYPE_SCHED_CLS, TCX_NEXT
from harness.guest.kr_modules import KrOffload, missing
from harness.guest.net import VethPair
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids


@pytest.fixture
def offloaded() -> Iterator[Prog]:
    """A program that says NEXT, loaded for a device that takes programs."""
    if reason := missing(KrOffload.name):
        pytest.skip(reason)
    code = asm(mov(r0, TCX_NEXT), exit_())
    with (
        KrOffload(),
        Prog.load(code, BPF_PROG_TYPE_SCHED_CLS, ifindex=socket.if_nametoindex(KrOffload.name)) as prog,
    ):
        yield prog


def test_it_cannot_be_attached(offloaded: Prog, veth: VethPair) -> None:
    """MPROG-ATTACH-004, MPROG-QUIRK-015."""
    with refused(errno.EINVAL):
        tcx.attach(veth.b, offloaded)


@pytest.mark.known_issue("MPROG-QUIRK-015", reason="link creation does not look where a program is to run")
def test_it_cannot_be_linked(offloaded: Prog, veth: VethPair) -> None:
    """MPROG-QUIRK-015, MPROG-LINK-003."""
    with refused(errno.EINVAL):
        tcx.link(veth.b, offloaded).close()


@pytest.mark.known_issue("MPROG-QUIRK-015", reason="link update does not look where a program is to run")
def test_a_link_cannot_be_updated_to_it(offloaded: Prog, veth: VethPair, sched_cls: LoadSchedCls) -> None:
    """MPROG-QUIRK-015, MPROG-LINK-028."""
    fitting = sched_cls()
    with tcx.link(veth.b, fitting) as link:
        with refused(errno.EINVAL):
            link.update(offloaded)
        assert tcx.query(veth.b).prog_ids == ids(fitting)


@pytest.mark.known_issue(
    "MPROG-QUIRK-015", reason="the host runs it all the same", splat="attempt to execute device eBPF program"
)
def test_packets_do_not_meet_it(offloaded: Prog, veth: VethPair) -> None:
    """MPROG-QUIRK-015: it was translated for another processor."""
    with contextlib.suppress(BpfError), tcx.link(veth.b, offloaded):
        assert send_frames(veth, 1) == 1
