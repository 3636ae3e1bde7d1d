# SPDX-License-Identifier: MIT
"""The anchor: how a program or link beside which to put another is named and found."""

from __future__ import annotations

import ctypes
import errno
import itertools
from collections import Counter
from threading import Thread

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import Attr, LinkCreateTracing, ProgAttach
from harness.guest.bpf.link import Link
from harness.guest.bpf.probe import require
from harness.guest.bpf.syscall import raw_call, refused
from harness.guest.bpf.tracing import load_tracing
from harness.guest.bpf.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID, BPF_F_LINK
from harness.guest.net import Device
from harness.guest.privilege import CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, without
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids
from scenarios.mprog.requests import Bench


def test_an_anchor_is_found_by_what_it_is(bench: Bench) -> None:
    """MPROG-ANCHOR-001 to -010, MPROG-VEC-010 to -014, -020 to -022: a program stands for its place whoever owns it,
    a link only for the element that this very link owns, although the program of each is in this list."""
    bench.check("""
        attach D | BEFORE         | -    | - | D A B* C
        attach D | BEFORE         | B    | - | A D B* C
        attach D | BEFORE         | shut | - | EBADF
        attach D | BEFORE         | map  | - | EINVAL
        attach D | BEFORE         | b    | - | EINVAL
        attach D | BEFORE         | F    | - | EINVAL
        attach D | BEFORE ID      | B    | - | A D B* C
        attach D | BEFORE ID      | -    | - | ENOENT
        attach D | BEFORE ID      | shut | - | ENOENT
        attach D | BEFORE ID      | F    | - | EINVAL
        attach D | BEFORE LINK    | b    | - | A D B* C
        attach D | BEFORE LINK    | -    | - | EINVAL
        attach D | BEFORE LINK    | shut | - | EBADF
        attach D | BEFORE LINK    | map  | - | EINVAL
        attach D | BEFORE LINK    | B    | - | EINVAL
        attach D | BEFORE LINK    | f    | - | EINVAL
        attach D | BEFORE LINK    | x    | - | ENOENT
        attach D | BEFORE LINK    | o    | - | ENOENT
        attach D | BEFORE LINK    | z    | - | ENOENT
        attach D | BEFORE LINK    | k    | - | ENOENT
        attach D | BEFORE ID LINK | b    | - | A D B* C
        attach D | BEFORE ID LINK | -    | - | ENOENT
        attach D | BEFORE ID LINK | shut | - | ENOENT
        attach D | BEFORE ID LINK | f    | - | EINVAL
        attach D | AFTER ID LINK  | x    | - | ENOENT
        attach D | AFTER ID LINK  | z    | - | ENOENT
        detach A | BEFORE         | F    | - | EINVAL
        detach A | BEFORE ID      | F    | - | EINVAL
        detach A | BEFORE LINK    | f    | - | EINVAL
        detach A | BEFORE         | shut | - | EBADF
        detach A | BEFORE LINK    | o    | - | ENOENT
        detach - | BEFORE         | map  | - | EINVAL
        detach - | BEFORE LINK    | shut | - | EBADF
        detach - | BEFORE ID LINK | shut | - | ENOENT
        detach - | BEFORE         | F    | - | ENOENT
        detach - | AFTER ID       | F    | - | ENOENT
        detach - | AFTER LINK     | f    | - | ENOENT
        detach - | 0              | F    | - | EINVAL
        detach - | AFTER LINK     | z    | - | ENOENT
        link D   | BEFORE         | F    | - | EINVAL
        link D   | BEFORE LINK    | f    | - | EINVAL
        link D   | BEFORE LINK    | o    | - | ENOENT
        link D   | AFTER LINK     | z    | - | ENOENT
        link D   | BEFORE         | shut | - | EBADF
    """)


def test_an_id_names_an_anchor_to_one_who_could_not_open_it(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-ANCHOR-003, -006, -011: nobody here has a descriptor of the program, nor the privilege to get one."""
    d, e = sched_cls(), sched_cls()
    anchor, link = entry.c.id, entry.link.id
    entry.c.close()
    unprivileged = (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF)
    with refused(errno.EPERM):
        without(unprivileged, Link.from_id, link)
    without(unprivileged, tcx.attach, entry.dev, d, flags=BPF_F_AFTER | BPF_F_ID, relative_id=anchor)
    without(
        unprivileged, tcx.attach, entry.dev, e, flags=BPF_F_BEFORE | BPF_F_ID | BPF_F_LINK, relative_id=link
    )
    assert tcx.query(entry.dev).prog_ids == [entry.a.id, *ids(e, entry.b), anchor, d.id]


STAGES = [-errno.ENOENT, -errno.EAGAIN, -errno.EINVAL]


def call(command: int, attributes: Attr) -> int:
    """bpf(2) with next to nothing around it: what it returns, or the errno as a negative number."""
    return raw_call(command, ctypes.byref(attributes), ctypes.sizeof(attributes))


@pytest.mark.vm(cpus=2)
def test_a_link_still_being_made_is_no_anchor_yet(dev: Device, sched_cls: LoadSchedCls) -> None:
    """MPROG-ANCHOR-006: its id says ENOENT, then EAGAIN, then names it.

    The link is one of another kind (so that afterwards it is EINVAL): a tcx link is made under the lock under which
    anchors are looked up, so that nobody can see it half made.
    """
    traced = "bpf_fentry_test1"
    require(f"fentry:{traced}")
    prog = sched_cls()
    seen: Counter[int] = Counter()

    with load_tracing(traced, asm(mov(r0, 0), exit_()), attach_type=uapi.BPF_TRACE_FENTRY) as other:
        create = LinkCreateTracing(prog_fd=other.fd, attach_type=uapi.BPF_TRACE_FENTRY)

        def make_one() -> bool:
            with tcx.link(dev, prog) as last:
                coming = last.id + 1
            made: list[int] = []
            maker = Thread(target=lambda: made.append(call(uapi.BPF_LINK_CREATE, create)))
            attach = ProgAttach(
                target_fd=dev.ifindex,
                attach_bpf_fd=prog.fd,
                attach_type=uapi.BPF_TCX_INGRESS,
                attach_flags=BPF_F_BEFORE | BPF_F_LINK | BPF_F_ID,
                relative_fd=coming,
            )
            answers = [call(uapi.BPF_PROG_ATTACH, attach)]
            maker.start()
            while maker.is_alive():
                answers.append(call(uapi.BPF_PROG_ATTACH, attach))
            maker.join()
            answers.append(call(uapi.BPF_PROG_ATTACH, attach))
            with Link(made[0]) as link:
                assert link.id == coming
            stages = [number for number, _ in itertools.groupby(answers)]
            assert stages == [number for number in STAGES if number in stages]
            assert (stages[0], stages[-1]) == (-errno.ENOENT, -errno.EINVAL)
            seen.update(answers)
            return bool(seen[-errno.EAGAIN])

        wait_until(make_one, timeout=1, what="an attach that meets a link being made")
    assert tcx.query(dev).count == 0
