# SPDX-License-Identifier: MIT
"""A kernel given by its path: a bzImage, with its modules named or found beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import kernels
from harness.cache import Cache
from tests.vm.project import Project

SCENARIO = """\
import os
from pathlib import Path

from harness.guest import modules


def test_kernel_and_its_modules_are_the_ones_that_were_given() -> None:
    assert os.uname().release == "RELEASE"
    modules.modprobe("dummy")
    assert modules.state("dummy") == "live"


def test_own_modules_are_skipped_for_a_reason() -> None:
    assert "nothing to build modules with" in os.environ["KERNRIG_MODULES_MISSING"]
    assert not list(Path(os.environ["KERNRIG_MODULES"]).glob("*.ko"))
"""


@pytest.mark.parametrize("beside", [False, True], ids=["named", "beside"])
def test_bzimage_by_path_boots_with_its_modules(empty_project: Project, tmp_path: Path, beside: bool) -> None:
    kernel = kernels.resolve("debian", cache=Cache.default())
    assert kernel.modules is not None
    folder = tmp_path / "boot"
    folder.mkdir()
    shutil.copy(kernel.vmlinuz, folder / "bzImage")
    (folder / f"config-{kernel.release}").write_text(
        "".join(f"{name}={value}\n" for name, value in kernel.config.items())
    )
    place = folder / "lib/modules" / kernel.release if beside else tmp_path / "elsewhere" / kernel.release
    shutil.copytree(kernel.modules, place, symlinks=True)
    empty_project.write({"scenarios/test_own.py": SCENARIO.replace("RELEASE", kernel.release)})
    named = () if beside else (f"--kr-modules={place}",)
    ran = empty_project.pytest(f"--kr-kernel={folder / 'bzImage'}", *named)
    assert ran.status == 0, ran.everything
    assert set(ran.outcomes.values()) == {"passed"}
