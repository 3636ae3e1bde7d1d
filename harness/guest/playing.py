# SPDX-License-Identifier: MIT
"""What the players of random sequences have in common, whatever the calls are about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from harness.guest.waiting import WaitTimeout, wait_until

BPFFS = Path("/sys/fs/bpf")
# What nothing has.
NOT_OPEN, NO_ID = 8191, 0x7FFFFFFF

T = TypeVar("T")


class Staged(ABC):
    """A context manager that sets a stage, and clears it away, also when it could not be set as a whole."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._set()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @abstractmethod
    def _set(self) -> None:
        """Set the stage; what is put on `_stack` is cleared away."""


def refusal_of(call: Callable[[], object]) -> int:
    """The errno that the call is refused with, 0 if it isn't."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def settled(look: Callable[[], T], satisfied: Callable[[T], bool], seconds: float) -> T:
    """What `look` returns when that satisfies, or when time is up: frees are deferred, and the host compares."""
    seen = [look()]

    def enough() -> bool:
        seen[0] = look()
        return satisfied(seen[0])

    try:
        if not satisfied(seen[0]):
            wait_until(enough, timeout=seconds, what="deferred frees")
    except WaitTimeout:
        pass
    return seen[0]
