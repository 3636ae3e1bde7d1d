# SPDX-License-Identifier: MIT
"""The guest's Python: packages pinned by hash, and byte code made on the host."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.image import tools
from harness.image.recipe import Recipe

INTERPRETER = "usr/bin/python3.13"
LIBRARY = "usr/lib/python3.13"
# Debian's interpreter has it in sys.path.
SITE = "usr/lib/python3/dist-packages"


def install(root: Path, recipe: Recipe) -> dict[str, str]:
    """Install the recipe's requirements below `root`, prune them, and return their versions by name.

    Raises KernrigError when pip fails, a hash that does not match included.
    """
    site = root / SITE
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    pip += ["--target", str(site), "--requirement", str(recipe.requirements), "--require-hashes", "--no-deps"]
    pip += ["--only-binary=:all:", "--no-compile", "--python-version=3.13", "--implementation=py"]
    tools.run(
        pip,
        step=f"installing {recipe.requirements} into the image",
        hint="is the package index reachable? PIP_INDEX_URL or pip's configuration can name another one",
        # Where packages come from may be configured in any way that pip knows; where they go may not.
        env={"PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"},
    )
    versions = {}
    for metadata in site.glob("*.dist-info"):
        name, _, version = metadata.name.removesuffix(".dist-info").partition("-")
        versions[name] = version
        # What pip writes beside the wheel's own files speaks of the builder's machine.
        for record in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            (metadata / record).unlink(missing_ok=True)
    _prune(root, site, recipe)
    return versions


def _prune(root: Path, site: Path, recipe: Recipe) -> None:
    for path in sorted(site.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif not recipe.keeps(path.relative_to(root).as_posix()):
            path.unlink()


def compile_all(root: Path, places: Iterable[str]) -> None:
    """Byte-compile the directories `places` (paths in `root`) with the root's interpreter.

    In the guest this would cost many seconds under emulation. The byte code is never checked against its
    source (PEP 552, unchecked), because the archive carries no times. Each directory gets one process that
    works from its start to its end with fixed hashes: what a process has compiled before shows in the byte
    code (marshal's references). Raises KernrigError when the interpreter cannot run or a source does not
    compile.
    """

    def compile_one(place: str) -> None:
        command = [*tools.inside(root, INTERPRETER), "-S", "-m", "compileall", "-q"]
        command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/", str(root / place)]
        tools.run(
            command,
            step=f"compiling the guest's Python code in {place}",
            hint=tools.NOEXEC_HINT,
            env={"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(compile_one, places):
            pass
