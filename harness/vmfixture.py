# SPDX-License-Identifier: MIT
"""The `vm` fixture: a test that asks for it runs on the host and drives a machine of its own.

The machine is a pristine clone (or a cold boot, with --kr-isolation=boot) in the shape that the test's vm marker asks
for. When the test is over, the kernel's log is judged as for any scenario: a splat that was not announced, or a machine
that is gone without the test having said so (`expect_end`, `expect_panic`), fails it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError
from harness.evidence import Evidence
from harness.reports import CALL_FAILED
from harness.ssh import Completed
from harness.verdict import (
    End,
    ExpectedSplat,
    MachineEnd,
    PhaseReport,
    Verdict,
    dirty_taint,
    end_of_qemu,
    explain,
    find_splats,
    judge,
    new_taint,
    parse_console,
)
from harness.vm.console import Console
from harness.vm.machine import Machine, MachineLostError

if TYPE_CHECKING:
    from harness.coverage.collector import Collector, Start
    from harness.rig import Rig
    from harness.runner import Runner
    from harness.settings import Settings
    from harness.vm.monitor import Monitor
    from harness.vm.shape import Shape

DEFAULT_SECONDS = 60.0


class GuestError(Exception):
    """A function called in the guest raised; `kind` is the exception's name, `traceback` the guest's."""

    def __init__(self, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind} in the guest: {text}\n{traceback}")
        self.kind = kind
        self.traceback = traceback


def _is_dirty(message: Mapping[str, Any]) -> bool:
    """Whether the last message of a job says that it left something."""
    if "after" not in message:
        return False
    before, after = message["before"], message["after"]
    damage = dirty_taint(new_taint(before["tainted"], after["tainted"]))
    return bool(damage) or before["inventory"] != after["inventory"]


class Vm:
    """A machine under a host-side test. Every wait has a deadline in seconds, scaled for slow kernels.

    `dirty`: whether the last function called left the guest other than it was (objects, namespaces, damage: not the
    taint of a module that it loaded for a while).
    """

    def __init__(
        self, machine: Machine, rig: Rig, kernel: str, shape: Shape, coverage: Collector | None = None
    ) -> None:
        self._machine = machine
        self._rig = rig
        self._kernel = kernel
        self._shape = shape
        self.console_text = ""
        self.expected_end: str | None = None
        self.dirty = False
        self._coverage = coverage
        self._start: Start = {}
        self._begin(shape)

    def _begin(self, shape: Shape | None) -> None:
        if self._coverage is not None:
            self._start = self._coverage.begin(self._machine, shape)

    def leave(self) -> None:
        """Take from the machine what it has counted, before it is ended."""
        if self._coverage is not None:
            self._coverage.take(self._machine, self._start)

    @property
    def machine(self) -> Machine:
        """The machine itself, for what this class has no word for."""
        return self._machine

    @property
    def settings(self) -> Settings:
        """What the user wants of this run."""
        return self._rig.settings

    @property
    def console(self) -> Console:
        """The serial console: pexpect's `expect`, `send`, `sendline`; `text()` for all of it."""
        return self._machine.process.console

    @property
    def qmp(self) -> Monitor:
        """QEMU's monitor."""
        return self._machine.process.monitor()

    def run(self, command: str, *, stdin: bytes = b"", seconds: float = DEFAULT_SECONDS) -> Completed:
        """Run a shell command in the guest; the status is in what comes back."""
        return self._machine.ssh().run(command, stdin=stdin, seconds=seconds)

    def succeed(self, command: str, *, seconds: float = DEFAULT_SECONDS) -> str:
        """Run a shell command that must succeed; returns its output. Raises AssertionError with both outputs."""
        done = self.run(command, seconds=seconds)
        output = done.output.decode("utf-8", "replace")
        if done.status != 0:
            errors = done.errors.decode("utf-8", "replace")
            raise AssertionError(
                f"{command!r} ended with status {done.status} in the guest:\n{output}{errors}"
            )
        return output

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        quoted = "'" + path.replace("'", "'\\''") + "'"
        done = self.run(f"cat > {quoted} && chmod {mode:o} {quoted}", stdin=data)
        if done.status != 0:
            raise AssertionError(f"{path} could not be written in the guest: {done.errors!r}")

    def call(self, target: str, *args: Any, seconds: float = DEFAULT_SECONDS, **kwargs: Any) -> Any:
        """Call `module:function` in a child of the guest's warm agent; arguments and result must be JSON's.

        Raises GuestError when it raises, MachineLostError when the machine goes away meanwhile.
        """
        request = {"op": "call", "target": target, "args": args, "kwargs": kwargs}
        deadline = Deadline.after(seconds, f"{target} in the guest")
        value = None
        for message in self._machine.job(request, deadline=deadline):
            if message["type"] == "result":
                value = message["value"]
            elif message["type"] == "error":
                raise GuestError(message["exception"], message["text"], message["traceback"])
            elif message["type"] == "end":
                self.dirty = _is_dirty(message)
        return value

    def wait_until_ended(self, *, seconds: float = DEFAULT_SECONDS) -> int:
        """Wait for QEMU's own end; returns its exit status. Raises DeadlineError."""
        return self._machine.process.wait(Deadline.after(seconds, "the machine's end"))

    def expect_end(self, reason: str) -> None:
        """Say that the machine is to end (a halt, a kill of QEMU): it is no failure then."""
        self.expected_end = reason

    def expect_panic(self, regex: str = "Kernel panic", *, seconds: float = DEFAULT_SECONDS) -> str:
        """Wait for a panic that matches; returns the console's text. The machine is gone afterwards."""
        self.expected_end = f"panic {regex!r}"
        self.console.expect(regex, timeout=Deadline.after(seconds, "a panic").remaining())
        self._machine.ended(wait=5)
        return self.console.text()

    def renew(self) -> None:
        """End this machine, if it still runs, and go on with a pristine one."""
        self.leave()
        self.console_text += self.console.text()
        self._machine.close()
        self._machine = self._rig.new_machine(self._kernel, self._shape)
        self.dirty = False
        self._begin(self._shape)

    def reboot(self) -> None:
        """End this machine and boot the same kernel from cold. Nothing of the guest survives: it has no disk."""
        self.leave()
        self.console_text += self.console.text()
        self._machine.close()
        self._machine = Machine.boot(
            self._rig.blueprint(self._kernel, self._shape),
            self._rig.tree(self._kernel),
            cache=self._rig.cache,
        )[0]
        self._begin(None)


