# SPDX-License-Identifier: MIT
"""What a scenario announces: splats (`@pytest.mark.expect_splat("regex", reason=...)`) and kernel misbehaviour that is
known (`@pytest.mark.known_issue("FINDING", reason=...)`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
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


@dataclass(frozen=True)
class KnownIssue:
    """The entry `finding` of FINDINGS.md, for which a scenario is expected to fail; `reason` says it in a line. With
    `splat` in a kernel that complains in words that this regex matches. `spared` names the kernels on which it was
    run and passed, where it has to pass: upstream versions such as `6.12.117` or `7.3-rc7`, each with all that
    follows it in its series. `shown_by` is the option of its configuration without which a kernel notices nothing,
    or, behind a `!`, the option with which it does not: there the scenario has to pass. KernrigError for one that
    is no version, or a bad expression.
    """

    finding: str
    reason: str = field(kw_only=True)
    splat: str | None = field(default=None, kw_only=True)
    spared: tuple[str, ...] = field(default=(), kw_only=True)
    shown_by: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.splat is not None:
            ExpectedSplat(self.splat, reason="known")
        for version in self.spared:
            if _place(version) is None:
                raise KernrigError(
                    f"known_issue: {version!r} in spared is no kernel version",
                    hint='known_issue("FINDING", reason="why", spared=("6.12.117", "7.3-rc7"))',
                )

    def concerns(self, version: str, config: Mapping[str, str] | None = None) -> bool:
        """Whether a kernel is expected to be seen to misbehave; its version is Debian's (`7.3~rc7-1~exp1`) or its
        release. Without its configuration, whether one that notices all is."""
        if config is not None and self.shown_by is not None:
            wanted = not self.shown_by.startswith("!")
            if (self.shown_by.removeprefix("!") in config) != wanted:
                return False
        kernel = _place(version)
        if kernel is None:
            return True
        behaving = [place for each in self.spared if (place := _place(each)) is not None]
        return not any(place[0] == kernel[0] and place[1] <= kernel[1] for place in behaving)

    def fits(self, splats: Iterable[Splat]) -> bool:
        """Whether the kernel complained in the words that are known, if any are."""
        if self.splat is None:
            return True
        known = ExpectedSplat(self.splat, reason="known")
        return any(known.matches(splat) for splat in splats)


_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]rc(\d+))?")


def _place(version: str) -> tuple[tuple[int, int], tuple[int, float]] | None:
    """A version's series, and its place there: patch level, release candidates first. None for what is no version."""
    found = _VERSION.match(version)
    if found is None:
        return None
    major, minor, patch, candidate = found.groups()
    return (int(major), int(minor)), (int(patch or 0), float(candidate) if candidate else inf)


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
