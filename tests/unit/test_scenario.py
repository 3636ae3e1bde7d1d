# SPDX-License-Identifier: MIT
"""The host's half of a job, against messages that a guest sent once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.deadline import Deadline, DeadlineError
from harness.evidence import Evidence
from harness.scenario import Job, run
from harness.ssh import SshError
from harness.verdict import End, Outcome
from harness.vm import machine as machines
from harness.vm.machine import Machine, MachineLostError

NODEID = "scenarios/test_x.py::test_x"
EMPTY: dict[str, list[Any]] = {
    kind: [] for kind in ("progs", "maps", "links", "btfs", "modules", "netns", "pins")
}


def phase(when: str, outcome: str = "passed") -> dict[str, Any]:
    report = {"when": when, "outcome": outcome, "longrepr": "E   assert 0" if outcome == "failed" else None}
    return {"type": "report", "report": report}


PASSED = [phase(when) for when in ("setup", "call", "teardown")]
CLEAN_END = {"type": "end", "status": 0, "log": ""}


class Console:
    def __init__(self, text: str) -> None:
        self._text = text

    def size(self) -> int:
        return 0

    def since(self, mark: int) -> str:
        return self._text[mark:]

    text = property(lambda self: lambda: self._text)


class FakeMachine:
    """Says what it is told to, then fails as it is told to; `status` is QEMU's."""

    stretch = 1.0

    def __init__(
        self,
        messages: list[dict[str, Any]],
        failure: Exception | None = None,
        *,
        console: str = "",
        status: int | None = None,
        pong: dict[str, Any] | None = None,
    ) -> None:
        self._messages, self._failure, self._status, self._pong = messages, failure, status, pong
        self.process = SimpleNamespace(console=Console(console), arguments=["qemu"], status=lambda: status)
        self.requests: list[dict[str, Any]] = []

    def job(self, request: dict[str, Any], *, deadline: Deadline) -> Iterator[dict[str, Any]]:
        self.requests.append(request)
        yield from self._messages
        if self._failure is not None:
            raise self._failure

    def console_text(self) -> str:
        return str(self.process.console.text())

    def ping(self) -> dict[str, Any] | None:
        return self._pong

    def ended(self, *, wait: float = 0) -> bool:
        return self._status is not None

    def end(self) -> machines.End:
        return machines.End(self._status, "", "Kernel panic" in self.process.console.text())


def finish(machine: FakeMachine) -> Any:
    evidence = Evidence(NODEID, "debian")
    return run(cast(Machine, machine), Job(NODEID, {}, 5), evidence, lambda message: None)


@pytest.mark.parametrize("failure", [SshError("reset"), DeadlineError("waited 5 s")])
def test_who_has_said_nothing_has_not_begun(failure: Exception) -> None:
    pong: dict[str, Any] = {"jobs": []}
    assert not finish(FakeMachine([], failure, pong=pong)).taken
    assert finish(FakeMachine([{"type": "begun"}], failure, pong=pong)).taken


def test_messages_are_passed_on_as_they_come() -> None:
    heard: list[dict[str, Any]] = []
    machine = FakeMachine([*PASSED, CLEAN_END])
    finished = run(
        cast(Machine, machine), Job(NODEID, {"verbose": 1}, 5), Evidence(NODEID, "x"), heard.append
    )
    assert heard == [*PASSED, CLEAN_END]
    assert finished.verdict.outcome is Outcome.PASSED
    assert not finished.verdict.dirty
    assert machine.requests == [{"op": "run", "nodeid": NODEID, "options": {"verbose": 1}, "environment": {}}]


@pytest.mark.parametrize(
    ("log", "outcome"),
    [
        (
            "4,100,9,-;------------[ cut here ]------------\n4,101,9,-;WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n",
            Outcome.KERNEL,
        ),
        ("6,100,9000000,-;a harmless line\n", Outcome.PASSED),
    ],
)
def test_kernel_log_decides(log: str, outcome: Outcome) -> None:
    finished = finish(FakeMachine([*PASSED, CLEAN_END | {"log": log}]))
    assert finished.verdict.outcome is outcome
    assert finished.verdict.dirty == (outcome is Outcome.KERNEL)
    assert finished.evidence.kernel_log


@pytest.mark.parametrize(
    ("tainted", "maps", "outcome"),
    [
        (0, [], Outcome.PASSED),
        (512, [], Outcome.KERNEL),
        (0, [{"id": 7, "name": "left", "extra": {}}], Outcome.TEST),
    ],
)
def test_state_before_and_after_decides(tainted: int, maps: list[Any], outcome: Outcome) -> None:
    states = {
        "before": {"tainted": 0, "inventory": EMPTY},
        "after": {"tainted": tainted, "inventory": EMPTY | {"maps": maps}},
    }
    finished = finish(FakeMachine([*PASSED, CLEAN_END | states]))
    assert finished.verdict.outcome is outcome
    assert finished.verdict.dirty == (outcome is not Outcome.PASSED)


@pytest.mark.parametrize(("status", "words"), [(-signal.SIGKILL, "SIGKILL"), (3, "exit status 3")])
def test_process_that_ends_without_its_reports(status: int, words: str) -> None:
    finished = finish(FakeMachine([phase("setup"), CLEAN_END | {"status": status}]))
    assert finished.verdict.outcome is Outcome.TEST
    assert finished.verdict.end.how is End.PROCESS and words in finished.verdict.reason


LOST = MachineLostError("the machine ended")


