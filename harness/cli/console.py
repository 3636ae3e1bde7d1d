# SPDX-License-Identifier: MIT
"""The user's terminal on a machine's serial console."""

from __future__ import annotations

import select
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect

from harness.cli import terminal
from harness.cli.failure import MACHINE_LOST, Failure, say
from harness.cli.options import one_kernel
from harness.cli.session import OPEN_SECONDS
from harness.deadline import Deadline, DeadlineError
from harness.rig import Rig
from harness.ssh import SshError
from harness.vm import boot, keys, slots
from harness.vm import template as templates
from harness.vm.control import TemplateError
from harness.vm.machine import Machine, MachineLostError

if TYPE_CHECKING:
    import paramiko

    from harness.cache import Cache
    from harness.settings import Settings
    from harness.tree import Tree
    from harness.vm.blueprint import Blueprint
    from harness.vm.process import QemuProcess

_PORT = "/dev/ttyS0"
_LOOK_SECONDS = 0.1


def attach(machine: Machine) -> None:
    """Start a shell on the console and connect the terminal to it until the user leaves.

    Raises Failure when the machine ends before that.
    """
    with closing(_start_shell(machine)):
        _connect(machine.process)


def boot_attached(settings: Settings) -> None:
    """Boot from cold with the terminal on the console all along; when the guest is up, a shell starts there."""
    name = one_kernel(settings)
    rig = Rig(settings, Path.cwd(), say=say)
    blueprint, tree = rig.blueprint(name, settings.shape), rig.tree(name)
    memory = slots.Slots(rig.cache.root / "state" / "slots").held(
        blueprint.shape.memory, waiting=lambda: say("waiting for memory")
    )
    with memory, closing(boot.power_on(blueprint)) as process:
        threading.Thread(
            target=_bring_up, args=(process, blueprint, tree, rig.cache), name="boot", daemon=True
        ).start()
        _connect(process)


def _bring_up(process: QemuProcess, blueprint: Blueprint, tree: Tree, cache: Cache) -> None:
    """Do the host's part of the guest's start, then get a shell. A failure is only said: the console goes on."""
    try:
        private, public = keys.new_key()
        said = boot.greet(process, blueprint, public_key=public)
        said |= templates.load(process, tree, boot_seconds=said["boot_seconds"], cache=cache)
        with closing(_start_shell(Machine.adopt(process, blueprint, private, said))) as channel:
            channel.status_event.wait()
    except (TemplateError, DeadlineError, SshError, MachineLostError, OSError) as error:
        if process.status() is None:
            line = str(error).splitlines()[0]
            sys.stderr.write(f"\r\nkernrig: no shell: {line}; {terminal.LEAVE_NAME} leaves\r\n")
            sys.stderr.flush()


def _start_shell(machine: Machine) -> paramiko.Channel:
    """A shell on the serial port, with job control, another one whenever it ends; to be kept as long as the channel.

    It is not put into the background, where its children would ignore Ctrl-C (POSIX's shell, asynchronous lists).
    """
    columns, lines = terminal.size()
    channel = machine.ssh().open_session(deadline=Deadline.after(OPEN_SECONDS, "an SSH session"))
    channel.exec_command(
        f"stty -F {_PORT} sane cols {columns} rows {lines};"
        f"exec setsid -c sh -c 'cd; while :; do sh -l; done' <{_PORT} >{_PORT} 2>&1"
    )
    return channel


def _connect(process: QemuProcess) -> None:
    """Connect the terminal to the console until the user leaves. Raises Failure when QEMU ends before that."""
    say(f"the serial console; {terminal.LEAVE_NAME} leaves and ends the machine")
    over = threading.Event()
    with terminal.raw():
        pump = threading.Thread(target=_show, args=(process, over), name="console-out", daemon=True)
        pump.start()
        try:
            while not process.console.flag_eof:
                ready, _, _ = select.select([sys.stdin], [], [], _LOOK_SECONDS)
                if not ready:
                    continue
                data, leave = terminal.typed()
                process.console.send(data)
                if leave:
                    return
        except OSError:
            pass  # QEMU has closed its end
        finally:
            over.set()
            pump.join()
    status = process.wait(Deadline.after(5, "QEMU's end"))
    said = process.errors().strip()[-500:]
    raise Failure(
        f"the machine has ended: QEMU's exit status is {status}" + (f", it said: {said}" if said else ""),
        status=MACHINE_LOST,
    )


def _show(process: QemuProcess, over: threading.Event) -> None:
    """Copy the console to our standard output until it ends or it is `over`."""
    while not over.is_set():
        try:
            data = process.console.read_nonblocking(65536, timeout=_LOOK_SECONDS)
        except pexpect.TIMEOUT:
            continue
        except pexpect.EOF:
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError:
            return
