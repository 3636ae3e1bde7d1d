# SPDX-License-Identifier: MIT
"""`kernrig shell`: a shell in a clone, by SSH or on its serial console."""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING, Any

import click

from harness.cli.failure import Failure, say
from harness.cli.options import MACHINE, read_settings, shared_options
from harness.deadline import Deadline

if TYPE_CHECKING:
    import paramiko

    from harness.vm.machine import Machine


@click.command(short_help="an SSH shell in a clone; --console for the serial one")
@shared_options(*MACHINE)
@click.option("--console", is_flag=True, help="attach to the serial console, where the kernel's messages are")
def shell(console: bool, **given: Any) -> None:
    """A shell as root in a pristine machine, which ends with it. The current directory's scenarios, if it has any, are
    in /opt/kernrig/tree.

    With --console, and with --isolation boot too, the boot is seen from the kernel's first line on. Ctrl-] leaves,
    whatever state the machine is in.
    """
    from harness.cli.session import lend_machine

    settings = read_settings(given)
    if console:
        from harness.cli.console import attach, boot_attached

        if not sys.stdin.isatty():
            raise Failure(
                "--console needs a terminal.\n  hint: kernrig run -- CMD runs a command without one"
            )
        if settings.isolation == "boot":
            boot_attached(settings)
            return
        with lend_machine(settings) as machine:
            attach(machine)
        return
    with lend_machine(settings) as machine:
        status = _ssh_shell(machine)
    click.get_current_context().exit(status)


def _ssh_shell(machine: Machine) -> int:
    from harness.cli.session import OPEN_SECONDS, feed, follow

    channel = machine.ssh().open_session(deadline=Deadline.after(OPEN_SECONDS, "an SSH session"))
    if not sys.stdin.isatty():
        channel.invoke_shell()
        feed(channel)
        return follow(machine, channel)
    from harness.cli import terminal

    width, height = terminal.size()
    channel.get_pty(os.environ.get("TERM", "vt100"), width, height)
    channel.invoke_shell()
    say(f"a shell in a machine of its own; `exit` or {terminal.LEAVE_NAME} ends both")
    return _interact(machine, channel)


def _interact(machine: Machine, channel: paramiko.Channel) -> int:
    """Connect the terminal to the channel until the shell ends (its status) or the user leaves (0)."""
    from harness.cli import terminal
    from harness.cli.session import check, copy_output, exit_status

    with terminal.raw(), terminal.resized() as resizes:
        while True:
            ended = channel.eof_received or channel.closed
            if copy_output(channel):
                continue
            if ended:
                break
            check(machine)
            ready, _, _ = select.select([sys.stdin, channel, resizes], [], [], 0.5)
            if resizes in ready:
                resizes.recv(4096)
                channel.resize_pty(*terminal.size())
            if sys.stdin in ready:
                data, leave = terminal.typed()
                if leave:
                    return 0
                try:
                    channel.sendall(data)
                except OSError:
                    continue  # it has just been closed: the next round says why
    return exit_status(machine, channel)
