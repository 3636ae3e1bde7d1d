# SPDX-License-Identifier: MIT
"""Queueing disciplines and legacy BPF filters on a device, through pyroute2."""

from __future__ import annotations

from harness.guest.net import Device

# include/uapi/linux/pkt_sched.h
TC_H_MIN_INGRESS = 0xFFF2
TC_H_MIN_EGRESS = 0xFFF3
CLSACT_MAJOR = 0xFFFF0000
ETH_P_ALL = 3
TCM_IFINDEX_MAGIC_BLOCK = -1  # include/uapi/linux/rtnetlink.h: the parent is a block's number


def add_clsact(device: Device) -> None:
    """Add a clsact qdisc. Raises NetlinkError: EEXIST when there is an ingress or clsact qdisc already."""
    device.ns.ipr.tc("add", "clsact", index=device.ifindex)


def add_ingress(device: Device) -> None:
    """Add an ingress qdisc. Raises NetlinkError: EEXIST as for clsact."""
    device.ns.ipr.tc("add", "ingress", index=device.ifindex)


def delete_clsact(device: Device) -> None:
    """Delete the clsact qdisc with its filters. Raises NetlinkError when there is none."""
    device.ns.ipr.tc("del", "clsact", index=device.ifindex)


def delete_ingress(device: Device) -> None:
    """Delete the ingress qdisc with its filters. Raises NetlinkError when there is none."""
    device.ns.ipr.tc("del", "ingress", index=device.ifindex)


def add_netem(device: Device, *, delay_us: int = 0, loss_percent: float = 0.0, limit: int = 1000) -> None:
    """Make `device` delay or lose what it sends (root qdisc netem, tc-netem(8)); `limit` is in packets.

    Needs the module sch_netem. Raises NetlinkError.
    """
    device.ns.ipr.tc(
        "add", "netem", index=device.ifindex, handle="1:", delay=delay_us, loss=loss_percent, limit=limit
    )


def add_bpf_filter(
    device: Device,
    prog_fd: int,
    *,
    egress: bool = False,
    name: str = "kernrig",
    priority: int = 1,
    handle: int = 1,
    direct_action: bool = True,
    block: int | None = None,
) -> None:
    """Attach a program of type SCHED_CLS to clsact as a cls_bpf filter (the legacy way, beside tcx).

    The program's section, not the descriptor, is named by `name`. Needs a clsact (or, for ingress, an
    ingress) qdisc and the module cls_bpf. With `block` the filter goes into the shared block of that number,
    in the device's namespace, and `egress` means nothing. Raises NetlinkError.
    """
    device.ns.ipr.tc(
        "add-filter",
        "bpf",
        index=device.ifindex if block is None else TCM_IFINDEX_MAGIC_BLOCK,
        handle=handle,
        parent=_hook(egress) if block is None else block,
        prio=priority,
        protocol=ETH_P_ALL,
        fd=prog_fd,
        name=name,
        direct_action=direct_action,
        classid=1,
    )


def delete_bpf_filter(device: Device, *, egress: bool = False, priority: int = 1, handle: int = 1) -> None:
    """Detach the filter that `add_bpf_filter` attached. Raises NetlinkError: ENOENT when there is none."""
    device.ns.ipr.tc(
        "del-filter",
        "bpf",
        index=device.ifindex,
        handle=handle,
        parent=_hook(egress),
        prio=priority,
        protocol=ETH_P_ALL,
    )


def kinds(device: Device) -> list[str]:
    """The kinds of the qdiscs on the device, root first, for example ["noqueue", "clsact"]."""
    return [str(q.get("kind")) for q in device.ns.ipr.get_qdiscs(index=device.ifindex)]


def _hook(egress: bool) -> int:
    return CLSACT_MAJOR | (TC_H_MIN_EGRESS if egress else TC_H_MIN_INGRESS)
