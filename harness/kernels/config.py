# SPDX-License-Identifier: MIT
"""A kernel's configuration as a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_ASSIGNMENT = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
_ESCAPED = re.compile(r"\\(.)")


class KernelConfig(Mapping[str, str]):
    """What a `.config` says: `"CONFIG_X"` to `"y"`, `"m"`, a number as written or a string without its
    quotes.

    An option that is not set is absent, so `"CONFIG_X" in config` asks whether it is built in or a module.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def parse(cls, text: str) -> KernelConfig:
        """Read the text of a `.config` (Documentation/kbuild/kconfig.rst); other lines are ignored."""
        return cls({name: _unquoted(value.rstrip()) for name, value in _ASSIGNMENT.findall(text)})

    @classmethod
    def read(cls, path: Path) -> KernelConfig:
        """Read a `.config` file. Raises OSError when it cannot be read."""
        return cls.parse(path.read_text(encoding="utf-8", errors="replace"))

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"KernelConfig({len(self)} options)"

    def builtin(self, name: str) -> bool:
        """Whether the option is `y`."""
        return self.get(name) == "y"

    def enabled(self, name: str) -> bool:
        """Whether the option is `y` or `m`."""
        return self.get(name) in ("y", "m")


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return _ESCAPED.sub(r"\1", value[1:-1])
    return value
