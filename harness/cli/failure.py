# SPDX-License-Identifier: MIT
"""How a command fails: a message on one screen, and an exit status."""

from __future__ import annotations

import click

from harness.errors import KernrigError

# As timeout(1) and `docker run` have them; a command's own status is below, a shell's for signals above.
TIME_IS_UP = 124
MACHINE_LOST = 125
INTERRUPTED = 130
PIPE_CLOSED = 141


class Failure(KernrigError):
    """A failure with an exit status of its own."""

    def __init__(self, what: str, *, hint: str | None = None, status: int = 1) -> None:
        super().__init__(what, hint=hint)
        self.status = status


def show(error: Exception) -> int:
    """Show an error to the user; returns the exit status that goes with it."""
    # The rooms below speak of pytest's options; here the same ones have no prefix.
    say(str(error).replace("--kr-", "--"))
    return error.status if isinstance(error, Failure) else 1


def say(text: str) -> None:
    """Tell the user something where it is in nobody's way: on standard error."""
    click.echo(f"kernrig: {text}", err=True)
