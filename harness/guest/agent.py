# SPDX-License-Identifier: MIT
"""The warm agent: holds a collected pytest session and forks one child per job.

It takes over from the image's boot.py when a scenario tree was loaded. Until the machine is frozen it speaks with the
host over the control port; in a clone it listens on a unix socket, which the host reaches through SSH. A job is one
line of JSON, answered by lines of JSON (see `jobs.py`); everything the host needs to judge a scenario is in them.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.guest import jobs, kmemleak, pace, warmup
from harness.guest.fingerprint import Fingerprint
from harness.guest.session import WarmSession
from harness.guest.standby import Standby
from harness.guest.state import State
from harness.guest.wake import wake

SOCKET = "/run/kernrig/agent.sock"


class Control(Protocol):
    """The message port that boot.py opened."""

    def fileno(self) -> int: ...
    def receive(self) -> dict[str, Any]: ...
    def send(self, raw: bytes = b"", **message: Any) -> None: ...


class SshServer(Protocol):
    """The SSH server that boot.py started."""

    pid: int

    def start(self) -> None: ...


class Agent:
    """Serves the control port, the job socket and dead children in one loop."""

    def __init__(self, control: Control, ssh: SshServer, session: WarmSession) -> None:
        self._control = control
        self._ssh = ssh
        self._session = session
        self._jobs: dict[int, jobs.Job] = {}
        self._wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listener = jobs.listen(SOCKET)

    def get_ready(self) -> None:
        """Take the baseline and make the standby; afterwards do once what a job's end will do, as the fork made all
        pages shared again."""
        gc.collect()
        gc.freeze()
        gc.enable()
        if kmemleak.active():
            kmemleak.scan()  # what the boot has left is no scenario's
        State.baseline = State.take()
        standby = Standby(self._session, Fingerprint())
        self._jobs[standby.pid] = standby
        for _ in range(2):
            jobs.changes(State.baseline)

    def _handle_control(self) -> None:
        message = self._control.receive()
        if message["op"] == "wake":
            wake(message)

    def _reap(self) -> None:
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._ssh.pid:
                self._ssh.start()
            elif (job := self._jobs.pop(pid, None)) is not None:
                job.finish(status)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        job = jobs.start(connection, self._session, self._jobs)
        if job is not None:
            self._jobs[job.pid] = job

    def serve(self) -> None:
        """For ever."""
        poller = select.poll()
        for fd in (self._control.fileno(), self._listener.fileno(), self._wakeup):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _ in sorted(poller.poll(), key=lambda ready: ready[0] != self._control.fileno()):
                if fd == self._control.fileno():
                    self._handle_control()
                elif fd == self._wakeup:
                    self._reap()
                else:
                    self._accept()


def main(control: Control, ssh: SshServer, load: dict[str, Any], new_bytecode: Callable[[], bytes]) -> None:
    """Collect the scenarios, warm up, then serve for ever. `new_bytecode` packs what was compiled for that."""
    gc.disable()  # nothing but growth until everything is collected; see get_ready
    os.environ.update(load["environment"])
    session = WarmSession(Path(load["root"]), load["paths"], load["options"])
    agent = Agent(control, ssh, session)
    warmup.warm_up()
    sys.dont_write_bytecode = True
    compiled = new_bytecode()
    agent.get_ready()
    items = [item.nodeid for item in session.items]
    seconds = pace.seconds()
    ssh_ended = os.waitid(os.P_PID, ssh.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    control.send(compiled, loaded=1, items=items, errors=session.errors, seconds=seconds, ssh_ended=ssh_ended)
    sys.stdout.flush()
    agent.serve()
