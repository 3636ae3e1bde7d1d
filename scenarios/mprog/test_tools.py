# SPDX-License-Identifier: MIT
"""bpftool and tc see what our own queries see, and our queries what those two have set up."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.guest import qdisc
from harness.guest.bpf import cgroup, netkit, tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import QueryResult
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.uapi import (
    BPF_CGROUP_INET_EGRESS,
    BPF_CGROUP_INET_INGRESS,
    BPF_F_ALLOW_MULTI,
    BPF_F_ALLOW_OVERRIDE,
    BPF_F_BEFORE,
    BPF_F_QUERY_EFFECTIVE,
    BPF_NETKIT_PEER,
    BPF_NETKIT_PRIMARY,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from harness.guest.net import Device, VethPair
from harness.guest.tools import ToolError, bpftool, tc
from harness.guest.traffic import send_frames
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import Entry, Journal, LoadCgroupSkb, ids

Rows = list[dict[str, Any]]

ATTACH_TYPES = {
    BPF_TCX_INGRESS: "tcx_ingress",
    BPF_TCX_EGRESS: "tcx_egress",
    BPF_NETKIT_PRIMARY: "netkit_primary",
    BPF_NETKIT_PEER: "netkit_peer",
    BPF_CGROUP_INET_EGRESS: "cgroup_inet_egress",
    BPF_CGROUP_INET_INGRESS: "cgroup_inet_ingress",
}
# The numbers of include/uapi/linux/bpf.h, not our own constants: MPROG-ABI-008.
LINK_TYPES = {3: "cgroup", 11: "tcx", 13: "netkit"}
MODES = {0: "", BPF_F_ALLOW_OVERRIDE: "override", BPF_F_ALLOW_MULTI: "multi"}


def name_of(prog_id: int) -> str:
    with Prog.from_id(prog_id) as prog:
        return prog.info().name


def hook_rows(dev: Device, kind: str, found: QueryResult) -> Rows:
    """The query's result as `bpftool net show` writes it; it has words only for flags that are not 0."""
    assert not any(found.prog_attach_flags) and not any(found.link_attach_flags)
    return [
        {
            "devname": dev.name,
            "ifindex": dev.ifindex,
            "kind": kind,
            "name": name_of(prog_id),
            "prog_id": prog_id,
            "prog_flags": [],
            "link_id": link_id,
            "link_flags": [],
        }
        for prog_id, link_id in zip(found.prog_ids, found.link_ids, strict=True)
    ]


def net_show(dev: Device) -> Rows:
    """The rows of `bpftool net show` about programs on packets' way; there are no others."""
    with dev.ns.entered():
        [shown] = bpftool("net", "show")
    assert shown | {"tc": []} == {"xdp": [], "tc": [], "flow_dissector": [], "netfilter": []}
    rows: Rows = shown["tc"]
    return rows


def filters(dev: Device, direction: str) -> Rows:
    """`tc filter show`, without the row that stands for the whole priority."""
    with dev.ns.entered():
        return [
            row["options"] for row in tc("filter", "show", "dev", dev.name, direction) if "options" in row
        ]


def filter_options(prog: Prog, name: str) -> dict[str, Any]:
    """The options of a filter by `qdisc.add_bpf_filter`, as `tc filter show` writes them."""
    info = prog.info()
    told: dict[str, Any] = {"id": info.id, "name": info.name, "tag": info.tag.hex()}
    if info.jited_prog_len:
        told["jited"] = 1
    place = {"handle": "0x1", "flowid": ":1", "direct-action": True, "not_in_hw": True}
    return place | {"bpf_name": name, "prog": told}


@contextmanager
def pinned(prog: Prog) -> Iterator[Path]:
    """A pin of the program, for tools, which take no descriptors."""
    path = Path("/sys/fs/bpf/kernrig-tool")
    prog.pin(path)
    try:
        yield path
    finally:
        path.unlink()


def test_bpftool_and_tc_list_a_device_as_our_queries_do(entry: Entry, sched_cls: LoadSchedCls) -> None:
    """MPROG-QUERY-009, MPROG-LEGACY-008: order and links of both hooks; cls_bpf filters are in no query, and tc
    knows nothing else.
    """
    dev = entry.dev
    d, old_in, old_out = sched_cls(name="d"), sched_cls(name="old_in"), sched_cls(name="old_out")
    qdisc.add_clsact(dev)
    qdisc.add_bpf_filter(dev, old_in.fd, name="filter_in")
    qdisc.add_bpf_filter(dev, old_out.fd, name="filter_out", egress=True)
    tcx.attach(dev, d, attach_type=BPF_TCX_EGRESS)
    with tcx.link(dev, entry.a, attach_type=BPF_TCX_EGRESS, flags=BPF_F_BEFORE) as out:
        ingress, egress = tcx.query(dev), tcx.query(dev, attach_type=BPF_TCX_EGRESS)
        assert (ingress.prog_ids, ingress.link_ids) == (ids(entry.a, entry.b, entry.c), [0, entry.link.id, 0])
        assert (egress.prog_ids, egress.link_ids) == (ids(entry.a, d), [out.id, 0])
        legacy = {"devname": dev.name, "ifindex": dev.ifindex}
        assert net_show(dev) == [
            *hook_rows(dev, "tcx/ingress", ingress),
            *hook_rows(dev, "tcx/egress", egress),
            legacy | {"kind": "clsact/ingress", "name": "filter_in", "id": old_in.id},
            legacy | {"kind": "clsact/egress", "name": "filter_out", "id": old_out.id},
        ]
        assert filters(dev, "ingress") == [filter_options(old_in, "filter_in")]
        assert filters(dev, "egress") == [filter_options(old_out, "filter_out")]


