# SPDX-License-Identifier: MIT
"""What a link owns and tells; how long it lives is in test_link_lifetime.py."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import VethPair
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, ids

PIN = Path("/sys/fs/bpf/kernrig-link")


def test_an_update_keeps_the_slot_and_the_link(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-025, -027, -029, MPROG-QUERY-013."""
    d = sched_cls()
    before = tcx.query(entry.dev)
    with refused(errno.EEXIST):
        entry.link.update(entry.a)
    with refused(errno.EPERM):
        entry.link.update(d, old=entry.a)
    entry.link.update(d, old=entry.b)
    after = tcx.query(entry.dev)
    assert after.prog_ids == ids(entry.a, d, entry.c)
    assert after.link_ids == before.link_ids == [0, entry.link.id, 0]
    assert entry.link.info().prog_id == d.id


def test_a_linked_program_goes_with_its_link_only(entry: Entry) -> None:
    """MPROG-DETACH-012, MPROG-LINK-042, -044: not by a direct detach; the rest keep their order."""
    with refused(errno.EBUSY):
        tcx.detach(entry.dev, entry.b)
    entry.link.close()
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)


def test_a_detached_link_is_an_empty_object(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-040, -041."""
    entry.link.detach()
    assert tcx.query(entry.dev).prog_ids == ids(entry.a, entry.c)
    entry.link.detach()
    with refused(errno.ENOLINK):
        entry.link.update(sched_cls())
    info = entry.link.info()
    assert (info.ifindex, info.attach_type, info.prog_id) == (0, BPF_TCX_INGRESS, entry.b.id)


def test_descriptors_do_not_survive_exec(entry: Entry) -> None:
    """MPROG-LINK-009: neither that of a new link, nor one opened by id or from a pin."""
    entry.link.pin(PIN)
    try:
        with Link.from_id(entry.link.id) as found, Link.get(PIN) as reopened:
            for link in (entry.link, found, reopened):
                assert fcntl.fcntl(link.fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    finally:
        PIN.unlink()


def test_an_id_is_not_given_twice(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-LINK-009, -046: neither while the link is open, nor soon after; a refused creation may use one up."""
    prog = sched_cls()
    given = [entry.link.id]
    for _ in range(20):
        with tcx.link(entry.dev, prog) as link, refused(errno.EEXIST):
            given.append(link.id)
            assert {entry.link.id, link.id} <= set(Link.ids())
            tcx.link(entry.dev, prog)
    assert len(set(given)) == len(given)
    assert set(Link.ids()) & set(given) == {entry.link.id}


@pytest.mark.parametrize(
    ("attach_type", "direction"),
    [(BPF_TCX_INGRESS, "ingress"), (BPF_TCX_EGRESS, "egress")],
    ids=["ingress", "egress"],
)
def test_a_link_tells_where_it_is(
    veth: VethPair, sched_cls: LoadSchedCls, attach_type: int, direction: str
) -> None:
    """MPROG-LINK-041, -045: by BPF_OBJ_GET_INFO_BY_FD and in fdinfo; and where it was once detached."""
    prog = sched_cls()
    with tcx.link(veth.b, prog, attach_type=attach_type) as link:
        for ifindex in (veth.b.ifindex, 0):
            info = link.info()
            assert (info.type, info.id, info.prog_id) == (uapi.BPF_LINK_TYPE_TCX, link.id, prog.id)
            assert (info.ifindex, info.attach_type) == (ifindex, attach_type)
            told = dict(
                line.split(":\t")
                for line in Path(f"/proc/self/fdinfo/{link.fd}").read_text().splitlines()
                if ":\t" in line
            )
            assert (told["link_type"], told["link_id"], told["prog_id"]) == (
                "tcx",
                str(link.id),
                str(prog.id),
            )
            assert (told["ifindex"], told["attach_type"]) == (str(ifindex), f"{attach_type} ({direction})")
            link.detach()
