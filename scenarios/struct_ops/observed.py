# SPDX-License-Identifier: MIT
"""What the kernel shows of registered tables outside of their maps."""

from __future__ import annotations

from harness.guest import tcp
from harness.guest.bpf import symbols
from harness.guest.netns import NetNamespace


def available() -> list[str]:
    """The congestion controls that the current namespace may choose from."""
    with NetNamespace.current() as here:
        return tcp.available(here)


def trampolines() -> list[str]:
    """The members of tcp_congestion_ops whose trampolines have a symbol, one entry for each trampoline, sorted."""
    prefix = "bpf__tcp_congestion_ops_"
    return sorted(each.name.removeprefix(prefix) for each in symbols.matching(prefix + r"\w+"))
