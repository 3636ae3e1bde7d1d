# SPDX-License-Identifier: MIT
"""Splats that a scenario announces: `@pytest.mark.expect_splat("regex", reason=...)`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import KernrigError
from harness.verdict.splat import Splat


@dataclass(frozen=True)
class ExpectedSplat:
    """A splat that must occur. `regex` is searched in its title and in its lines, where `^` and `$` match at
    each line's ends; `reason` says why the kernel is right to complain. KernrigError for a bad expression or
    an empty reason.
    """

    regex: str
    reason: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.regex)
        except re.error as error:
            raise KernrigError(
                f"expect_splat: {self.regex!r} is no regular expression: {error}",
                hint="escape what is meant literally: parentheses, brackets, plus signs",
            ) from None
        if not self.regex or not self.reason.strip():
            raise KernrigError(
                f"expect_splat({self.regex!r}, reason={self.reason!r}): both must say something",
                hint='expect_splat("refcount_t: underflow", reason="drops one reference too many")',
            )

    def matches(self, splat: Splat) -> bool:
        """Whether this is one of the splats that were announced."""
        pattern = re.compile(self.regex, re.MULTILINE)
        return any(pattern.search(text) for text in (splat.title, "\n".join(splat.lines)))


class Matching(NamedTuple):
    """Splats that nothing announced, those that something did (with it), and what was announced and did not
    occur.
    """

    unexpected: tuple[Splat, ...]
    matched: tuple[tuple[ExpectedSplat, Splat], ...]
    missing: tuple[ExpectedSplat, ...]


def match_expected(splats: Iterable[Splat], patterns: Sequence[ExpectedSplat]) -> Matching:
    """Sort splats by the patterns. A pattern may match several splats, as a bug may splat more than once; a
    splat goes to the first pattern that matches it, and a pattern is missing only when it matches none at
    all.
    """
    unexpected: list[Splat] = []
    matched: list[tuple[ExpectedSplat, Splat]] = []
    seen: set[ExpectedSplat] = set()
    for splat in splats:
        fitting = [pattern for pattern in patterns if pattern.matches(splat)]
        seen.update(fitting)
        if fitting:
            matched.append((fitting[0], splat))
        else:
            unexpected.append(splat)
    return Matching(
        tuple(unexpected), tuple(matched), tuple(pattern for pattern in patterns if pattern not in seen)
    )
