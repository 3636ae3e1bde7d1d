# SPDX-License-Identifier: MIT
"""What most scenarios do first, done once before the machine is frozen, so that no clone pays for it again.

What needs nothing of this package (kernel modules, pyroute2) is done earlier, by the image's init and boot.py.
"""

from __future__ import annotations

from harness.errors import KernrigError
from harness.guest.bpf import btf
from harness.guest.bpf.syscall import BpfError
from harness.guest.net import veth_pair


def warm_up() -> None:
    """Parse the kernel's BTF and make a veth pair once; where either can't be had, the scenarios that need it skip."""
    try:
        btf.vmlinux().struct("task_struct")
    except (BpfError, LookupError):
        pass
    try:
        with veth_pair():
            pass
    except (OSError, KernrigError):
        pass
