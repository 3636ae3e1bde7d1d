# SPDX-License-Identifier: MIT
"""What only a kernel of the flavour debug notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("deed", ["freed", "sleep", "order", "rcu", "shift", "timer"])
def test_noticed(unloaded: Callable[[str], None], deed: str) -> None:
    unloaded(deed)


def test_lost(unloaded: Callable[[str], None]) -> None:
    """The stacks are told when the module is gone, whose names are not."""
    unloaded("lost")


def test_nothing_to_notice() -> None:
    pass
