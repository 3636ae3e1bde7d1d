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
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.net import Device
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids


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


def test_a_stale_revision_is_refused_and_the_current_one_accepted(
    entry: Entry, sched_cls: LoadSchedCls
) -> None:
    """MPROG-ATTACH-007, MPROG-DETACH-008, MPROG-LINK-005: of two that read, the second must read again."""
    d = sched_cls()
    seen = tcx.query(entry.dev).revision
    tcx.detach(entry.dev, entry.c, expected_revision=seen)
    with refused(errno.ESTALE):
        tcx.attach(entry.dev, d, expected_revision=seen)
    with refused(errno.ESTALE):
        tcx.link(entry.dev, d, expected_revision=seen)
    with refused(errno.ESTALE):
        tcx.detach(entry.dev, entry.a, expected_revision=seen)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b)
    tcx.attach(entry.dev, d, expected_revision=tcx.query(entry.dev).revision)
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.b, d)


@pytest.mark.vm(cpus=2)
def test_of_racing_writers_with_one_revision_exactly_one_wins(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-REV-010."""
    writers, rounds = 4, 8
    tcx.attach(dev, sched_cls())

    def attempt(prog: Prog, revision: int) -> int | None:
        # A new thread starts in the namespace of the one that made it: here, the device's.
        try:
            tcx.attach(dev, prog, expected_revision=revision)
        except BpfError as error:
            return error.errno
        return 0

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


def test_a_query_with_a_short_array_gives_the_first_and_the_true_count(entry: Entry) -> None:
    """MPROG-QUERY-006 to -008: ENOSPC, nothing written behind the array's end; no array at all is no error."""
    untouched = 0xA5A5A5A5
    short = tcx.query(entry.dev, count=2, fill=untouched, tolerate=(errno.ENOSPC,))
    assert (short.errno, short.count) == (errno.ENOSPC, 3)
    assert short.arrays["prog_ids"][:3] == [*ids(entry.a, entry.b), untouched]
    assert short.arrays["link_ids"][:3] == [0, entry.link.id, untouched]
    counted = tcx.query(entry.dev, arrays=(), count=0)
    assert (counted.errno, counted.count, counted.revision) == (0, 3, short.revision)
