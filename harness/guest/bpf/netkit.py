# SPDX-License-Identifier: MIT
"""netkit: programs at the primary (the default) and peer side of a netkit pair, both through the primary."""

from __future__ import annotations

from harness.guest.bpf import uapi
from harness.guest.bpf.mprog import ARRAYS, Family, QueryResult, device

__all__ = ["QueryResult", "attach", "detach", "link", "query"]

_family = Family(
    "netkit",
    uapi.BPF_NETKIT_PRIMARY,
    device,
    ARRAYS,
)
attach = _family.attach
detach = _family.detach
query = _family.query
link = _family.link
