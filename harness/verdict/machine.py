# SPDX-License-Identifier: MIT
"""How a machine ended, and whom that speaks against: the kernel, the scenario or the harness."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum


class End(StrEnum):
    """Why a scenario's machine did not live to its end."""

    PANIC = "panic"
    HANG = "hang"
    HALT = "halt"
    RESET = "reset"
    AGENT_KILLED = "agent-killed"
    TASK_STUCK = "task-stuck"
    DEADLINE = "deadline"
    PROCESS = "process"
    QEMU_ABORTED = "qemu-aborted"
    QEMU_KILLED = "qemu-killed"
    QEMU_FAILED = "qemu-failed"
    TEMPLATE = "template"
    NOT_TAKEN = "not-taken"
    CONNECTION = "connection"
    HARNESS = "harness"


KERNEL_ENDS = frozenset({End.PANIC, End.HANG, End.HALT, End.RESET, End.AGENT_KILLED, End.TASK_STUCK})
"""The guest itself went down or stopped answering."""

INFRA_ENDS = frozenset(
    {
        End.QEMU_ABORTED,
        End.QEMU_KILLED,
        End.QEMU_FAILED,
        End.TEMPLATE,
        End.NOT_TAKEN,
        End.CONNECTION,
        End.HARNESS,
    }
)
"""The machine was taken away from under the guest, or never reached."""

_SENTENCES = {
    End.PANIC: "the guest's kernel panicked",
    End.HANG: "the guest stopped answering: no SSH and no console until the deadline",
    End.HALT: "the guest powered off while the scenario ran",
    End.RESET: "the guest reset while the scenario ran (a reboot or a triple fault)",
    End.AGENT_KILLED: "the guest's agent was killed (most likely by the OOM killer)",
    End.TASK_STUCK: "the scenario's process could not be killed: it is stuck in the kernel",
    End.DEADLINE: "the scenario ran past its deadline, in a machine that still answers",
    End.PROCESS: "the scenario's process ended before its reports were made",
    End.QEMU_ABORTED: "QEMU aborted",
    End.QEMU_KILLED: "QEMU was killed from outside",
    End.QEMU_FAILED: "QEMU gave up",
    End.TEMPLATE: "no machine could be made for the scenario",
    End.NOT_TAKEN: "the machine did not begin with the scenario",
    End.CONNECTION: "the connection to the guest failed",
    End.HARNESS: "the harness failed",
}


@dataclass(frozen=True)
class MachineEnd:
    """How the machine ended, with QEMU's exit status where there is one and what else is known about it."""

    how: End
    detail: str = ""
    exit_status: int | None = None

    def __str__(self) -> str:
        status = "" if self.exit_status is None else f" (exit status {self.exit_status})"
        return _SENTENCES[self.how] + status + (f": {self.detail}" if self.detail else "")


def end_of_qemu(status: int, *, panicked: bool = False, reset: bool = False) -> MachineEnd:
    """The machine's end from QEMU's, when QEMU ended by itself.

    `status` is what `subprocess` gives (negative for a signal) or a shell's (128 + signal); `panicked` and
    `reset` say whether QMP reported GUEST_PANICKED, or a RESET of the guest's own before it. Exit status 0
    without them is a guest that powered off.
    """
    number = -status if status < 0 else status - 128 if status > 128 else 0
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        crashed = name in ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
        return MachineEnd(End.QEMU_ABORTED if crashed else End.QEMU_KILLED, name, status)
    if panicked:
        return MachineEnd(End.PANIC, exit_status=status)
    if status:
        return MachineEnd(End.QEMU_FAILED, exit_status=status)
    return MachineEnd(End.RESET if reset else End.HALT, exit_status=0)
