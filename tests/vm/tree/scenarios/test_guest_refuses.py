# SPDX-License-Identifier: MIT
from pathlib import Path

if Path("/usr/lib/kernrig/boot.py").exists():
    raise RuntimeError("the guest can't import this file")


def test_refused() -> None:
    pass
