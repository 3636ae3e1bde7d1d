# SPDX-License-Identifier: MIT
"""Property tests draw the same examples in every run; `--hypothesis-profile=searching` draws new ones."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("searching", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
