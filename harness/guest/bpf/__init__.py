# SPDX-License-Identifier: MIT
"""bpf(2) for scenarios: every command with any bytes, objects that own their descriptors, BTF, an assembler.

`uapi` has the constants; `syscall` the call and its error; `prog`, `map`, `link`, `btf`, `object` the
objects; `asm` the assembler; `tcx`, `netkit`, `cgroup`, `struct_ops`, `tracing` what is attached where;
`probe` what this kernel can do.
"""

from __future__ import annotations

from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import ENOTSUPP, BpfError, bpf, refused

__all__ = ["ENOTSUPP", "BpfError", "Link", "Map", "Prog", "bpf", "refused"]