@pytest.mark.parametrize(
    ("failure", "console", "status", "how", "outcome"),
    [
        (LOST, "[ 1.0] Kernel panic - not syncing: x\n", 0, End.PANIC, Outcome.KERNEL),
        (LOST, "[ 1.0] reboot: Power down\n", 0, End.HALT, Outcome.KERNEL),
        (LOST, "[ 1.0] reboot: System halted\n", 0, End.HALT, Outcome.KERNEL),
        (LOST, "[ 1.0] reboot: Restarting system\n", 0, End.RESET, Outcome.KERNEL),
        (LOST, "", 0, End.RESET, Outcome.KERNEL),  # a triple fault says nothing
        (LOST, "", -signal.SIGKILL, End.QEMU_KILLED, Outcome.INFRA),
        (LOST, "", -signal.SIGABRT, End.QEMU_ABORTED, Outcome.INFRA),
        (LOST, "kernrig: the guest's agent has ended with status 137\n", 0, End.AGENT_KILLED, Outcome.KERNEL),
        (MachineLostError("the guest's agent hung up"), "", None, End.AGENT_KILLED, Outcome.KERNEL),
        (SshError("no banner"), "", None, End.CONNECTION, Outcome.INFRA),
        (ConnectionResetError("reset"), "", None, End.CONNECTION, Outcome.INFRA),
    ],
)
def test_lost_machine(
    failure: Exception, console: str, status: int | None, how: End, outcome: Outcome
) -> None:
    finished = finish(FakeMachine([phase("setup")], failure, console=console, status=status))
    assert finished.verdict.end.how is how
    assert finished.verdict.outcome is outcome
    assert finished.verdict.dirty


def pong(*states: str) -> dict[str, Any]:
    tasks = [
        {"tid": 9 + n, "state": state, "stack": f"[<0>] f{n}+0x1/0x2\n"} for n, state in enumerate(states)
    ]
    return {
        "jobs": [
            {"pid": 9, "tasks": tasks, "python": '  File "/t/test_x.py", line 3 in test_x\n  File "b"\n'}
        ]
    }


@pytest.mark.parametrize(
    ("answer", "how", "outcome"),
    [
        (pong("S"), End.DEADLINE, Outcome.TEST),
        (pong("D", "S"), End.DEADLINE, Outcome.TEST),
        (pong("D", "D"), End.TASK_STUCK, Outcome.KERNEL),
    ],
)
def test_deadline_in_a_machine_that_answers(answer: dict[str, Any], how: End, outcome: Outcome) -> None:
    finished = finish(FakeMachine([phase("setup")], DeadlineError("waited 5 s"), pong=answer))
    assert finished.verdict.end.how is how
    assert finished.verdict.outcome is outcome
    assert 'it was at File "/t/test_x.py", line 3 in test_x' in finished.verdict.reason
    assert "[<0>] f0+0x1/0x2" in finished.evidence.notes["stacks"]


def test_file_that_the_guest_could_not_collect() -> None:
    errors = [
        {"nodeid": "scenarios/test_x.py", "text": "E   ImportError: nope"},
        {"nodeid": "other.py", "text": "other"},
    ]
    finished = finish(FakeMachine([{"type": "missing", "errors": errors}, CLEAN_END]))
    assert finished.verdict.outcome is Outcome.INFRA
    assert (
        "scenarios/test_x.py could not be collected in the guest:\nE   ImportError: nope"
        in finished.verdict.reason
    )
    assert "other" not in finished.verdict.reason


def test_item_that_the_guest_does_not_know() -> None:
    finished = finish(FakeMachine([{"type": "missing", "errors": []}, CLEAN_END]))
    assert f"the guest did not collect {NODEID}" in finished.verdict.reason


def fingerprint(*places: tuple[str, int], message: str = "OSError: [Errno 22] Invalid argument") -> str:
    files = [{"path": path, "lineno": line, "message": ""} for path, line in places]
    longrepr = {
        "reprcrash": files[-1] | {"message": message},
        "reprtraceback": {
            "reprentries": [{"type": "ReprEntry", "data": {"reprfileloc": file}} for file in files]
        },
    }
    call = {"type": "report", "report": {"when": "call", "outcome": "failed", "nodeid": NODEID}}
    call["report"]["longrepr"] = longrepr  # type: ignore[index]
    finished = finish(FakeMachine([PASSED[0], call, PASSED[2], CLEAN_END]))
    return str(finished.verdict.fingerprint)


def test_failure_is_known_by_its_line_in_the_scenario_and_by_what_was_raised_where() -> None:
    own, call = "scenarios/test_x.py", "harness/guest/bpf/syscall.py"
    refused = fingerprint((own, 7), (call, 80))
    assert refused == f"TEST:{own}:7:{call}:80:OSError: [Errno 22]"
    others = [
        fingerprint((own, 9), (call, 80)),
        fingerprint((own, 7), (call, 81)),
        fingerprint((own, 7), (call, 80), message="OSError: [Errno 16] Device or resource busy"),
        fingerprint((own, 7), message="assert [1, 2] == [2, 1]"),
    ]
    assert len({refused, *others}) == 5
    assert others[-1] == f"TEST:{own}:7:" == fingerprint((own, 7), message="assert [3, 4] == [4, 3]")
    assert fingerprint((own, 7), (f"/opt/kernrig/tree/{call}", 80)) == refused
    assert fingerprint((call, 80)) == f"TEST:{call}:80:OSError: [Errno 22]"
