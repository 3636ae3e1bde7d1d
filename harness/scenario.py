# SPDX-License-Identifier: MIT
"""One scenario on one machine: give it to the agent, collect what comes back, judge it."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError
from harness.evidence import Evidence
from harness.ssh import SshError
from harness.tree import GUEST_ROOT
from harness.verdict import (
    End,
    ExpectedSplat,
    Inventory,
    MachineEnd,
    PhaseReport,
    Record,
    Verdict,
    end_of_qemu,
    find_splats,
    judge,
    leaks,
    lost_records,
    parse_console,
    parse_kmsg,
    render,
)
from harness.vm.machine import Machine, MachineLostError

CONSOLE_TAIL_LINES = 20
# Written by the guest's init (images/overlay/init), which then powers off.
_AGENT_ENDED = re.compile(r"the guest's agent has ended with status \d+")
# What kernel_power_off() and kernel_halt() print (kernel/reboot.c). QEMU ends with status 0 after a reset, too.
_SWITCHED_OFF = re.compile(r"reboot: (Power down|System halted)")
# The ways to end that say nothing of the scenario if the guest has not begun with it.
_NOT_TAKEN = (End.HANG, End.DEADLINE, End.CONNECTION)
_SYSRQ = (("l", "backtraces of all CPUs"), ("w", "blocked tasks"), ("m", "memory"))


@dataclass(frozen=True)
class Job:
    """What to run: the node id in the guest, pytest's options that matter there, the deadline in seconds before the
    slow factor, and the splats that the scenario announces."""

    nodeid: str
    options: dict[str, Any]
    seconds: float
    expected: tuple[ExpectedSplat, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Finished:
    """What came of it. `reports` are pytest's, serialised, in order; `taken`: whether the guest began with it."""

    verdict: Verdict
    reports: list[dict[str, Any]]
    evidence: Evidence
    taken: bool = True


@dataclass
class _Heard:
    """What the guest has said so far."""

    begun: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    collection_errors: list[dict[str, str]] | None = None


Listener = Callable[[dict[str, Any]], None]


def run(
    machine: Machine, job: Job, evidence: Evidence, listen: Listener, *, rerun: str | None = None
) -> Finished:
    """Run the job; `listen` gets each message as it comes. Never raises for what guest, kernel or QEMU do."""
    console_mark = machine.process.console.size()
    heard = _Heard()
    end: MachineEnd | None = None
    deadline = Deadline.after(job.seconds * machine.stretch, f"{job.nodeid} to end")
    request = {
        "op": "run",
        "nodeid": job.nodeid,
        "options": job.options,
        "environment": job.environment,
    }
    try:
        for message in machine.job(request, deadline=deadline):
            _hear(message, heard)
            listen(message)
    except DeadlineError:
        end = _too_late(machine, evidence)
    except MachineLostError as lost:
        end = _lost(machine, lost)
    except (SshError, OSError) as error:
        end = _lost(machine, MachineLostError(str(error)))
    if end is not None and end.how in _NOT_TAKEN and not heard.begun:
        end = MachineEnd(End.NOT_TAKEN, str(end))
    return _finish(machine, job, heard, end, evidence, console_mark, rerun)


def _hear(message: dict[str, Any], heard: _Heard) -> None:
    heard.begun = True
    match message["type"]:
        case "report":
            heard.reports.append(message["report"])
        case "end":
            heard.end = message
        case "missing":
            heard.collection_errors = message["errors"]


def _lost(machine: Machine, lost: MachineLostError) -> MachineEnd:
    """Why the machine is gone, from QEMU's exit status and the console."""
    end = machine.end()
    if (said := _AGENT_ENDED.search(machine.process.console.text())) is not None:
        return MachineEnd(End.AGENT_KILLED, said[0])
    if end.panicked:
        return MachineEnd(End.PANIC, exit_status=end.status)
    if end.status is not None:
        off = _SWITCHED_OFF.search(machine.process.console.text()) is not None
        return end_of_qemu(end.status, panicked=end.panicked, reset=not off)
    if "agent" in lost.how:
        return MachineEnd(End.AGENT_KILLED, lost.how)
    return MachineEnd(End.CONNECTION, lost.how)


def _too_late(machine: Machine, evidence: Evidence) -> MachineEnd:
    """The deadline has passed: ask the agent what goes on; when it is silent too, the kernel by its console."""
    answer = machine.ping()
    if answer is not None:
        tasks = [task for job in answer["jobs"] for task in job["tasks"]]
        text = "\n".join(f"thread {task['tid']} ({task['state']}):\n{task['stack']}" for task in tasks)
        python = "\n".join(job.get("python", "") for job in answer["jobs"])
        evidence.notes["stacks"] = text + "\n" + python
        stuck = bool(tasks) and all(task["state"] == "D" for task in tasks)
        machine.end()
        return MachineEnd(End.TASK_STUCK if stuck else End.DEADLINE, _where(python))
    if machine.ended():
        return _lost(machine, MachineLostError("the machine ended"))
    _ask_console(machine)
    evidence.notes["registers"] = _registers(machine)
    machine.end()
    return MachineEnd(End.PANIC if machine.process.console.panicked.is_set() else End.HANG)


