# SPDX-License-Identifier: MIT
"""Everything that decides how a machine is built, and QEMU's devices for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.cache import digest
from harness.deadline import slow_factor
from harness.vm import devices
from harness.vm.devices import Device
from harness.vm.process import PortNumbers, QemuProcess
from harness.vm.shape import Shape

if TYPE_CHECKING:
    from harness.host import Qemu
    from harness.image import Image
    from harness.kernels import Kernel

CONTROL_PORT = "kernrig.control"
SSH_PORT = "kernrig.ssh"

# Measured under TCG with make bench: what costs translated instructions and no scenario looks at.
_TCG_CPU = "max,la57=off"

# Under TCG a shipped kernel is 12 to 21 times slower (harness.guest.pace); most of a wait is not the guest's code.
_TCG_SLOWNESS = 8.0
_TCG_SHARE = 1 / 3

_KERNEL_PARAMETERS = (
    "console=ttyS0",
    "rdinit=/init",
    "no_timer_check",  # under TCG on a busy host the check panics now and then (facts of this environment)
    "nokaslr",  # addresses in splats mean the same in every run
    "panic=-1",  # a panic ends QEMU (-no-reboot) at once
    "random.trust_cpu=1",
    "rcupdate.rcu_expedited=1",  # a tcx attach waits for RCU: 20 ms under TCG otherwise
    "mitigations=off",  # nothing secret lives in the guest
    "printk.devkmsg=on",
    "printk.time=1",  # by their timestamps the console's lines are told from what programs write
    "log_buf_len=1M",
    "sysrq_always_enabled",  # the way in when SSH is gone
)


@dataclass(frozen=True)
class Accel:
    """`name` is kvm or tcg; `reason` says why, for pytest's header and `kernrig doctor`."""

    name: str
    reason: str


def open_kvm() -> int:
    """A descriptor of /dev/kvm. Raises OSError."""
    return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)


@dataclass(frozen=True)
class Blueprint:
    """One kind of machine: QEMU, accelerator, kernel, image, shape."""

    qemu: Qemu
    accel: Accel
    kernel: Kernel
    image: Image
    shape: Shape

    @property
    def key(self) -> str:
        """Changes whenever a machine made from this would be another one."""
        return digest(
            str(self.qemu),
            str(self.qemu.path.stat().st_mtime_ns),
            self.accel.name,
            self.kernel.digest,
            self.image.digest,
            str(self.shape),
            self.command_line(),
            _TCG_CPU,
        )

    def slow(self, pace: float = 1.0) -> float:
        """How many times longer than a native machine's are the guest's own deadlines (KERNRIG_SLOW in it).

        `pace` is how many times longer than on the host a piece of work took in this machine, when that was
        measured; a kernel with KASAN and lockdep gets the time that it needs.
        """
        if self.accel.name == "kvm":
            return slow_factor() * max(1.0, pace)
        return slow_factor() * max(_TCG_SLOWNESS, pace * _TCG_SHARE)

    def stretch(self, pace: float) -> float:
        """How many times longer than for a shipped kernel the host waits for this machine: at least 1."""
        return self.slow(pace) / self.slow()

    def command_line(self) -> str:
        """The kernel's command line."""
        return " ".join((*_KERNEL_PARAMETERS, *self.shape.append))

    def start(self, memory: devices.Memory, start: Device, *, inherit: Iterable[int]) -> QemuProcess:
        """Start the machine; `start` is how it comes to life (devices.Boot or devices.Incoming)."""
        if self.accel.name != "kvm":
            accelerator = devices.Tcg(threads=self.shape.cpus > 1)
            return self._start(memory, start, accelerator, inherit)
        fd = open_kvm()
        try:
            return self._start(memory, start, devices.Kvm(fd), (*inherit, fd))
        finally:
            os.close(fd)

    def _start(
        self, memory: devices.Memory, start: Device, accelerator: Device, inherit: Iterable[int]
    ) -> QemuProcess:
        def all_devices(ports: PortNumbers) -> Iterator[Device]:
            return self._devices(ports, memory, start, accelerator)

        keep = start.ours if isinstance(start, devices.Incoming) else None
        return QemuProcess(self.qemu.path, all_devices, inherit=inherit, keep=keep)

    def _devices(
        self, ports: PortNumbers, memory: devices.Memory, start: Device, accelerator: Device
    ) -> Iterator[Device]:
        yield devices.Board(
            memory_mib=self.shape.memory,
            cpus=self.shape.cpus,
            cpu_model="host" if self.accel.name == "kvm" else _TCG_CPU,
        )
        yield accelerator
        yield memory
        yield devices.SerialConsole(ports.console)
        yield devices.Monitor(ports.monitor)
        yield devices.VirtioPorts(((CONTROL_PORT, ports.control), (SSH_PORT, ports.ssh)))
        yield devices.Sandbox()
        yield start
