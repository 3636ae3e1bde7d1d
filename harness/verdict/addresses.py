# SPDX-License-Identifier: MIT
"""`function+0x12/0x40` in a kernel's log becomes file and line, where vmlinux with its symbols was kept."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_ADDRESS = re.compile(
    r"(?P<name>[A-Za-z_][\w.]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)(?P<module> \[\w[^\]]*\])?"
)
# The instruction itself, not where a call returns to.
_EXACT = re.compile(r"\b(?:RIP|EIP|pc)\b|WARNING:|BUG:")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Decoder:
    """Knows one vmlinux. Paths are shown from below the folder that its sources lay in."""

    vmlinux: Path

    def decode(self, text: str) -> str:
        """The text with ` (file:line)` behind each address in the kernel itself, the innermost inlined function first.

        Addresses in modules, or of functions that vmlinux does not have in that size, stay as they are; so does all
        when binutils are not there.
        """
        places: dict[tuple[str, bool], int] = {}
        for line in text.splitlines():
            exact = _EXACT.search(line) is not None
            for found in _ADDRESS.finditer(line):
                address = self._address(found)
                if address is not None:
                    # A call returns behind itself, perhaps to another line, or another function.
                    places[found[0], exact] = address if exact else address - 1
        lines = self._lines(sorted(set(places.values()))) if places else {}

        def told(line: str) -> str:
            exact = _EXACT.search(line) is not None

            def one(found: re.Match[str]) -> str:
                where = lines.get(places.get((found[0], exact), -1), "")
                return f"{found[0]} ({where})" if where else found[0]

            return _ADDRESS.sub(one, line)

        return "\n".join(told(line) for line in text.split("\n"))

    def _address(self, found: re.Match[str]) -> int | None:
        if found["module"]:
            return None
        size = int(found["size"], 16)
        starts = [start for start, length in self._symbols.get(found["name"], ()) if _fits(length, size)]
        return starts[0] + int(found["offset"], 16) if len(starts) == 1 else None

    @cached_property
    def _symbols(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Start and size of each function, by name; several functions can share a name."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for line in _run(["nm", "--print-size", "--defined-only", str(self.vmlinux)]).splitlines():
            words = line.split()
            if len(words) == 4 and words[2] in "tTwW":
                found[words[3]].append((int(words[0], 16), int(words[1], 16)))
        return found

    def _lines(self, addresses: Sequence[int]) -> dict[int, str]:
        """File and line of each address: `mprog.c:12, inlined at tcx.h:34`."""
        asked = "\n".join(f"{address:x}" for address in addresses)
        output = _run(["addr2line", "-e", str(self.vmlinux), "-a", "-i"], asked)
        found: dict[int, list[str]] = {}
        current: list[str] = []
        for line in output.splitlines():
            if line.startswith("0x"):
                current = found.setdefault(int(line, 16), [])
            elif not line.startswith("??"):
                current.append(_short(line))
        return {address: ", inlined at ".join(places) for address, places in found.items() if places}


def _fits(symbol: int, printed: int) -> bool:
    """Whether a symbol has the size that the kernel printed: kallsyms takes it up to the next symbol, padding
    included."""
    return symbol <= printed <= symbol + 64


def _short(place: str) -> str:
    path = place.partition(" (discriminator")[0]
    for mark in ("/source/", "/tree/", "/build/./"):
        path = path.rpartition(mark)[2]
    return re.sub(r"^(?:\./|(?:\.\./)+)+", "", path)


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            list(command),
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
