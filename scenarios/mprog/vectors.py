# SPDX-License-Identifier: MIT
"""The table of vectors in BEHAVIOURS.md, for the model (tests/unit) and the kernel alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.guest.bpf import uapi


@dataclass(frozen=True)
class Vector:
    """One request to an entry `A B* C`.

    `request` is "attach" or "detach"; `prog`, `anchor` and `old` are a program's letter, "link b" or "link x", None
    for nothing; `result` is the list afterwards, as in `A B* C D`, or an errno's name. `row` is all that in a line of
    `scenarios.mprog.requests`.
    """

    id: str
    request: str
    prog: str | None
    flags: int
    anchor: str | None
    old: str | None
    result: str
    row: str


def rows(kind: str) -> str:
    """The vectors that "attach" a newcomer, "replace" or "detach", as `scenarios.mprog.requests` reads tables."""

    def kind_of(vector: Vector) -> str:
        replaces = vector.request == "attach" and vector.flags & uapi.BPF_F_REPLACE
        return "replace" if replaces else vector.request

    return "\n".join(each.row for each in VECTORS if kind_of(each) == kind)


def _vector(line: str) -> Vector:
    behaviour, *cells = (cell.strip() for cell in line.strip("|").split("|"))
    request, names, anchor, old, result = cells
    row = " | ".join(cells).replace("(none)", "-").replace("link ", "")
    verb, _, prog = request.partition(" ")
    flags = sum(getattr(uapi, f"BPF_F_{name}") for name in names.split() if name != "0")
    named = [None if name in ("-", "(none)") else name for name in (prog, anchor, old)]
    return Vector(behaviour, verb, named[0], flags, named[1], named[2], result, row)


VECTORS = tuple(
    _vector(line)
    for line in Path(__file__).with_name("BEHAVIOURS.md").read_text().splitlines()
    if line.startswith("| MPROG-VEC-")
)
