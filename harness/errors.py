# SPDX-License-Identifier: MIT
"""The errors a user can see: what was attempted, what came back, what can be done."""

from __future__ import annotations


class KernrigError(Exception):
    """A failure that ends an operation and is shown to the user without a traceback.

    `what` says what was tried and what happened; `hint` says what the user can do about it.
    """

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what}\n  hint: {self.hint}"


class HostError(KernrigError):
    """The host lacks something: a package, a right, memory, disk space."""
