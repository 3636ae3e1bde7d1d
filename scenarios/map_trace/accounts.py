# SPDX-License-Identifier: MIT
"""What upgrade.bpf.c counts, and how far two maps differ."""

from __future__ import annotations

from dataclasses import dataclass

Elements = dict[int, int]
"""A map's content: versions by the numbers of the keys."""


@dataclass(frozen=True)
class Writer:
    """What the traffic of one CPU did: struct writer of upgrade.bpf.c."""

    random: int
    version: int
    met: int
    met_nobody: int
    met_old: int
    met_new: int
    met_both: int
    changes: int
    new_changes: int
    inserts: int
    updates: int
    deletes: int
    copying: int

    @property
    def packets(self) -> tuple[int, ...]:
        """How many packets met neither program, the old one, the new one, both."""
        before = (self.met_nobody, self.met_old, self.met_new, self.met_both)
        return tuple(count + (self.version > 0 and at == self.met) for at, count in enumerate(before))


@dataclass(frozen=True)
class Seen:
    """Numbers of the changes that somebody saw of one CPU: struct seen of upgrade.bpf.c."""

    first: int
    last: int
    count: int
    gaps: int

    def missed(self, last: int = 0) -> int:
        """How many changes were not seen from the first one seen on, up to the last one seen or a later one."""
        return max(last, self.last) - self.first + 1 - self.count if self.count else 0


def differences(expected: Elements, found: Elements) -> dict[str, int]:
    """How many keys are not as they should be."""
    both = expected.keys() & found.keys()
    return {
        "lost": len(expected.keys() - found.keys()),
        "stale": sum(expected[number] != found[number] for number in both),
        "resurrected": len(found.keys() - expected.keys()),
    }