def test_bpftool_lists_a_netkit_pair_as_our_queries_do(
    netkit_ends: tuple[Device, Device], sched_cls: LoadSchedCls
) -> None:
    """MPROG-NETKIT-002, -011, MPROG-QUERY-009: both ends' lists under the primary, tcx beside them."""
    primary, peer = netkit_ends
    a, b, c = sched_cls(name="a"), sched_cls(name="b"), sched_cls(name="c")
    netkit.attach(primary, a)
    tcx.attach(primary, a)
    tcx.attach(peer, c)
    with (
        netkit.link(primary, b, flags=BPF_F_BEFORE) as near,
        netkit.link(primary, a, attach_type=BPF_NETKIT_PEER) as far,
    ):
        netkit.attach(primary, c, attach_type=BPF_NETKIT_PEER)
        near_list, far_list = netkit.query(primary), netkit.query(primary, attach_type=BPF_NETKIT_PEER)
        assert (near_list.prog_ids, near_list.link_ids) == (ids(b, a), [near.id, 0])
        assert (far_list.prog_ids, far_list.link_ids) == (ids(a, c), [far.id, 0])
        shown = net_show(primary)
        assert [row for row in shown if row["ifindex"] == primary.ifindex] == [
            *hook_rows(primary, "tcx/ingress", tcx.query(primary)),
            *hook_rows(primary, "netkit/primary", near_list),
            *hook_rows(primary, "netkit/peer", far_list),
        ]
        assert [row for row in shown if row["ifindex"] != primary.ifindex] == hook_rows(
            peer, "tcx/ingress", tcx.query(peer)
        )


def link_row(link: Link) -> dict[str, Any]:
    """The link's info as `bpftool link show` writes it; the caller adds where it says the link is."""
    info = link.info()
    told: dict[str, Any] = {"id": info.id, "type": LINK_TYPES[info.type], "prog_id": info.prog_id}
    told["attach_type"] = ATTACH_TYPES[info.attach_type or 0]
    told |= {} if info.ifindex is None else {"ifindex": info.ifindex}
    return told | ({} if info.cgroup_id is None else {"cgroup_id": info.cgroup_id})


def test_bpftool_tells_of_links_what_their_info_tells(
    entry: Entry,
    netkit_pair: Callable[..., VethPair],
    groups: tuple[Path, Path],
    sched_cls: LoadSchedCls,
    cgroup_skb: LoadCgroupSkb,
) -> None:
    """MPROG-LINK-041, -045, MPROG-NETKIT-003, MPROG-ABI-008: tcx (one detached), netkit and cgroup links."""
    a, b = sched_cls(), sched_cls()
    pair = netkit_pair()
    with (
        entry.dev.ns.entered(),
        tcx.link(entry.dev, a) as defunct,
        tcx.link(entry.dev, b, attach_type=BPF_TCX_EGRESS) as out,
        pair.ns_a.entered(),
        netkit.link(pair.a, a) as near,
        netkit.link(pair.a, b, attach_type=BPF_NETKIT_PEER) as far,
        cgroup.link(groups[0], cgroup_skb()) as group,
    ):
        defunct.detach()
        # bpftool looks names up in its own namespace, which has the primary only.
        there = {"devname": "(unknown)"}
        rows = [
            link_row(entry.link) | there,
            link_row(defunct) | {"devname": "(detached)"},
            link_row(out) | there,
            link_row(near) | {"devname": pair.a.name},
            link_row(far) | there,
            link_row(group),
        ]
        assert bpftool("link", "show") == rows
        assert [row["id"] for row in rows] == list(Link.ids())
        places = [row.get("ifindex", row.get("cgroup_id")) for row in rows]
        here, group_id = entry.dev.ifindex, groups[0].stat().st_ino
        assert places == [here, 0, here, pair.a.ifindex, pair.b.ifindex, group_id]


def test_bpftool_lists_programs_also_those_that_only_an_entry_holds(entry: Entry) -> None:
    """MPROG-LIFE-008."""
    progs = (entry.a, entry.b, entry.c)
    infos = {prog.id: prog.info() for prog in progs}
    entry.a.close()
    rows = {row["id"]: row for row in bpftool("prog", "show")}
    assert list(rows) == list(Prog.ids())
    for prog_id, info in infos.items():
        row = rows[prog_id]
        # Told in other units than the info has them.
        assert row.pop("loaded_at") > 0 and row.pop("bytes_memlock") > 0
        jit = {"jited": True, "bytes_jited": info.jited_prog_len} if info.jited_prog_len else {"jited": False}
        assert row == {
            "id": prog_id,
            "type": "sched_cls",
            "name": info.name,
            "tag": info.tag.hex(),
            "gpl_compatible": True,
            "uid": 0,
            "orphaned": False,
            "bytes_xlated": info.xlated_prog_len,
            **jit,
        }


