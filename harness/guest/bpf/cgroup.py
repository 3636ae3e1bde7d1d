# SPDX-License-Identifier: MIT
"""Programs at a cgroup: INET_EGRESS unless another attach type is given, by path or descriptor."""

from __future__ import annotations

from harness.guest.bpf import uapi
from harness.guest.bpf.mprog import Family, QueryResult, cgroup_directory

__all__ = ["QueryResult", "attach", "detach", "link", "query"]

_family = Family("cgroup", uapi.BPF_CGROUP_INET_EGRESS, cgroup_directory, ("prog_ids",))
attach = _family.attach
detach = _family.detach
query = _family.query
link = _family.link
