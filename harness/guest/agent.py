# SPDX-License-Identifier: MIT
"""The warm agent: holds a collected pytest session and forks one child per job.

It takes over from the image's boot.py when a scenario tree was loaded. Until the machine is frozen it speaks with the
host over the control port; in a clone it listens on a unix socket, which the host reaches through SSH. A job is one
line of JSON, answered by lines of JSON (see `jobs.py`); everything the host needs to judge a scenario is in them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from harness.guest import jobs, warmup
from harness.guest.session import WarmSession
from harness.guest.state import State

SOCKET = "/run/kernrig/agent.sock"
RNDADDENTROPY = 0x40085203  # include/uapi/linux/random.h
RNDRESEEDCRNG = 0x5207


class Control(Protocol):
    """The message port that boot.py opened."""

    def fileno(self) -> int: ...
    def receive(self) -> dict[str, Any]: ...
    def send(self, **message: Any) -> None: ...


class SshServer(Protocol):
    """The SSH server that boot.py started."""

    pid: int

    def start(self) -> None: ...


def reseed(seed: bytes) -> None:
    """Credit fresh random bytes to the kernel's pool and make it use them at once (random(4))."""
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(pool, RNDRESEEDCRNG)


class Agent:
    """Serves the control port, the job socket and dead children in one loop."""

    def __init__(self, control: Control, ssh: SshServer, session: WarmSession) -> None:
        self._control = control
        self._ssh = ssh
        self._session = session
        self._awake = False
        self._jobs: dict[int, jobs.Job] = {}
        self._wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        Path(SOCKET).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(SOCKET)
        self._listener.listen(16)

    def wake(self, message: dict[str, Any]) -> None:
        """What has to differ between clones of one template: random state, identity, clock."""
        reseed(bytes.fromhex(message["seed"]))
        time.clock_settime(time.CLOCK_REALTIME, message["time"])
        Path("/etc/machine-id").write_text(message["machine_id"] + "\n")
        os.environ["KERNRIG_SLOW"] = str(message["slow"])
        self._awake = True

    def _handle_control(self) -> None:
        message = self._control.receive()
        match message["op"]:
            case "wake":
                self.wake(message)
            case "settle":
                self._control.send(state=State.take().to_json())

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
        while not self._awake:
            self._handle_control()
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


def main(control: Control, ssh: SshServer, load: dict[str, Any]) -> None:
    """Collect the scenarios, do one trial run in a fork, then serve for ever."""
    os.environ.update(load["environment"])
    session = WarmSession(Path(load["root"]), load["paths"], load["options"])
    agent = Agent(control, ssh, session)
    warmup.warm_up()
    jobs.rehearse(session)
    gc.collect()
    gc.freeze()
    State.baseline = State.take()
    control.send(loaded=1, items=[item.nodeid for item in session.items], errors=session.errors)
    sys.stdout.flush()
    agent.serve()
