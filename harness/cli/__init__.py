# SPDX-License-Identifier: MIT
"""The `kernrig` command: one module per command.

Each module imports what only its command needs when that runs, so that `kernrig --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from harness.cli.behaviours import behaviours
from harness.cli.bisect import bisect
from harness.cli.clean import clean
from harness.cli.doctor import doctor
from harness.cli.failure import INTERRUPTED, say, show
from harness.cli.kernel import kernel
from harness.cli.run import run
from harness.cli.shell import shell
from harness.deadline import DeadlineError
from harness.errors import KernrigError


class _Commands(click.Group):
    """Turns what a user can cause into a message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KernrigError, DeadlineError) as error:
            ctx.exit(show(error))
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="kernrig", message="%(package)s %(version)s")
def cli() -> None:
    """BPF scenarios in pristine clones of booted kernels. The scenarios themselves are run by pytest."""


for _command in (doctor, kernel, shell, run, bisect, clean, behaviours):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and end the process with its exit status.

    A user's error is one message and status 1 (2 for a wrong command line), Ctrl-C is 130.
    """
    _open_missing_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) has it ignored
            signal.signal(number, _end)
    try:
        status = cli.main(prog_name="kernrig", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


def _open_missing_streams() -> None:
    """Give a process that was started without them its standard streams: else QEMU's files get their numbers."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115, PTH123 - stays open
            setattr(sys, name, stream)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that machines and temporary files are taken along."""
    sys.exit(128 + number)
