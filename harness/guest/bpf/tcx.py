# SPDX-License-Identifier: MIT
"""tcx: programs at a device's ingress (the default) and egress, by ifindex, name or device object."""

from __future__ import annotations

from harness.guest.bpf import uapi
from harness.guest.bpf.mprog import ARRAYS, Family, QueryResult, device

__all__ = ["QueryResult", "attach", "detach", "link", "query"]

_family = Family("tcx", uapi.BPF_TCX_INGRESS, device, ARRAYS)
attach = _family.attach
detach = _family.detach
query = _family.query
link = _family.link
