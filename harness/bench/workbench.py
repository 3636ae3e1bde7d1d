# SPDX-License-Identifier: MIT
"""Where measurements are taken: caches whose templates are new, and two projects to run pytest on."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.bench.caches import private_cache
from harness.bench.sources import Sources
from harness.cache import Cache
from harness.errors import KernrigError
from harness.rig import Rig
from harness.settings import Settings

Say = Callable[[str], None]
REPOSITORY = Path(__file__).resolve().parents[2]
TRIVIAL_FILE = "scenarios/test_trivial.py"
TRIVIAL_NODE = f"{TRIVIAL_FILE}::test_000"
_TRIVIAL_PROJECT = """\
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib"]
"""


@dataclass
class Workbench:
    """What measurements need. `rig` has all it needs in the cache `warm`; templates are made in the cache `anew`.

    `trivial` is the root of a project with `scenarios` scenarios that assert nothing but True, `real` that of a copy
    of this repository's scenarios, `edited` that of another, which is edited (None when there are none). `sources`
    makes kernels; `folder` is for what else a measurement makes, with what it takes from the user's cache `base`.
    """

    rig: Rig
    kernel: str
    warm: Cache
    anew: Cache
    trivial: Path
    scenarios: int
    real: Path | None
    edited: Path | None
    folder: Path
    base: Cache
    sources: Sources
    edits: int = 0

    def project(self, *, edited: bool = False) -> Path:
        """The root of `real`, or of `edited`. Raises KernrigError when there is none."""
        found = self.edited if edited else self.real
        if found is None:
            raise KernrigError("This repository has no scenarios to start.")
        return found


@contextmanager
def workbench(settings: Settings, *, base: Cache, scenarios: int, say: Say) -> Iterator[Workbench]:
    """A workbench in a hidden directory of the cache `base`, whose kernels and images it uses.

    The directory is removed at the end, and at the next start if this process was killed. Raises KernrigError when
    another benchmark runs, and whatever making kernel, image and templates raises.
    """
    kernel = settings.kernels[0]
    with _claimed(base.root / ".bench") as folder:
        trivial = make_trivial_project(folder / "trivial", scenarios)
        real, edited = (copy_scenarios(REPOSITORY, folder / name) for name in ("real", "edited"))
        for project in (trivial, real):
            if project is not None:
                # Whatever is not yet there is made in the user's own cache, where it is of use afterwards.
                plain = Rig(settings, project, cache=base, say=say)
                plain.blueprint(kernel, settings.shape)
                plain.tree(kernel)
        warm, anew = (private_cache(base, folder / name) for name in ("warm", "anew"))
        rig = Rig(settings, trivial, cache=warm, say=say)
        sources = Sources(base, folder / "sources", say)
        try:
            rig.prepare()
            yield Workbench(rig, kernel, warm, anew, trivial, scenarios, real, edited, folder, base, sources)
        finally:
            rig.close()
            if sources.folder.exists():  # some hundred thousand files
                say("removing the kernels that were built, and their source")


@contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """The directory, empty, for this process alone; removed at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(folder.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KernrigError(
                f"Another benchmark is running with the cache {folder.parent}.",
                hint="wait for its end: two at once would measure each other",
            ) from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def make_trivial_project(root: Path, scenarios: int) -> Path:
    """A project with so many scenarios that pass at once; returns its root."""
    file = root / TRIVIAL_FILE
    file.parent.mkdir(parents=True)
    (root / "pyproject.toml").write_text(_TRIVIAL_PROJECT)
    tests = (f"def test_{number:03}() -> None:\n    assert True\n" for number in range(scenarios))
    file.write_text("\n\n".join(tests))
    return root


def copy_scenarios(repository: Path, root: Path) -> Path | None:
    """A copy of the repository's scenarios, with its pytest settings, to be edited; None when there are no tests."""
    if not any((repository / "scenarios").rglob("test_*.py")):
        return None
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(repository / "scenarios", root / "scenarios", ignore=ignore)
    shutil.copy(repository / "pyproject.toml", root)
    return root


def edit(root: Path, number: int) -> Path:
    """Change one scenario file of the copy as an editor would, each time differently; returns the file."""
    file = min((root / "scenarios").rglob("test_*.py"))
    file.write_text(file.read_text() + f"\n# edit {number}\n")
    return file
