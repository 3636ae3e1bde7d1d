# SPDX-License-Identifier: MIT
"""The struct_ops types that a kernel has besides TCP's, as its BTF shows them."""

from __future__ import annotations

from harness.guest.bpf import struct_ops
from harness.guest.bpf.probe import has


def test_the_types_of_this_kernel_are_found_in_btf() -> None:
    """STOPS-PROBE-001, STOPS-REG-014: run with -s to see them."""
    types = struct_ops.types()
    print("struct_ops types of this kernel:", ", ".join(types))
    assert "tcp_congestion_ops" in types
    assert all(has(f"struct_ops:{name}") for name in types)
    assert not has("struct_ops:map")  # a structure bpf_struct_ops_map there is, but no type
