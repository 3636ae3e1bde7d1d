# SPDX-License-Identifier: MIT
"""Debian's `linux-source-SERIES`: fetched by apt, which verifies it, and unpacked once."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from debian.debian_support import Version

from harness.cache import Cache, Say, digest
from harness.errors import KernrigError
from harness.kernels import stored
from harness.kernels.apt import FRESH_S as LISTS_FRESH_S
from harness.kernels.apt import RETRY_S, PrivateApt
from harness.kernels.debian_index import Package, parse

KIND = "kernel-source"
# Part of every key: a change to what an entry holds makes new entries.
LAYOUT = "2"
FRESH_S = 24 * 3600.0
_UNPACK_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class SourcePackage:
    """An unpacked source package: the top of its tree, its Debian version, and `SHA256 NAME VERSION` of the
    package."""

    tree: Path
    version: str
    file: str


def fetch(series: str, *, cache: Cache, say: Say | None = None, refresh: bool = False) -> SourcePackage:
    """The newest `linux-source-SERIES` that Debian's suites have, unpacked in the cache.

    What that was within the last day is taken without asking apt, unless `refresh`. Raises KernrigError when
    there is none or it cannot be had.
    """
    name = f"linux-source-{series}"
    known = stored.pointer(cache, name)
    if known is not None and not refresh and known.age_s < FRESH_S:
        entry = cache.get(KIND, known.key)
        if entry is not None:
            return _load(entry)
    with cache.state("apt", say=say) as home:
        apt = PrivateApt(home, say=say)
        apt.ensure_lists(max_age_s=RETRY_S if refresh else LISTS_FRESH_S)
        names = sorted(set(apt.names("linux-source-")) - {"linux-source"})
        offered = parse(*apt.records([name])) if name in names else []
    if not offered:
        there = ", ".join(each.removeprefix("linux-source-") for each in names) or "none"
        raise KernrigError(
            f"Debian's suites have no source package {name}", hint=f"there are those of {there}"
        )
    newest = max(offered, key=lambda each: Version(each.version))
    key = digest(LAYOUT, newest.file)
    entry = cache.build(KIND, key, lambda folder: _make(newest, folder, cache, say), say=say)
    stored.point(cache, name, key)
    return _load(entry)


def _load(entry: Path) -> SourcePackage:
    about = json.loads((entry / "package.json").read_bytes())
    return SourcePackage(entry / "tree", about["version"], about["file"])


def _make(package: Package, entry: Path, cache: Cache, say: Say | None) -> None:
    if say is not None:
        say(f"downloading {package.name} {package.version} ({package.size / 1e6:.0f} MB)")
    downloads = entry / ".downloads"
    downloads.mkdir()
    with cache.state("apt", say=say) as home:
        # Compressed twice over, it unpacks to twelve times its size.
        (archive,) = PrivateApt(home, say=say).download(
            [(package.name, package.version)], downloads, size=3 * package.size
        )
    _run(["dpkg-deb", "--extract", str(archive), str(downloads)], package.name)
    tarball = next(downloads.glob("usr/src/linux-source-*.tar.*"), None)
    if tarball is None:
        raise KernrigError(
            f"{package.name} {package.version} holds no source archive",
            hint="Debian may have changed its packaging; unpack it by hand and name the tree (tree:PATH)",
        )
    if say is not None:
        say(f"unpacking {tarball.name}")
    tree = entry / "tree"
    tree.mkdir()
    _run(
        ["tar", "--extract", "--strip-components=1", "--no-same-owner", "-C", str(tree), "-f", str(tarball)],
        tarball.name,
    )
    shutil.rmtree(downloads)
    (entry / "package.json").write_text(json.dumps({"version": package.version, "file": package.file}))


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_UNPACK_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise KernrigError(f"unpacking {what} failed: {done.stderr.strip()[-500:]}", hint="is the disk full?")
