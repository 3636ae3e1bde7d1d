# SPDX-License-Identifier: MIT
"""A running machine: a clone of a template or a cold-booted one, reached over SSH."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from harness.deadline import SLOW_FACTOR_VARIABLE, Deadline, DeadlineError
from harness.ssh import Lines, SshClient, SshError
from harness.vm import boot, keys
from harness.vm import template as templates
from harness.vm.blueprint import Blueprint
from harness.vm.process import QemuProcess
from harness.vm.template import Template

if TYPE_CHECKING:
    import paramiko

    from harness.cache import Cache
    from harness.tree import Tree

AGENT_SOCKET = "/run/kernrig/agent.sock"
STANDBY_SOCKET = "/run/kernrig/standby.sock"
CONNECT_SECONDS = 30
PING_SECONDS = 8
# More than the guest's own limit (harness.guest.jobs), times its slow factor.
SETTLE_SECONDS = 4
_END_GRACE_SECONDS = 3


class MachineLostError(Exception):
    """The machine ended, or its agent did, while it was needed. `how` describes it; the console has the rest."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


@dataclass(frozen=True)
class End:
    """How a machine ended: QEMU's exit status (None: it had to be killed by us), what QEMU wrote, whether the
    console shows a panic."""

    status: int | None
    errors: str
    panicked: bool


