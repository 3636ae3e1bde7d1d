# SPDX-License-Identifier: MIT
"""The revision: what counts, what does not, and compare-and-swap with it."""

from __future__ import annotations

import errno
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.errnos import errno_of
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import ids


def test_each_change_adds_one(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-REV-001 to -004: attach, link, update, replace and detach count; an update to the same program does not."""
    a, b, c, d = (sched_cls() for _ in range(4))
    revisions = [tcx.query(dev).revision]

    def note() -> None:
        revisions.append(tcx.query(dev).revision)

    tcx.attach(dev, a)
    note()
    with tcx.link(dev, b) as link:
        note()
        link.update(c)
        note()
        link.update(c)
        note()
        tcx.attach(dev, d, replace=a)
        note()
    note()
    assert revisions == [1, 2, 3, 4, 4, 5, 6]


@pytest.mark.parametrize("direction", [BPF_TCX_INGRESS, BPF_TCX_EGRESS], ids=["ingress", "egress"])
def test_a_stale_revision_is_refused_and_the_current_one_accepted(
    dev: Device, sched_cls: LoadSchedCls, direction: int
) -> None:
    """MPROG-ATTACH-007, MPROG-DETACH-008, MPROG-LINK-005, MPROG-REV-001, -003, -005, -009: a list that is not there has
    revision 1; 0 is always accepted."""
    a, b, c, d = (sched_cls() for _ in range(4))

    def attach(prog: Prog, revision: int) -> None:
        tcx.attach(dev, prog, attach_type=direction, expected_revision=revision)

    def detach(prog: Prog, revision: int) -> None:
        tcx.detach(dev, prog, attach_type=direction, expected_revision=revision)

    def stale(revision: int) -> None:
        """The revision is refused everywhere, which changes nothing."""
        before = tcx.query(dev, attach_type=direction)
        with refused(errno.ESTALE):
            attach(d, revision)
        with refused(errno.ESTALE):
            tcx.link(dev, d, attach_type=direction, expected_revision=revision)
        if before.count:
            with refused(errno.ESTALE):
                detach(a, revision)
        assert tcx.query(dev, attach_type=direction) == before

    stale(2)
    attach(a, 1)
    stale(1)
    attach(b, 2)
    with tcx.link(dev, c, attach_type=direction, expected_revision=3) as link:
        stale(3)
        link.update(d)
        link.update(c)
        stale(4)
        detach(b, 6)
        stale(6)
        stale((1 << 32) + 7)
        attach(b, 0)
        detach(b, 0)
    stale(9)
    detach(a, 10)
    assert tcx.query(dev, attach_type=direction).revision == 1


@pytest.mark.vm(cpus=2)
def test_of_racing_writers_with_one_revision_exactly_one_wins(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-REV-010."""
    writers, rounds = 4, 8
    tcx.attach(dev, sched_cls())

    def attempt(prog: Prog, revision: int) -> int:
        # A new thread starts in the namespace of the one that made it: here, the device's.
        return errno_of(lambda: tcx.attach(dev, prog, expected_revision=revision))

    with ThreadPoolExecutor(writers) as pool:
        for _ in range(rounds):
            before = tcx.query(dev)
            attempts = [pool.submit(attempt, sched_cls(), before.revision) for _ in range(writers)]
            outcomes = [done.result() for done in attempts]
            assert Counter(outcomes) == {0: 1, errno.ESTALE: writers - 1}
            after = tcx.query(dev)
            assert (after.revision, after.count) == (before.revision + 1, before.count + 1)


def test_an_emptied_entry_starts_again_at_one(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-REV-006, MPROG-QUIRK-007: so a reader of revision 2 does not notice that the program is another one."""
    a, b, c = (sched_cls() for _ in range(3))
    tcx.attach(dev, a)
    seen = tcx.query(dev).revision
    tcx.detach(dev, a)
    assert tcx.query(dev).revision == 1
    tcx.attach(dev, b)
    tcx.attach(dev, c, expected_revision=seen)
    assert tcx.query(dev).prog_ids == ids(b, c)


def test_clsact_keeps_the_revision_of_an_emptied_entry(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-REV-007, -008, MPROG-LEGACY-002: and makes a detach from it look at the revision first."""
    a = sched_cls()
    qdisc.add_clsact(dev)
    tcx.attach(dev, a)
    tcx.detach(dev, a)
    assert (tcx.query(dev).count, tcx.query(dev).revision) == (0, 3)
    with refused(errno.ESTALE):
        tcx.detach(dev, a, expected_revision=1)
    with refused(errno.ENOENT):
        tcx.detach(dev, a, expected_revision=3)
    qdisc.delete_clsact(dev)
    assert tcx.query(dev).revision == 1
