# SPDX-License-Identifier: MIT
"""`git bisect log`, read: what somebody found out before."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from harness.bisect.trial import Judgement
from harness.errors import KernrigError

_LINE = re.compile(r"git[ -]bisect (\S+)\s*(.*)")


@dataclass(frozen=True)
class Verdict:
    """What the log says of a revision."""

    judgement: Judgement
    revision: str


@dataclass(frozen=True)
class BisectLog:
    """All that a log says, in its order."""

    verdicts: tuple[Verdict, ...]
    paths: tuple[str, ...] = ()
    first_parent: bool = False

    def last(self, judgement: Judgement) -> str | None:
        """The revision that was judged so last."""
        found = (each.revision for each in reversed(self.verdicts) if each.judgement is judgement)
        return next(found, None)


def parse(text: str, is_revision: Callable[[str], bool]) -> BisectLog:
    """Read a log as git-bisect(1) writes it. `is_revision` tells revisions from paths where no `--` does.

    Raises KernrigError for a command that is not one of git's.
    """
    words = {"good": Judgement.GOOD, "old": Judgement.GOOD, "bad": Judgement.BAD, "new": Judgement.BAD}
    words["skip"] = Judgement.SKIP
    verdicts: list[Verdict] = []
    paths: tuple[str, ...] = ()
    first_parent = False
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue  # git, too, ignores what is no command
        command, arguments = found[1], shlex.split(found[2])
        if command == "start":
            verdicts = []
            revisions, paths, first_parent, terms = _start(arguments, is_revision)
            words |= terms
            verdicts += [Verdict(Judgement.BAD, each) for each in revisions[:1]]
            verdicts += [Verdict(Judgement.GOOD, each) for each in revisions[1:]]
        elif command in words:
            verdicts += [Verdict(words[command], each) for each in arguments]
        elif command != "terms":
            raise KernrigError(
                f"line {number} of the log is no verdict: {line.strip()}",
                hint="give what `git bisect log` wrote",
            )
    return BisectLog(tuple(verdicts), paths, first_parent)


def _start(
    arguments: list[str], is_revision: Callable[[str], bool]
) -> tuple[list[str], tuple[str, ...], bool, dict[str, Judgement]]:
    """Revisions (the bad one first), paths, whether only first parents count, and the words for good and bad."""
    first_parent = False
    terms: dict[str, Judgement] = {}
    revisions: list[str] = []
    given = iter(arguments)
    for word in given:
        if word == "--":
            break
        if word == "--first-parent":
            first_parent = True
        elif (option := re.fullmatch(r"--term-(old|good|new|bad)(?:=(.*))?", word)) is not None:
            term = option[2] if option[2] is not None else next(given, "")
            terms[term] = Judgement.GOOD if option[1] in ("old", "good") else Judgement.BAD
        elif word == "--no-checkout":
            continue
        elif "--" in arguments or is_revision(word):
            revisions.append(word)
        else:
            return revisions, (word, *given), first_parent, terms
    return revisions, tuple(given), first_parent, terms
