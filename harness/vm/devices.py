# SPDX-License-Identifier: MIT
"""QEMU's devices as small types, each of which yields its own command-line arguments.

Everything that QEMU opens is handed over as an open file descriptor, so that it can run as an unprivileged user that
has no right to any path of ours, and no socket file ever lies around.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


class Device(Protocol):
    """Something that stands on QEMU's command line."""

    def arguments(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class Board:
    """The q35 machine without what no scenario uses."""

    memory_mib: int
    cpus: int
    cpu_model: str

    def arguments(self) -> Iterator[str]:
        yield from (
            "-machine",
            "q35,memory-backend=mem,usb=off,smbus=off,sata=off,vmport=off,hpet=off,graphics=off",
        )
        yield from ("-m", f"{self.memory_mib}M", "-smp", str(self.cpus), "-cpu", self.cpu_model)
        yield from ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")


@dataclass(frozen=True)
class Memory:
    """The guest's RAM in a file.

    `shared` writes go to the file (a template being made); otherwise the file is mapped copy-on-write and opened
    read-only (a clone). See QEMU's documentation of memory-backend-file, options share, readonly and rom.
    """

    fd: int
    size_mib: int
    shared: bool

    def arguments(self) -> Iterator[str]:
        mode = "share=on" if self.shared else "share=off,readonly=on,rom=off"
        yield from (
            "-object",
            f"memory-backend-file,id=mem,size={self.size_mib}M,mem-path=/proc/self/fd/{self.fd},{mode}",
        )


@dataclass(frozen=True)
class Tcg:
    """QEMU's translator; `threads`: one host thread per virtual CPU."""

    threads: bool

    def arguments(self) -> Iterator[str]:
        yield from ("-accel", f"tcg,thread={'multi' if self.threads else 'single'},tb-size=64")


@dataclass(frozen=True)
class Kvm:
    """The host's KVM; /dev/kvm was opened by us, as QEMU itself may have no right to it."""

    fd: int

    def arguments(self) -> Iterator[str]:
        yield from ("-add-fd", f"fd={self.fd},set=1", "-accel", "kvm,device=/dev/fdset/1")


@dataclass(frozen=True)
class Boot:
    """Direct kernel boot (QEMU's -kernel, -initrd, -append)."""

    kernel_fd: int
    initrd_fd: int
    command_line: str

    def arguments(self) -> Iterator[str]:
        yield from (
            "-kernel",
            f"/proc/self/fd/{self.kernel_fd}",
            "-initrd",
            f"/proc/self/fd/{self.initrd_fd}",
        )
        yield from ("-append", self.command_line)


@dataclass(frozen=True)
class SerialConsole:
    """The first serial port, on one end of a socket pair."""

    fd: int

    def arguments(self) -> Iterator[str]:
        yield from ("-chardev", f"socket,id=console,fd={self.fd}", "-serial", "chardev:console")


@dataclass(frozen=True)
class VirtioPorts:
    """Named virtio-serial ports (name, descriptor): the guest finds them under /sys/class/virtio-ports."""

    ports: tuple[tuple[str, int], ...]

    def arguments(self) -> Iterator[str]:
        yield from (
            "-device",
            f"virtio-serial-pci,id=ports,max_ports={len(self.ports) + 1},disable-legacy=on",
        )
        for number, (name, fd) in enumerate(self.ports, 1):
            yield from ("-chardev", f"socket,id=port{number},fd={fd}")
            yield from ("-device", f"virtserialport,bus=ports.0,nr={number},chardev=port{number},name={name}")


@dataclass(frozen=True)
class Monitor:
    """QMP on one end of a socket pair."""

    fd: int

    def arguments(self) -> Iterator[str]:
        yield from ("-chardev", f"socket,id=qmp,fd={self.fd}", "-mon", "chardev=qmp,mode=control")


@dataclass(frozen=True)
class Incoming:
    """Start from a saved device state; RAM is not in it (migration capability x-ignore-shared).

    The capability can only be set over QMP, so a second monitor gets the two orders at once, written into its socket
    before QEMU starts: no round trip, and the guest runs as soon as the state is in.
    """

    state_fd: int
    orders_fd: int
    ours: socket.socket

    def arguments(self) -> Iterator[str]:
        yield from ("-incoming", "defer")
        yield from (
            "-chardev",
            f"socket,id=orders,fd={self.orders_fd}",
            "-mon",
            "chardev=orders,mode=control",
        )

    def orders(self) -> bytes:
        """What to write into `ours`, the other end of `orders_fd`, which must stay open."""
        capability = {"capability": "x-ignore-shared", "state": True}
        commands: tuple[tuple[str, dict[str, object]], ...] = (
            ("qmp_capabilities", {}),
            ("migrate-set-capabilities", {"capabilities": [capability]}),
            ("migrate-incoming", {"uri": f"file:/proc/self/fd/{self.state_fd}"}),
        )
        return b"".join(
            json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"
            for name, arguments in commands
        )


@dataclass(frozen=True)
class Sandbox:
    """QEMU's own system-call filter: no new programs, no privileges, no resource control."""

    def arguments(self) -> Iterator[str]:
        yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def command_line(executable: str, devices: Iterable[Device]) -> list[str]:
    """The whole argument vector for QEMU."""
    return [executable, *(word for device in devices for word in device.arguments())]
