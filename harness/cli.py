# SPDX-License-Identifier: MIT
"""The `kernrig` command."""

from __future__ import annotations

import sys

import click

from harness.errors import KernrigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """BPF scenarios in pristine clones of booted kernels. The scenarios themselves are run by pytest."""


def main() -> None:
    """Run the command line; user errors become one message and exit status 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KernrigError as error:
        click.echo(f"kernrig: {error}", err=True)
        sys.exit(1)
