# SPDX-License-Identifier: MIT
"""For all tests: how signals arrive, and what property tests draw.

Property tests draw the same examples in every run; `--hypothesis-profile=searching` draws new ones.
"""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# A shell starts its background jobs with SIGINT ignored, `nohup` with SIGHUP, and programs inherit that. The tests
# send both to programs that they start, and these have to see them as they would in a terminal.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)

settings.register_profile("searching", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "slow: takes minutes, as it builds a kernel; runs with -m slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless markers were asked for."""
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="slow: run it with -m slow (make test-slow)"))
