# SPDX-License-Identifier: MIT
"""Requests with one or two mistakes: the kernel reports the one that it looks for first, and nothing is done."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.guest.bpf.syscall import BpfError, errno_name

Fields = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """What it changes in a request, the errno that it earns, and a regex for the verifier's log."""

    spec: str
    errno: int
    fields: Fields
    log: str

    def goes_with(self, other: Mistake) -> bool:
        """Whether both can be made at once."""
        return not self.fields.keys() & other.fields.keys()

    def differs(self, other: Mistake) -> bool:
        """Whether the kernel's answer tells the two apart."""
        return (self.errno, self.log) != (other.errno, other.log)

    def __str__(self) -> str:
        return f"{self.spec} {self.fields} ({errno_name(self.errno)})"


def mistake(spec: str, errno: int, *, log: str = "", **fields: Any) -> Mistake:
    """A row of a table."""
    return Mistake(spec, errno, fields, log)


def check(
    send: Callable[..., object], mistakes: Sequence[Mistake], state: Callable[[], object], *, pairs: int = 3
) -> None:
    """Send each mistake alone, and each with the next `pairs` ones that it goes with and that would be told apart.

    `mistakes` stand in the kernel's order of checks; `send` takes their fields. Raises AssertionError that names the
    requests whose errno or log was another one, and those after which `state` was not what it had been before.
    """
    before = state()
    wrong = []
    for at, first in enumerate(mistakes):
        later = [second for second in mistakes[at + 1 :] if first.goes_with(second) and first.differs(second)]
        for made in [(first,), *((first, second) for second in later[:pairs])]:
            fields = dict(itertools.chain.from_iterable(each.fields.items() for each in made))
            what = " and ".join(map(str, made))
            outcome, log = _outcome(send, fields)
            if outcome != first.errno or not re.search(first.log, log):
                wrong.append(f"{what}: {errno_name(outcome) if outcome else 'accepted'}, log {log!r}")
            if (after := state()) != before:
                wrong.append(f"{what} left behind {after}, not {before}")
                before = after
    assert not wrong, "\n".join(wrong)


def _outcome(send: Callable[..., object], fields: Fields) -> tuple[int, str]:
    try:
        made = send(**fields)
    except BpfError as error:
        return error.errno or 0, error.log
    if hasattr(made, "close"):
        made.close()
    return 0, ""
