# SPDX-License-Identifier: MIT
"""`kernrig run`: one command in a clone."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import click

from harness.cli.failure import PIPE_CLOSED
from harness.cli.options import MACHINE, read_settings, shared_options
from harness.deadline import Deadline


@click.command(
    short_help="run one command in a clone, its exit code back",
    context_settings={"allow_interspersed_args": False},
)
@shared_options(*MACHINE)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="give up after so long (exit status 124); default: never",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD...")
def run(command: tuple[str, ...], timeout: float | None, **given: Any) -> None:
    """Run CMD as root in a pristine machine, with this standard input, output and error.

    CMD is a program and its arguments; for more than that, say sh -c '...'. Its exit status comes back; 124 means
    that the time was up, 125 that the machine ended before the command did.
    """
    from harness.cli.session import OPEN_SECONDS, feed, follow, lend_machine

    settings = read_settings(given)
    with lend_machine(settings) as machine:
        deadline = None
        if timeout is not None:
            deadline = Deadline.after(timeout, f"{shlex.join(command)} in the guest", scaled=False)
        channel = machine.ssh().open_session(deadline=Deadline.after(OPEN_SECONDS, "an SSH session"))
        # A shell that stays around turns a death by signal into a status of its own, which SSH can carry.
        channel.exec_command(f"{shlex.join(command)}; exit $?")
        feed(channel)
        try:
            status = follow(machine, channel, deadline)
        except BrokenPipeError:
            # Python would complain at its exit that it can't flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = PIPE_CLOSED
    click.get_current_context().exit(status)
