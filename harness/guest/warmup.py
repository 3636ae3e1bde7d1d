# SPDX-License-Identifier: MIT
"""What most scenarios do first, done once before the machine is frozen, so that no clone pays for it again."""

from __future__ import annotations

import pyroute2

from harness.errors import KernrigError
from harness.guest import modules
from harness.guest.bpf import btf
from harness.guest.bpf.syscall import BpfError
from harness.guest.net import veth_pair

# In-tree modules that scenarios use without naming them; a kernel may have them built in, or not at all.
MODULES = ("veth", "sch_ingress", "cls_bpf", "sch_netem", "act_gact", "tcp_diag", "inet_diag")


def warm_up() -> None:
    """Load modules, parse the kernel's BTF, open rtnetlink and make a veth pair once."""
    for name in MODULES:
        try:
            modules.modprobe(name)
        except (OSError, KernrigError):
            pass
    try:
        btf.vmlinux().struct("task_struct")
    except (BpfError, LookupError):
        pass  # a kernel without BTF: the scenarios that need it skip
    with pyroute2.IPRoute() as rtnl:
        rtnl.get_links()
    try:
        with veth_pair():
            pass
    except (OSError, KernrigError):
        pass  # no veth: as above
