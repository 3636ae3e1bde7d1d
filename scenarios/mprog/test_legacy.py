# SPDX-License-Identifier: MIT
"""tcx beside the older hooks, the filters of clsact and ingress qdiscs: each on its own, tcx first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from harness.guest import qdisc
from harness.guest.bpf import tcx
from harness.guest.bpf.uapi import (
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
    TCX_DROP,
    TCX_NEXT,
    TCX_PASS,
)
from harness.guest.net import Device, VethPair
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Journal, fate, ids
from scenarios.mprog.revisions import is_held, revisions


@dataclass(frozen=True)
class Hook:
    """A direction, and the kind of qdisc whose filters stand there."""

    kind: str
    attach_type: int

    def __str__(self) -> str:
        return f"{self.kind} {'egress' if self.egress else 'ingress'}"

    @property
    def egress(self) -> bool:
        return self.attach_type == BPF_TCX_EGRESS

    def end(self, veth: VethPair) -> Device:
        """The end of the pair at which a frame from a to b meets this hook."""
        return veth.a if self.egress else veth.b

    def add_qdisc(self, dev: Device) -> None:
        (qdisc.add_clsact if self.kind == "clsact" else qdisc.add_ingress)(dev)

    def delete_qdisc(self, dev: Device) -> None:
        (qdisc.delete_clsact if self.kind == "clsact" else qdisc.delete_ingress)(dev)


HOOKS = [Hook("clsact", BPF_TCX_INGRESS), Hook("clsact", BPF_TCX_EGRESS), Hook("ingress", BPF_TCX_INGRESS)]
AT_EACH_HOOK = pytest.mark.parametrize("hook", HOOKS, ids=str)


@AT_EACH_HOOK
@pytest.mark.parametrize("first", ["qdisc", "tcx"])
def test_tcx_runs_before_the_filter_whichever_came_first(
    veth: VethPair, journal: Journal, hook: Hook, first: str
) -> None:
    """MPROG-LEGACY-001, -008, MPROG-RUN-002: programs 1 and 2 (link) of tcx, 3 of the filter, which no query lists."""
    dev, direct, linked, legacy = hook.end(veth), *(journal.prog(number) for number in (1, 2, 3))

    def add_filter() -> None:
        hook.add_qdisc(dev)
        qdisc.add_bpf_filter(dev, legacy.fd, egress=hook.egress)

    with dev.ns.entered():
        if first == "qdisc":
            add_filter()
        tcx.attach(dev, direct, attach_type=hook.attach_type)
        with tcx.link(dev, linked, attach_type=hook.attach_type):
            if first == "tcx":
                add_filter()
            assert send_frames(veth, 1) == 1
            assert journal.read() == [1, 2, 3]
            assert tcx.query(dev, attach_type=hook.attach_type).prog_ids == ids(direct, linked)


@AT_EACH_HOOK
def test_what_is_left_runs_when_the_other_is_removed(veth: VethPair, journal: Journal, hook: Hook) -> None:
    """MPROG-LEGACY-003, -004: programs without filter, without qdisc; a filter without programs, and with new ones."""
    dev, direct, linked, legacy = hook.end(veth), *(journal.prog(number) for number in (1, 2, 3))
    met = {}

    def note(after: str) -> None:
        met[after] = (send_frames(veth, 1), journal.read())

    with dev.ns.entered():
        hook.add_qdisc(dev)
        qdisc.add_bpf_filter(dev, legacy.fd, egress=hook.egress)
        link = tcx.link(dev, linked, attach_type=hook.attach_type)
        with link:
            tcx.attach(dev, direct, attach_type=hook.attach_type)
            link.detach()
            note("link detached")
            tcx.detach(dev, direct, attach_type=hook.attach_type)
            note("program detached")
        with tcx.link(dev, linked, attach_type=hook.attach_type):
            note("new link")
            qdisc.delete_bpf_filter(dev, egress=hook.egress)
            note("filter deleted")
            qdisc.add_bpf_filter(dev, legacy.fd, egress=hook.egress)
            hook.delete_qdisc(dev)
            note("qdisc deleted")
        note("all gone")
    assert met == {
        "link detached": (1, [1, 3]),
        "program detached": (1, [3]),
        "new link": (1, [2, 3]),
        "filter deleted": (1, [2]),
        "qdisc deleted": (1, [2]),
        "all gone": (1, []),
    }


@AT_EACH_HOOK
@pytest.mark.parametrize("how", ["program", "link"])
def test_pass_keeps_a_packet_from_the_filter_that_drops_it(
    veth: VethPair, journal: Journal, hook: Hook, how: str
) -> None:
    """MPROG-RUN-002 to -004, MPROG-LEGACY-001: put in the place of a PASS, a NEXT lets the filter decide."""
    dev, passing, going_on = hook.end(veth), journal.prog(1, TCX_PASS), journal.prog(2, TCX_NEXT)
    dropping = journal.prog(3, TCX_DROP)
    hook.add_qdisc(dev)
    qdisc.add_bpf_filter(dev, dropping.fd, egress=hook.egress)
    with dev.ns.entered():
        if how == "program":
            tcx.attach(dev, passing, attach_type=hook.attach_type)
            before = (fate(veth), journal.read())
            tcx.attach(dev, going_on, attach_type=hook.attach_type, replace=passing)
            after = (fate(veth), journal.read())
        else:
            with tcx.link(dev, passing, attach_type=hook.attach_type) as link:
                before = (fate(veth), journal.read())
                link.update(going_on)
                after = (fate(veth), journal.read())
    assert before == ("arrives", [1])
    assert after == ("refused" if hook.egress else "lost", [2, 3])


@AT_EACH_HOOK
def test_a_program_at_both_hooks_runs_twice(veth: VethPair, journal: Journal, hook: Hook) -> None:
    """MPROG-LEGACY-005: once for tcx, once as filter."""
    dev, prog = hook.end(veth), journal.prog(1)
    hook.add_qdisc(dev)
    qdisc.add_bpf_filter(dev, prog.fd, egress=hook.egress)
    with dev.ns.entered():
        tcx.attach(dev, prog, attach_type=hook.attach_type)
        assert send_frames(veth, 1) == 1
        assert journal.read() == [1, 1]
        tcx.detach(dev, prog, attach_type=hook.attach_type)
        assert send_frames(veth, 1) == 1
        assert journal.read() == [1]


@pytest.mark.parametrize(
    ("kind", "held", "kept"), [("clsact", (True, True), (3, 3)), ("ingress", (True, False), (3, 1))]
)
def test_a_qdisc_keeps_the_revisions_of_its_directions(
    dev: Device, sched_cls: LoadSchedCls, kind: str, held: tuple[bool, bool], kept: tuple[int, int]
) -> None:
    """MPROG-REV-006 to -008, MPROG-LEGACY-002, MPROG-DETACH-006, -009: until it goes; without one, nothing is kept."""
    prog, hook = sched_cls(), Hook(kind, BPF_TCX_INGRESS)

    def attach_and_detach() -> None:
        for attach_type in (BPF_TCX_INGRESS, BPF_TCX_EGRESS):
            tcx.attach(dev, prog, attach_type=attach_type)
            tcx.detach(dev, prog, attach_type=attach_type)

    attach_and_detach()
    assert revisions(dev) == (1, 1)
    hook.add_qdisc(dev)
    assert (is_held(dev, BPF_TCX_INGRESS), is_held(dev, BPF_TCX_EGRESS)) == held
    attach_and_detach()
    assert revisions(dev) == kept
    hook.delete_qdisc(dev)
    assert revisions(dev) == (1, 1)
    assert not is_held(dev, BPF_TCX_INGRESS)
    assert not is_held(dev, BPF_TCX_EGRESS)


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
def test_a_qdisc_comes_and_goes_without_changing_a_list(
    dev: Device, sched_cls: LoadSchedCls, kind: str
) -> None:
    """MPROG-REV-007, MPROG-LEGACY-003: nor its revision; and after the last program, it is not there any more."""
    a, b, hook = sched_cls(), sched_cls(), Hook(kind, BPF_TCX_INGRESS)
    tcx.attach(dev, a)
    with tcx.link(dev, b):
        before = tcx.query(dev)
        hook.add_qdisc(dev)
        assert tcx.query(dev) == before
        hook.delete_qdisc(dev)
        assert tcx.query(dev) == before
    tcx.detach(dev, a)
    assert revisions(dev) == (1, 1)
