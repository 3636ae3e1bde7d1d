# SPDX-License-Identifier: MIT
"""Kernels of flavours that no other test builds are built, booted, and run scenarios; test modules fit them."""

from __future__ import annotations

import pytest

from tests.slow.linux_history import SERIES
from tests.slow.search import ROOT, kernrig
from tests.vm.project import Project

pytestmark = pytest.mark.slow

SCENARIOS = (
    "scenarios/mprog/test_order.py",
    "scenarios/module/test_our_modules.py",
    "scenarios/kptr/test_chains.py",
)


@pytest.mark.parametrize("flavour", ["race", "clang", "coverage"])
def test_scenarios_pass_on_it(flavour: str) -> None:
    kernel = f"deb-source:{SERIES}+{flavour}"
    kernrig("kernel", "build", kernel)
    project = Project(ROOT)
    ran = project.finish(
        project.start("-n", "2", "-p", "no:cacheprovider", *SCENARIOS, f"--kr-kernel={kernel}")
    )
    assert ran.status == 0, ran.everything
    # Without them scenarios are skipped.
    assert "no test modules" not in ran.everything
