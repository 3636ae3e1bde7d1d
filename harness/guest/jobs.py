# SPDX-License-Identifier: MIT
"""Jobs: what the host asks of the warm agent, each carried out in a forked child.

Request, one line: {"op": "run", "nodeid", "options", "environment"} runs one scenario; {"op": "call", "target":
"module:function", "args", "kwargs"} calls a guest function; {"op": "ping"} is answered at once with what runs.
Answers, one line each: "report", "warning", "missing" (see session.py), "output" (live output), "result" or "error" of
a call, and at last "end" with what happened to the kernel meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from harness.guest import objects
from harness.guest.kmsg import Mark
from harness.guest.session import Send, WarmSession
from harness.guest.state import State

SETTLE_SECONDS = 10.0
_REQUEST_SECONDS = 10.0
_STACK_SECONDS = 2.0


def _sender(connection: socket.socket) -> Send:
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            connection.sendall(data)

    return send


def _try(send: Send, message: dict[str, Any]) -> None:
    """Tell the host, unless it has gone away."""
    with contextlib.suppress(OSError):
        send(message)


class Job:
    """A child at work, the connection that waits for its end, and the kernel's log since its start."""

    def __init__(self, pid: int, connection: socket.socket, log: Mark, stacks: int) -> None:
        self.pid = pid
        self._connection = connection
        self._log = log
        self._stacks = stacks

    def finish(self, status: int) -> None:
        """Called when the child was reaped: wait for deferred frees, then tell the host what is different now."""
        before = State.baseline
        assert before is not None
        send = _sender(self._connection)
        after = objects.settle(before.inventory, 0)
        if after is not before.inventory:
            _try(send, {"type": "settling"})
            after = objects.settle(before.inventory, SETTLE_SECONDS)
        state = State(int(Path("/proc/sys/kernel/tainted").read_text()), after)
        log = self._log.raw().decode("utf-8", "replace")
        end: dict[str, Any] = {
            "type": "end",
            "status": os.waitstatus_to_exitcode(status),
            "log": log,
        }
        if state != before:
            end |= {"before": before.to_json(), "after": state.to_json()}
        self._log.close()
        os.close(self._stacks)
        _try(send, end)
        self._connection.close()

    def describe(self) -> dict[str, Any]:
        """Where the child's threads are, in Python and in the kernel, for a scenario that does not end."""
        os.kill(self.pid, signal.SIGUSR2)  # faulthandler writes to the memory file, see _child
        python = self._python_stacks()
        tasks = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir(), key=lambda path: int(path.name)):
            try:
                stack = (task / "stack").read_text()
            except OSError:
                stack = ""
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            tasks.append({"tid": int(task.name), "state": state, "stack": stack})
        return {"pid": self.pid, "tasks": tasks, "python": python}

    def _python_stacks(self) -> str:
        """What faulthandler wrote, as soon as it has ended; nothing when the child can't take signals."""
        end = time.monotonic() + _STACK_SECONDS
        size = -1
        while time.monotonic() < end:
            before, size = size, os.fstat(self._stacks).st_size
            if size > 0 and size == before:
                break
            time.sleep(0.05)
        return os.pread(self._stacks, max(size, 0), 0).decode("utf-8", "replace")


def _read_request(connection: socket.socket) -> dict[str, Any]:
    connection.settimeout(_REQUEST_SECONDS)
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise OSError("the host hung up before it asked for anything")
        data += part
    connection.settimeout(None)
    request: dict[str, Any] = json.loads(data)
    return request


def start(connection: socket.socket, session: WarmSession, running: dict[int, Job]) -> Job | None:
    """Carry out the request on this connection: fork for a job, answer a ping at once."""
    try:
        request = _read_request(connection)
    except (OSError, ValueError):
        connection.close()
        return None
    if request["op"] == "ping":
        _ping(connection, running)
        return None
    log = Mark.now()
    stacks = os.memfd_create("stacks")
    pid = os.fork()
    if pid == 0:
        _child(connection, session, request, stacks)
    return Job(pid, connection, log, stacks)


def _ping(connection: socket.socket, running: dict[int, Job]) -> None:
    _try(_sender(connection), {"type": "pong", "jobs": [job.describe() for job in running.values()]})
    connection.close()


def _stream_output(send: Send) -> threading.Thread:
    """Make standard output and error a pipe whose content goes to the host as it comes."""
    read_end, write_end = os.pipe()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)

    def forward() -> None:
        while data := os.read(read_end, 65536):
            send({"type": "output", "text": data.decode("utf-8", "replace")})

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    return thread


def _close_output(thread: threading.Thread) -> None:
    for stream in (1, 2):
        os.close(stream)
    thread.join(5)


def _call(request: dict[str, Any], send: Send) -> None:
    try:
        module, _, name = request["target"].partition(":")
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        send({"type": "result", "value": function(*request["args"], **request["kwargs"])})  # type: ignore[operator]
    except BaseException as error:
        text = traceback.format_exc()
        send({"type": "error", "exception": type(error).__name__, "text": str(error), "traceback": text})


def _child(
    connection: socket.socket, session: WarmSession, request: dict[str, Any], stacks: int | None = None
) -> None:
    """The forked child: never returns. `stacks` takes the Python stacks when SIGUSR2 asks for them."""
    status = 1
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.update(request.get("environment", {}))
        send = _sender(connection)
        if stacks is not None:
            faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)
        if request["op"] == "run":
            live = request["options"].get("capture") == "no"
            thread = None
            if live:
                session.stop_capturing()
                thread = _stream_output(send)
            session.run(request["nodeid"], request["options"], send)
            if thread is not None:
                _close_output(thread)
        else:
            _call(request, send)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def rehearse(session: WarmSession) -> None:
    """One trial job in a child, so that what a first job needs (pages, directory entries) is there in each clone."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        request = {"op": "run", "nodeid": "", "options": {}}
        _child(theirs, session, request)
    theirs.close()
    while ours.recv(65536):
        pass
    ours.close()
    os.waitpid(pid, 0)
