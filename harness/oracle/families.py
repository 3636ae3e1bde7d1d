# SPDX-License-Identifier: MIT
"""Where tcx, netkit and cgroups differ, and kernels from each other: all of it as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from harness.guest.bpf import uapi
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_ALLOW_OVERRIDE,
    BPF_F_BEFORE,
    BPF_F_ID,
    BPF_F_LINK,
    BPF_F_PREORDER,
    BPF_F_REPLACE,
)

MPROG_FLAGS = BPF_F_REPLACE | BPF_F_BEFORE | BPF_F_AFTER | BPF_F_ID | BPF_F_LINK
PLAIN_CGROUP_FLAGS = BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI | BPF_F_REPLACE
ALL_BITS = 0xFFFFFFFF

SCHED_CLS = "sched_cls"
CGROUP_SKB = "cgroup_skb"


@dataclass(frozen=True)
class Features:
    """What a kernel has, by the names of harness.guest.bpf.probe. The defaults are those of 6.12.117 and of 7.2."""

    netkit: bool = True
    cgroup_mprog: bool = True
    cgroup_preorder: bool = True


@dataclass(frozen=True)
class Family:
    """One kind of hook.

    `attach_flags`, `detach_flags`, `link_flags`: the bits that are allowed. `anchors`: whether BEFORE, AFTER, anchors
    and revisions are known at all. `keeps_revision`: an emptied list goes on counting; `hides_revision`: and a query
    does not show it. `detach_needs_entry`: detaching from nothing fails before the engine is asked.
    """

    name: str
    prog_type: str
    attach_flags: int = MPROG_FLAGS  # MPROG-ATTACH-003
    detach_flags: int = MPROG_FLAGS  # MPROG-DETACH-002
    link_flags: int = ALL_BITS  # MPROG-LINK-006, MPROG-QUIRK-004: no mask
    anchors: bool = True
    keeps_revision: bool = False
    hides_revision: bool = False


TCX = Family("tcx", SCHED_CLS)  # MPROG-REV-006
NETKIT = Family(
    "netkit", SCHED_CLS, keeps_revision=True, hides_revision=True
)  # MPROG-NETKIT-004, MPROG-QUIRK-002


def cgroup_family(features: Features) -> Family:
    """The two eras of cgroup lists. MPROG-CGROUP-001, -030, -036, MPROG-PROBE-005."""
    preorder = BPF_F_PREORDER if features.cgroup_preorder else 0
    if not features.cgroup_mprog:
        return Family("cgroup", CGROUP_SKB, PLAIN_CGROUP_FLAGS | preorder, 0, 0, anchors=False)
    links = BPF_F_ID | BPF_F_BEFORE | BPF_F_AFTER | BPF_F_LINK | preorder
    return Family(
        "cgroup", CGROUP_SKB, PLAIN_CGROUP_FLAGS | MPROG_FLAGS | preorder, 0, links, keeps_revision=True
    )


@dataclass(frozen=True)
class Hook:
    """A place to attach to: a device or cgroup, and an attach type."""

    name: str
    target: str
    attach_type: str
    family: str

    @property
    def attach_number(self) -> int:
        return int(getattr(uapi, self.attach_type))


def _hooks(*rows: tuple[str, str, str, str]) -> Mapping[str, Hook]:
    return MappingProxyType({row[0]: Hook(*row) for row in rows})


# The stage on which sequences play: a veth pair d0-d1, a netkit pair nk-nk_peer, all in one namespace; a cgroup and
# one below it; `gone` is no device.
HOOKS = _hooks(
    ("in", "d0", "BPF_TCX_INGRESS", "tcx"),
    ("out", "d0", "BPF_TCX_EGRESS", "tcx"),
    ("other", "d1", "BPF_TCX_INGRESS", "tcx"),
    ("nowhere", "gone", "BPF_TCX_INGRESS", "tcx"),
    ("primary", "nk", "BPF_NETKIT_PRIMARY", "netkit"),
    ("peer", "nk", "BPF_NETKIT_PEER", "netkit"),
    ("no_netkit", "d0", "BPF_NETKIT_PRIMARY", "netkit"),
    ("not_primary", "nk_peer", "BPF_NETKIT_PRIMARY", "netkit"),
    ("group", "cg", "BPF_CGROUP_INET_EGRESS", "cgroup"),
    ("below", "cg/sub", "BPF_CGROUP_INET_EGRESS", "cgroup"),
)
# Removing one end removes both: MPROG-LIFE-003, MPROG-NETKIT-010.
PAIRS = MappingProxyType({"d0": "d1", "d1": "d0", "nk": "nk_peer", "nk_peer": "nk"})
PRIMARY = "nk"
CGROUP_PARENT = MappingProxyType({"below": "group"})
