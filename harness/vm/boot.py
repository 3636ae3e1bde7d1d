# SPDX-License-Identifier: MIT
"""A machine from power-on until it is ready to be loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from harness.deadline import Deadline, DeadlineError
from harness.vm import devices
from harness.vm.blueprint import Blueprint
from harness.vm.control import ControlPort, TemplateError, console_tail
from harness.vm.process import NOBODY, QemuProcess

# Of silence on the console: a debug kernel takes long, but says something all the time.
BOOT_SECONDS = 180
_LONGEST_BOOT = 10


def power_on(
    blueprint: Blueprint, *, memory_file: Path | None = None, inherit: tuple[int, ...] = ()
) -> QemuProcess:
    """Start a machine from cold. Its RAM is the given file, else memory that goes with it."""
    fds = [open_memory(memory_file, blueprint.shape.memory)]
    try:
        fds += [os.open(path, os.O_RDONLY) for path in (blueprint.kernel.vmlinuz, blueprint.image.initramfs)]
        memory = devices.Memory(fds[0], blueprint.shape.memory, shared=True)
        boot = devices.Boot(fds[1], fds[2], blueprint.command_line())
        return blueprint.start(memory, boot, inherit=(*fds, *inherit))
    finally:
        for fd in fds:
            os.close(fd)


def greet(
    process: QemuProcess, blueprint: Blueprint, *, public_key: str, seconds: float = BOOT_SECONDS
) -> dict[str, Any]:
    """Wait for the guest to come up and tell it who may log in; returns what it said, and `boot_seconds`.

    Raises TemplateError with the console's tail when it does not: after `seconds` in which nothing was printed.
    """
    began = time.monotonic()
    control = ControlPort(process)
    try:
        hello = _hello(control, process, seconds, f"kernel {blueprint.kernel.release} to boot")
        control.send(authorized_key=public_key, time=time.time(), slow=blueprint.slow())
        ready = control.receive(Deadline.after(seconds, f"the guest of {blueprint.kernel.release}"))
        return hello | ready | {"boot_seconds": round(time.monotonic() - began, 1)}
    except (DeadlineError, TemplateError) as error:
        raise TemplateError(
            f"The guest did not come up: {error}{console_tail(process)}",
            hint="see the console above; `kernrig shell --console --isolation boot` boots it by hand",
        ) from error


def _hello(control: ControlPort, process: QemuProcess, seconds: float, what: str) -> dict[str, Any]:
    """The guest's first message, as long as its console goes on."""
    for _ in range(_LONGEST_BOOT - 1):
        printed = process.console.size()
        try:
            return control.receive(Deadline.after(seconds, what))
        except DeadlineError:
            if process.console.size() == printed:
                raise
    return control.receive(Deadline.after(seconds, what))


def cold_boot(
    blueprint: Blueprint,
    *,
    public_key: str,
    memory_file: Path | None = None,
    inherit: tuple[int, ...] = (),
    seconds: float = BOOT_SECONDS,
) -> tuple[QemuProcess, dict[str, Any]]:
    """`power_on` and `greet`: a machine that is ready to be loaded, and what its guest said."""
    process = power_on(blueprint, memory_file=memory_file, inherit=inherit)
    try:
        return process, greet(process, blueprint, public_key=public_key, seconds=seconds)
    except BaseException:
        process.close()
        raise


def open_memory(path: Path | None, size_mib: int) -> int:
    """A descriptor of an empty, sparse memory file that QEMU may open, whoever it runs as; without a path it is
    anonymous."""
    new = os.O_CREAT | os.O_EXCL | os.O_RDWR
    fd = os.memfd_create("guest-memory") if path is None else os.open(path, new, 0o600)
    try:
        os.ftruncate(fd, size_mib << 20)
        give_to_qemu(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def give_to_qemu(fd: int) -> None:
    """As root, QEMU runs as nobody and opens its memory file by descriptor: let it be the owner."""
    if os.geteuid() == 0:
        os.fchown(fd, NOBODY, NOBODY)