class Machine:
    """One machine. A context manager; leaving it ends the machine, whatever state it is in.

    Made by `clone` (milliseconds) or `boot` (seconds), in the thread that will outlive it. `stretch` is how many times
    longer than for a shipped kernel to wait for it, as measured when its template was made.
    """

    def __init__(
        self,
        process: QemuProcess,
        *,
        key: paramiko.PKey,
        host_key: str,
        prefix: bytes,
        blueprint: Blueprint,
        pace: float,
    ) -> None:
        self.process = process
        self.stretch = blueprint.stretch(pace)
        self._slow = blueprint.slow(pace)
        self.started = time.monotonic()
        self._key = key
        self._host_key = host_key
        self._prefix = prefix
        self._ssh: SshClient | None = None
        self._awake = False
        self._standby = True
        self._template: Template | None = None
        self._killed = False

    @classmethod
    def clone(cls, template: Template) -> Self:
        """A copy of the frozen machine that runs at once."""
        machine = cls(
            template.start(),
            key=template.ssh_key,
            host_key=template.facts["host_key"],
            prefix=template.ssh_prefix,
            blueprint=template.blueprint,
            pace=template.facts["pace"],
        )
        machine._template = template
        return machine

    def console_text(self) -> str:
        """All that was printed on the console since power-on, in the template's life too."""
        before = self._template.console() if self._template is not None else ""
        return before + self.process.console.text()

    @classmethod
    def boot(cls, blueprint: Blueprint, tree: Tree, *, cache: Cache) -> tuple[Self, dict[str, Any]]:
        """A machine booted from cold with the tree loaded, and what was collected. Nothing is frozen or kept."""
        private, public = keys.new_key()
        process, said = boot.cold_boot(blueprint, public_key=public)
        try:
            loaded = templates.load(process, tree, boot_seconds=said["boot_seconds"], cache=cache)
        except BaseException:
            process.close()
            raise
        return cls.adopt(process, blueprint, private, said | loaded), said | loaded

    @classmethod
    def adopt(
        cls, process: QemuProcess, blueprint: Blueprint, private_key: str, said: dict[str, Any]
    ) -> Self:
        """A machine that was booted and loaded, from its parts."""
        return cls(
            process,
            key=keys.load_key(private_key),
            host_key=said["host_key"],
            prefix=b"",
            blueprint=blueprint,
            pace=said["pace"],
        )

    def ssh(self, *, seconds: float = CONNECT_SECONDS) -> SshClient:
        """The machine's SSH connection, made at the first call, in `seconds` times `stretch`.

        Raises SshError, DeadlineError, MachineLostError.
        """
        if not self._awake:
            self.process.control.sendall(json.dumps(templates.wake_message(self._slow)).encode() + b"\n")
            self._awake = True
        return self._connect(seconds)

    def _connect(self, seconds: float = CONNECT_SECONDS) -> SshClient:
        if self._ssh is None or not self._ssh.alive():
            deadline = Deadline.after(seconds * self.stretch, "SSH to the guest")
            prefix, self._prefix = self._prefix, b""
            try:
                self._ssh = SshClient(
                    self.process.ssh, key=self._key, host_key=self._host_key, deadline=deadline, prefix=prefix
                )
            except (SshError, DeadlineError) as error:
                if self.ended():
                    raise MachineLostError(f"QEMU ended before SSH was there ({error})") from error
                raise
        return self._ssh

    def job(self, request: dict[str, Any], *, deadline: Deadline) -> Iterator[dict[str, Any]]:
        """Give the agent a job and yield its messages, the last of which has type "end".

        Raises MachineLostError when the machine goes away before that, DeadlineError when it takes too long.
        """
        environment = {SLOW_FACTOR_VARIABLE: str(self._slow)} | request.get("environment", {})
        request = request | {"environment": environment}
        standby = self._standby and request["op"] != "ping"
        self._standby = self._standby and not standby
        if standby and not self._awake:
            # With the first job, as a message of its own would cost as much again.
            request = request | {"wake": templates.wake_message(self._slow)}
            self._awake = True
        path = STANDBY_SOCKET if standby else AGENT_SOCKET
        try:
            with contextlib.closing(self._connect().open_socket(path, deadline=deadline)) as channel:
                channel.settimeout(deadline.check())
                channel.sendall(json.dumps(request).encode() + b"\n")
                lines = Lines(channel)
                while True:
                    line = self._next(lines, deadline)
                    if line is None:
                        if self.ended(wait=_END_GRACE_SECONDS):
                            raise MachineLostError("the machine ended")
                        raise MachineLostError("the guest's agent hung up")
                    message: dict[str, Any] = json.loads(line)
                    if message["type"] == "settling":
                        # The job is over; deferred frees, or a search for lost memory, have time of their own.
                        seconds = message.get("seconds", SETTLE_SECONDS) * self._slow
                        deadline = Deadline.after(seconds, "the guest to settle", scaled=False)
                        continue
                    yield message
                    if message["type"] in ("end", "pong"):
                        return
        except (SshError, OSError, EOFError) as error:
            if isinstance(error, DeadlineError):
                raise
            if self.ended(wait=_END_GRACE_SECONDS):
                raise MachineLostError("the machine ended") from error
            raise MachineLostError(f"the connection broke: {error}") from error

    def _next(self, lines: Lines, deadline: Deadline) -> bytes | None:
        """The next line; a panic on the console ends the wait early, as the guest will say nothing more."""
        while True:
            piece = Deadline.after(min(0.5, deadline.check()), deadline.what, scaled=False)
            try:
                return lines.next(piece)
            except DeadlineError:
                if self.process.console.panicked.is_set():
                    self.ended(wait=_END_GRACE_SECONDS)
                    raise MachineLostError("the kernel panicked") from None
                if self.ended():
                    raise MachineLostError("the machine ended") from None

    def ping(self) -> dict[str, Any] | None:
        """Whether the agent still answers: what its jobs are doing, or None when it does not."""
        try:
            return next(
                self.job(
                    {"op": "ping"}, deadline=Deadline.after(PING_SECONDS * self.stretch, "the agent's answer")
                )
            )
        except (MachineLostError, DeadlineError, StopIteration):
            return None

    def ended(self, *, wait: float = 0.0) -> bool:
        """Whether QEMU is gone, waiting for that at most `wait` seconds."""
        try:
            self.process.wait(Deadline.after(wait, "QEMU's end"))
        except DeadlineError:
            return False
        return True

    def end(self) -> End:
        """How the machine ended; kills it if it has not."""
        status = self.process.status()
        if status is None:
            self._killed = True
            self.process.kill()
        self.process.console.finish()
        return End(
            None if self._killed else status, self.process.errors(), self.process.console.panicked.is_set()
        )

    def close(self) -> None:
        """End the machine at once."""
        if self.process.status() is None:
            self._killed = True
        self.process.kill()
        if self._ssh is not None:
            self._ssh.close()
        self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