def _where(python: str) -> str:
    """The innermost frame of a Python stack that faulthandler wrote, in one line."""
    frames = [line.strip() for line in python.splitlines() if line.strip().startswith("File ")]
    return f"it was at {frames[0]}" if frames else ""


def _ask_console(machine: Machine) -> None:
    """sysrq over the serial port: works as long as interrupts do."""
    console = machine.process.console
    try:
        monitor = machine.process.monitor()
        for key, _ in _SYSRQ:
            monitor.execute("chardev-send-break", {"id": "console"}, seconds=5)
            mark = console.size()
            console.send(key)
            _quiet(machine, mark, Deadline.after(2, "sysrq", scaled=False))
    except (KernrigError, DeadlineError, OSError):
        pass  # what the console says then is all there is


def _quiet(machine: Machine, mark: int, deadline: Deadline) -> None:
    """Wait until the console, having said something after `mark`, says no more for a moment."""
    import pexpect

    console = machine.process.console
    while not deadline.passed():
        try:
            console.read_nonblocking(65536, timeout=0.3)
        except pexpect.TIMEOUT:
            if console.size() > mark:
                return
        except pexpect.EOF:
            return


def _registers(machine: Machine) -> str:
    try:
        said = machine.process.monitor().execute(
            "human-monitor-command", {"command-line": "info registers -a"}, seconds=5
        )
    except (KernrigError, DeadlineError) as error:
        return f"QEMU did not tell the registers: {error}"
    return str(said)


def _finish(
    machine: Machine,
    job: Job,
    heard: _Heard,
    end: MachineEnd | None,
    evidence: Evidence,
    console_mark: int,
    rerun: str | None,
) -> Finished:
    console = machine.process.console.since(console_mark)
    records: Sequence[Record] = parse_console(console)
    before = after = None
    if heard.end is not None:
        records = parse_kmsg(heard.end["log"])
        before, after = heard.end.get("before"), heard.end.get("after")
        status = heard.end["status"]
        if status != 0 and end is None:
            end = _process_end(status)
    if heard.collection_errors is not None:
        end = MachineEnd(End.HARNESS, _not_collected(job, heard.collection_errors))
    evidence.console = machine.console_text
    evidence.kernel_log = render(records)
    evidence.reports = heard.reports
    evidence.command_line = machine.process.arguments
    evidence.facts |= {"qemu_status": machine.process.status(), "before": before, "after": after}
    verdict = judge(
        reports=[_phase(report) for report in heard.reports],
        splats=find_splats(records),
        expected=job.expected,
        taint_before=before["tainted"] if before else 0,
        taint_after=after["tainted"] if after else None,
        leaks=leaks(Inventory.from_json(before["inventory"]), Inventory.from_json(after["inventory"]))
        if before and after
        else (),
        end=end,
        console_tail=console.splitlines()[-CONSOLE_TAIL_LINES:] if end is not None else (),
        lost_records=lost_records(records) if heard.end is not None else 0,
        rerun=rerun,
    )
    return Finished(verdict, heard.reports, evidence, taken=end is None or end.how is not End.NOT_TAKEN)


def _process_end(status: int) -> MachineEnd:
    """The scenario's process ended without having made its reports. When that was the kernel's doing (an oops, the OOM
    killer), the log says so."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return MachineEnd(End.PROCESS, how)


def _not_collected(job: Job, errors: list[dict[str, str]]) -> str:
    file = job.nodeid.split("::", 1)[0]
    text = next((error["text"] for error in errors if error["nodeid"] == file), "")
    if text:
        return f"{file} could not be collected in the guest:\n{text}"
    return f"the guest did not collect {job.nodeid}: are its parameters the same at each collection?"


def _phase(report: dict[str, Any]) -> PhaseReport:
    longrepr = report.get("longrepr")
    where = ""
    if isinstance(longrepr, dict):
        crash = longrepr.get("reprcrash") or {}
        message = str(crash.get("message", "")).split("\n", 1)[0]
        where = _place(longrepr, report.get("nodeid", "").partition("::")[0])
    elif isinstance(longrepr, list | tuple):
        message = str(longrepr[-1])
    else:
        message = str(longrepr or "").strip().rsplit("\n", 1)[-1]
    return PhaseReport(report["when"], report["outcome"], message, "wasxfail" in report, where)


def _place(longrepr: dict[str, Any], file: str) -> str:
    """Where a test failed: the innermost line of its own file, and the line that raised when that is elsewhere (each
    refused system call is raised by the same one)."""
    crash = longrepr.get("reprcrash") or {}
    path = str(crash.get("path", "")).removeprefix(f"{GUEST_ROOT}/")
    raised = f"{path}:{crash.get('lineno', '')}" if crash else ""
    entries = (longrepr.get("reprtraceback") or {}).get("reprentries") or []
    places = [(entry.get("data") or {}).get("reprfileloc") or {} for entry in entries]
    own = [place for place in places if file and str(place.get("path", "")).endswith(file)]
    if not own:
        return raised
    inner = f"{own[-1]['path']}:{own[-1]['lineno']}"
    return inner if own[-1] is places[-1] or not raised else f"{inner}:{raised}"
