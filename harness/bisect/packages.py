# SPDX-License-Identifier: MIT
"""Packaged kernels as a space: the ones that Debian's suites have between two versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from debian.debian_support import Version

from harness.bisect.space import Answer, Candidate, Line
from harness.errors import KernrigError
from harness.kernels import AvailableKernel


class Packages(Line):
    """Debian's kernels by version. `changelog(older, newer)` tells what changed between two of them."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        changelog: Callable[[Candidate, Candidate], str],
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(candidates, skip)
        self._changelog = changelog

    def answer(self) -> Answer:
        """The first bad package, with the last good one and the changelog between them."""
        changed = self._changelog(self.good, self.bad)
        return Answer(self.between(), f"The last good one is {self.good.title}.\n\n{changed}")


def between(available: Sequence[AvailableKernel], good: str, bad: str) -> list[Candidate]:
    """The usable kernels from version `good` to version `bad` (Debian versions), oldest first; when `bad` is
    the older one (something was mended), newest first.

    Raises KernrigError when one of them is not there.
    """
    usable = sorted(
        (each for each in available if not each.incomplete), key=lambda each: Version(each.version)
    )
    versions = [each.version for each in usable]
    for version in (good, bad):
        if version not in versions:
            raise KernrigError(
                f"Debian's suites have no usable kernel of version {version}",
                hint="`kernrig kernel list` shows what there is",
            )
    first, last = versions.index(good), versions.index(bad)
    if first == last:
        raise KernrigError(f"good and bad are the same kernel, {good}", hint="name two different ones")
    row = usable[first : last + 1] if first < last else usable[last : first + 1][::-1]
    return [Candidate(each.version, each.name, f"{each.release} ({', '.join(each.suites)})") for each in row]
