# SPDX-License-Identifier: MIT
"""Modules whose lives are followed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.guest.kr_modules import KrTraced, missing


@pytest.fixture
def kr_traced() -> Iterator[KrTraced]:
    """Our module with things to attach programs to, loaded."""
    if reason := missing("kr_traced"):
        pytest.skip(reason)
    with KrTraced() as module:
        yield module
