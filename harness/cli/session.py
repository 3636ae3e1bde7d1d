# SPDX-License-Identifier: MIT
"""One machine for one command: lent, watched while a channel is open to it, and its end explained."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from harness.cli.failure import MACHINE_LOST, TIME_IS_UP, Failure, say
from harness.cli.options import one_kernel
from harness.deadline import Deadline

if TYPE_CHECKING:
    import paramiko

    from harness.settings import Settings
    from harness.vm.machine import Machine

OPEN_SECONDS = 30
_LOOK_SECONDS = 0.5
_END_SECONDS = 5
_TAIL_LINES = 20
_SPLAT_LINES = 30
_HALTED = "reboot: System halted"  # kernel/reboot.c:kernel_halt


@contextmanager
def lend_machine(settings: Settings) -> Iterator[Machine]:
    """A machine of its own for the command, awake (clock, random state and identity are its own), ended afterwards.

    The scenarios of the current directory are in it, if there are any. Raises KernrigError, DeadlineError, Failure.
    """
    from harness.rig import Rig
    from harness.vm.machine import MachineLostError

    kernel = one_kernel(settings)
    rig = Rig(settings, Path.cwd(), say=say)
    try:
        with rig.lease(kernel, settings.shape, own=True) as lease:
            try:
                lease.machine.ssh()  # tells it to wake; the agent answers when that is done
                if lease.machine.ping() is None:
                    raise lost(lease.machine, "the guest's agent does not answer")
                yield lease.machine
            except MachineLostError as error:
                raise lost(lease.machine, error.how) from error
    finally:
        rig.close()


def lost(machine: Machine, how: str) -> Failure:
    """The failure that explains why the machine is gone, with the console's last lines. Ends it if it is not."""
    from harness.verdict import End, MachineEnd, end_of_qemu

    end = machine.end()
    if end.panicked:
        return Failure(f"the guest's kernel panicked{_panic(machine)}", status=MACHINE_LOST)
    if end.status is None:
        why = how
    elif (ended := end_of_qemu(end.status)).how is End.HALT:
        why = "the guest powered off or rebooted (QEMU ended with status 0)"
    else:
        why = str(MachineEnd(ended.how, end.errors.strip()[-500:], ended.exit_status))
    return Failure(f"{why}{console_tail(machine)}", status=MACHINE_LOST)


def _panic(machine: Machine) -> str:
    """What the kernel said about its panic, shortened in the middle if it is long."""
    from harness.verdict import excerpt, find_splats, parse_console

    fatal = [splat for splat in find_splats(parse_console(machine.process.console.text())) if splat.fatal]
    return _indented("kernel log", excerpt(fatal[0], _SPLAT_LINES)) if fatal else console_tail(machine)


def console_tail(machine: Machine) -> str:
    """The last lines of the console, indented, below a heading; nothing when it is empty."""
    return _indented("console, last lines", machine.process.console.text().splitlines()[-_TAIL_LINES:])


def _indented(heading: str, lines: Sequence[str]) -> str:
    return f"\n  {heading}:\n" + "\n".join(f"    {line}".rstrip() for line in lines) if lines else ""


def follow(machine: Machine, channel: paramiko.Channel, deadline: Deadline | None = None) -> int:
    """Copy what comes over the channel to our standard output and error until the far end has finished.

    Returns its exit status. Raises Failure when the machine ends or the deadline passes before that, and
    BrokenPipeError when nobody reads our output any more.
    """
    while True:
        ended = channel.eof_received or channel.closed
        if copy_output(channel):
            continue
        if ended:
            return exit_status(machine, channel)
        check(machine, deadline)
        wait = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline.remaining())
        select.select([channel], [], [], wait)


def check(machine: Machine, deadline: Deadline | None = None) -> None:
    """Raises Failure when the deadline has passed, or the kernel has panicked or halted without taking QEMU along."""
    console = machine.process.console
    if console.since(max(0, console.size() - 80)).rstrip().endswith(_HALTED):
        raise lost(machine, "the guest halted")
    if console.panicked.is_set():
        machine.ended(wait=_END_SECONDS)
        raise lost(machine, "the guest's kernel panicked")
    if deadline is not None and deadline.passed():
        raise Failure(f"{deadline.error()}{console_tail(machine)}", status=TIME_IS_UP)


def copy_output(channel: paramiko.Channel) -> bool:
    """Write what has come to our standard output and error; whether there was anything."""
    found = False
    if channel.recv_ready():
        found = _write(sys.stdout.buffer, channel.recv(65536))
    if channel.recv_stderr_ready():
        found = _write(sys.stderr.buffer, channel.recv_stderr(65536)) or found
    return found


def _write(stream: IO[bytes], data: bytes) -> bool:
    stream.write(data)
    stream.flush()
    return bool(data)


def exit_status(machine: Machine, channel: paramiko.Channel) -> int:
    """What the far end's process returned, once its output has ended. Raises Failure when the machine is gone."""
    channel.status_event.wait(_END_SECONDS)
    if channel.exit_status >= 0:
        return channel.exit_status
    machine.ended(wait=_END_SECONDS)
    raise lost(machine, "the SSH connection broke")


def feed(channel: paramiko.Channel) -> None:
    """Send our standard input in the background, until it or the channel ends."""
    fd = sys.stdin.fileno()

    def send() -> None:
        try:
            while data := os.read(fd, 65536):
                channel.sendall(data)
            channel.shutdown_write()
        except (OSError, EOFError, ValueError):
            pass  # the command has ended without reading all of it

    threading.Thread(target=send, name="stdin", daemon=True).start()