def cgroup_rows(group: Path, attach_type: int, flags: int = 0) -> Rows:
    """The query's result as `bpftool cgroup show` writes it; of effective lists it tells no mode."""
    found = cgroup.query(group, attach_type=attach_type, flags=flags)
    mode = {} if flags else {"attach_flags": MODES[found.attach_flags]}
    more = {"attach_btf_name": "", "attach_btf_obj_id": 0, "attach_btf_id": 0}
    kind = ATTACH_TYPES[attach_type]
    return [
        {"id": prog_id, "attach_type": kind, "name": name_of(prog_id), **more, **mode}
        for prog_id in found.prog_ids
    ]


def test_bpftool_lists_cgroups_as_our_queries_do(
    groups: tuple[Path, Path], cgroup_skb: LoadCgroupSkb
) -> None:
    """MPROG-CGROUP-042, -046, -047: own lists with their modes, effective lists, and the tree of all."""
    above, below = groups
    direct, linked, inner, single = (cgroup_skb() for _ in range(4))
    cgroup.attach(above, direct, flags=BPF_F_ALLOW_MULTI)
    cgroup.attach(below, inner, flags=BPF_F_ALLOW_MULTI)
    cgroup.attach(above, single, attach_type=BPF_CGROUP_INET_INGRESS, flags=BPF_F_ALLOW_OVERRIDE)
    with cgroup.link(above, linked):
        own = {
            group: cgroup_rows(group, BPF_CGROUP_INET_INGRESS) + cgroup_rows(group, BPF_CGROUP_INET_EGRESS)
            for group in groups
        }
        assert [row["id"] for row in own[above]] == ids(single, direct, linked)
        assert [row["id"] for row in own[below]] == ids(inner)
        assert bpftool("cgroup", "show", above) == own[above]
        effective = [
            row
            for attach_type in (BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS)
            for row in cgroup_rows(below, attach_type, BPF_F_QUERY_EFFECTIVE)
        ]
        assert [row["id"] for row in effective] == ids(single, inner, direct, linked)
        assert bpftool("cgroup", "show", below, "effective") == effective
        assert bpftool("cgroup", "tree", above.parent) == [
            {"cgroup": str(group), "programs": own[group]} for group in groups
        ]


@pytest.mark.parametrize(
    ("hook", "attach_type"), [("tcx_ingress", BPF_TCX_INGRESS), ("tcx_egress", BPF_TCX_EGRESS)]
)
def test_our_queries_see_what_bpftool_attaches_and_detaches(
    dev: Device, sched_cls: LoadSchedCls, hook: str, attach_type: int
) -> None:
    """MPROG-ATTACH-019, MPROG-DETACH-017, -020: it appends, and takes the last away unless a link owns that."""

    def seen() -> tuple[list[int], list[int], int]:
        found = tcx.query(dev, attach_type=attach_type)
        return found.prog_ids, found.link_ids, found.revision

    a, b, c = (sched_cls() for _ in range(3))
    tcx.attach(dev, a, attach_type=attach_type)
    with tcx.link(dev, b, attach_type=attach_type) as link:
        with pinned(c) as path:
            bpftool("net", "attach", hook, "pinned", path, "dev", dev.name)
        assert seen() == (ids(a, b, c), [0, link.id, 0], 4)
        bpftool("net", "detach", hook, "dev", dev.name)
        assert seen() == (ids(a, b), [0, link.id], 5)
        with pytest.raises(ToolError, match=os.strerror(errno.EBUSY)):
            bpftool("net", "detach", hook, "dev", dev.name)
        assert seen() == (ids(a, b), [0, link.id], 5)


def test_a_filter_that_tc_adds_runs_after_tcx_and_is_in_no_query(veth: VethPair, journal: Journal) -> None:
    """MPROG-LEGACY-001 to -003, -008: set up, packet and removal as users of the old interface do it."""
    dev, first, legacy = veth.b, journal.prog(1), journal.prog(2)
    tcx.attach(dev, first)
    before = tcx.query(dev)
    tc("qdisc", "add", "dev", dev.name, "clsact")
    with pinned(legacy) as path:
        tc("filter", "add", "dev", dev.name, "ingress", "bpf", "direct-action", "object-pinned", path)
    assert [options["prog"]["id"] for options in filters(dev, "ingress")] == [legacy.id]
    assert tcx.query(dev) == before
    assert send_frames(veth, 1) == 1
    assert journal.read() == [1, 2]
    tc("qdisc", "del", "dev", dev.name, "clsact")
    assert tcx.query(dev) == before
    assert send_frames(veth, 1) == 1
    assert journal.read() == [1]
