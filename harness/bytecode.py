# SPDX-License-Identifier: MIT
"""Compiled Python of earlier loads, so that a guest compiles only what was edited: that takes seconds under TCG.

A load sends back what it compiled (assertion-rewritten tests included). It is kept by the source's place and content,
and goes along with the next tree that has the same source. Python itself refuses bytecode of another version.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from harness.cache import Cache, digest

_MOST_FILES = 4000


class Bytecode:
    """The store in a cache. `ROOT/state/bytecode/KEY.FILENAME` is one compiled file; KEY stands for its source."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._folder = cache.root / "state" / "bytecode"

    def of(self, sources: Mapping[str, bytes]) -> dict[str, bytes]:
        """The compiled files there are for these sources, by their place in the tree."""
        known: dict[str, list[str]] = defaultdict(list)
        with suppress(OSError):
            for file in self._folder.iterdir():
                key, _, name = file.name.partition(".")
                known[key].append(name)
        found = {}
        for place, source in sources.items():
            for name in known.get(_key(place, source), ()) if place.endswith(".py") else ():
                with suppress(OSError):  # pruned meanwhile
                    folder = PurePosixPath(place).parent / "__pycache__"
                    found[str(folder / name)] = (self._folder / f"{_key(place, source)}.{name}").read_bytes()
        return found

    def keep(self, archive: bytes, sources: Mapping[str, bytes]) -> None:
        """Keep what a guest compiled: a tar archive of `*/__pycache__/*.pyc`. The guest is not trusted with anything
        but its own successors: what it sends is only ever sent into guests."""
        with self._cache.state("bytecode") as folder:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                for entry in files:
                    path = PurePosixPath(entry.name)
                    place = str(path.parent.parent / (path.name.partition(".")[0] + ".py"))
                    data = files.extractfile(entry)
                    if (
                        place not in sources
                        or data is None
                        or path.suffix != ".pyc"
                        or not path.name.isascii()
                    ):
                        continue
                    new = folder / f".new-{os.getpid()}"
                    new.write_bytes(data.read())
                    new.rename(folder / f"{_key(place, sources[place])}.{path.name}")
            _prune(folder)


def _key(place: str, source: bytes) -> str:
    return digest(place, source)


def _prune(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    for file in files[: max(0, len(files) - _MOST_FILES)]:
        file.unlink()
