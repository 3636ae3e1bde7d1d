# SPDX-License-Identifier: MIT
"""Projects to run pytest in, and results that several tests look at."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from harness.cache import Cache
from harness.rig import Rig
from harness.settings import Settings
from harness.vm.shape import Shape
from tests.vm.project import Project, Ran, copy_tree

# These are scenarios for the runs inside the tests, not tests of this run.
collect_ignore = ["tree"]

Once = Callable[[str, Callable[[], Ran]], Ran]


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """This run's directory, the same for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def once(common: Path) -> Once:
    """Calls a function for a name once, whatever number of xdist workers asks for its result."""

    def result(name: str, make: Callable[[], Ran]) -> Ran:
        file = common / f"once-{name}"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_bytes(pickle.dumps(make()))
        ran: Ran = pickle.loads(file.read_bytes())
        return ran

    return result


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The shared scenarios, in a directory of this test's own."""
    return copy_tree(tmp_path / "project")


@pytest.fixture
def empty_project(tmp_path: Path) -> Project:
    """A directory without scenarios."""
    project = Project(tmp_path / "empty")
    project.write({})
    return project


@pytest.fixture(scope="session")
def _kernel_and_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a fresh machine the user's cache is empty when the first test wants its links."""
    rig = Rig(Settings(), tmp_path_factory.mktemp("rig"), say=print)
    rig.blueprint("debian", Shape())


@pytest.fixture
def private_cache(tmp_path: Path, _kernel_and_image: None) -> Iterator[Path]:
    """A cache in which everything is there but templates. What is in it is the user's own, by links."""
    root, shared = tmp_path / "cache", Cache.default().root
    for entry in Cache(shared).entries():
        if entry.kind not in ("state", "boot-template", "load-template"):
            link = root / entry.kind / entry.key
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(entry.path)
    for state in ("kernel-names", "accelerator"):
        if (shared / "state" / state).is_dir():
            shutil.copytree(shared / "state" / state, root / "state" / state)
    yield root
    shutil.rmtree(root)  # half a gigabyte for each template


@pytest.fixture(scope="session", autouse=True)
def _no_outer_run() -> None:
    """The runs inside the tests name their own results."""
    os.environ.pop("KERNRIG_RUN", None)
