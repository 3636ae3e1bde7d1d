# SPDX-License-Identifier: MIT
"""`tree:PATH[@REV][+FLAVOUR...]` and `deb-source:SERIES[+FLAVOUR...]`, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError

TREE = "tree:"
DEBIAN = "deb-source:"
_FORM = re.compile(
    r"(?P<place>.+?)(?:@(?P<rev>[^@+]+))?(?P<flavours>(?:\+[a-z][a-z0-9_-]*)*)(?:\+config=(?P<config>.+))?"
)
_HINT = "kernels from source are named tree:PATH[@REV][+FLAVOUR...] or deb-source:SERIES[+FLAVOUR...], as in \
tree:~/linux@v6.12+debug or deb-source:6.12"


@dataclass(frozen=True)
class SourceName:
    """What a name asks for: a kernel tree on this host (`path`, at `rev`, or as it lies there when that is
    None), or the newest source package of Debian's `series`; built with these flavours, sorted; or with exactly
    the configuration in the file `config`.
    """

    path: Path | None
    series: str | None
    rev: str | None
    flavours: tuple[str, ...]
    config: Path | None = None

    def __str__(self) -> str:
        at = f"@{self.rev}" if self.rev else ""
        place = f"{DEBIAN}{self.series}" if self.series else f"{TREE}{self.path}{at}"
        config = f"+config={self.config}" if self.config else ""
        return place + "".join(f"+{each}" for each in self.flavours) + config


def is_name(name: str) -> bool:
    """Whether `name` is one of a kernel that has to be built."""
    return name.startswith((TREE, DEBIAN))


def parse(name: str) -> SourceName:
    """Take a name apart. A path that exists as it is written wins over one that ends at an `@` or `+`.

    Raises KernrigError for a name of another form.
    """
    prefix, _, rest = name.partition(":")
    if not is_name(name) or not rest:
        raise KernrigError(f"{name!r} does not name a kernel's source", hint=_HINT)
    if f"{prefix}:" == TREE and Path(rest).expanduser().is_dir():
        return SourceName(Path(rest).expanduser().absolute(), None, None, ())
    found = _FORM.fullmatch(rest)
    if found is None:
        raise KernrigError(f"{name!r} does not name a kernel's source", hint=_HINT)
    flavours = tuple(sorted({each for each in found["flavours"].split("+") if each}))
    config = Path(found["config"]).expanduser().absolute() if found["config"] else None
    if config is not None and not config.is_file():
        raise KernrigError(f"{name!r}: there is no configuration {config}", hint=_HINT)
    if f"{prefix}:" == TREE:
        return SourceName(Path(found["place"]).expanduser().absolute(), None, found["rev"], flavours, config)
    if found["rev"] is not None or not re.fullmatch(r"\d+\.\d+", found["place"]):
        raise KernrigError(
            f"{name!r}: a source package of Debian is named by its series alone, as in deb-source:6.12",
            hint=_HINT,
        )
    return SourceName(None, found["place"], None, flavours, config)