def lend(runner: Runner, request: pytest.FixtureRequest) -> Iterator[Vm]:
    """The fixture's body."""
    item = request.node
    kernel = runner.kernel_of(item)
    evidence = Evidence(item.nodeid, kernel)
    with ExitStack() as stack:
        try:
            shape, _ = runner.shape_of(item)
            if runner.coverage is not None:
                runner.coverage.prepare(shape)
            lease = stack.enter_context(runner.rig.lease(kernel, shape, own=True))
        except (KernrigError, DeadlineError) as error:
            pytest.fail(f"INFRA: no machine could be made: {error}", pytrace=False)
        vm = Vm(lease.machine, runner.rig, kernel, shape, runner.coverage)
        stack.callback(lambda: vm.machine.close())
        yield vm
        vm.leave()
        verdict = _judge(vm, item)
        evidence.console = lambda: vm.console_text + vm.machine.console_text()
        evidence.command_line = vm.machine.process.arguments
        text = explain(verdict)
        text = runner.keep(evidence, text, failed=verdict.outcome.failed or _failed(item))
        if verdict.outcome.failed:
            pytest.fail(text, pytrace=False)


def _failed(item: pytest.Item) -> bool:
    """Whether the test's call failed: the runner's hook notes that on the item."""
    return bool(item.stash.get(CALL_FAILED, False))


def _judge(vm: Vm, item: pytest.Item) -> Verdict:
    """The kernel's side of the outcome, from the console (all levels are printed there)."""
    console = vm.console_text + vm.console.text()
    expected = tuple(
        ExpectedSplat(*marker.args, **marker.kwargs) for marker in item.iter_markers("expect_splat")
    )
    splats = find_splats(parse_console(console))
    end: MachineEnd | None = None
    if vm.machine.ended():
        last = vm.machine.end()
        end = (
            MachineEnd(End.PANIC, exit_status=last.status)
            if last.panicked
            else end_of_qemu(last.status if last.status is not None else -9)
        )
    if vm.expected_end is not None:
        splats = tuple(splat for splat in splats if not splat.fatal) if end is not None else splats
        end = None
    reports = [PhaseReport(when, "passed") for when in ("setup", "call", "teardown")]
    return judge(
        reports=reports, splats=splats, expected=expected, end=end, console_tail=console.splitlines()[-20:]
    )


__all__ = ["GuestError", "MachineLostError", "Vm", "lend"]
