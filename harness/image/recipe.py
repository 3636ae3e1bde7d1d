# SPDX-License-Identifier: MIT
"""The recipe in images/: which packages, which Python packages, what is dropped, which kernel modules, which
files on top."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError

IMAGES = Path(__file__).resolve().parents[2] / "images"

# A pattern or name, then (after blanks) the reason why it is listed.
_LINE = re.compile(r"(?P<item>\S+)(?:\s+(?P<reason>\S.*))?")


@dataclass(frozen=True)
class PruneRule:
    """A glob over paths without leading slash; `keep` turns it into an exception from earlier rules."""

    pattern: re.Pattern[str]
    keep: bool


@dataclass(frozen=True)
class Recipe:
    """What images/ says: names of packages and modules, rules in file order, and paths."""

    packages: tuple[str, ...]
    prune: tuple[PruneRule, ...]
    modules: tuple[str, ...]
    requirements: Path
    overlay: Path
    native: Path
    packages_list: Path
    prune_list: Path

    def keeps(self, path: str) -> bool:
        """Whether the root keeps `path` (no leading slash).

        The last matching rule decides; a rule covers all that lies below what it matches.
        """
        keep = True
        prefixes = [path]
        while "/" in path:
            path = path.rpartition("/")[0]
            prefixes.append(path)
        for rule in self.prune:
            if any(rule.pattern.fullmatch(prefix) for prefix in prefixes):
                keep = rule.keep
        return keep


def read(images: Path = IMAGES) -> Recipe:
    """The recipe in the directory `images`; KernrigError when a file is missing or a line has no reason."""
    return Recipe(
        packages=tuple(_items(images / "packages.list")),
        prune=tuple(_rule(item) for item in _items(images / "prune.list")),
        modules=tuple(_items(images / "modules.list")),
        requirements=_existing(images / "requirements.txt"),
        overlay=_existing(images / "overlay"),
        native=_existing(images / "native"),
        packages_list=images / "packages.list",
        prune_list=images / "prune.list",
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise KernrigError(
            f"the image's recipe lacks {path}", hint="is this a complete checkout of the kernrig repository?"
        )
    return path


def _items(path: Path) -> Iterator[str]:
    for number, line in enumerate(_existing(path).read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["reason"] is None:
            raise KernrigError(
                f"{path}:{number}: {line.strip()!r} gives no reason", hint="write: NAME  WHY IT IS THERE"
            )
        yield match["item"]


def _rule(item: str) -> PruneRule:
    keep = item.startswith("!")
    return PruneRule(re.compile(fnmatch.translate(item.removeprefix("!"))), keep)
