# SPDX-License-Identifier: MIT
"""Jobs: what the host asks of the warm agent, each carried out in a forked child.

Request, one line: {"op": "run", "nodeid", "options", "environment"} runs one scenario; {"op": "call", "target":
"module:function", "args", "kwargs"} calls a guest function; {"op": "ping"} is answered at once with what runs.
Answers, one line each: "report", "warning", "missing" (see session.py), "output" (live output), "result" or "error" of
a call, and at last "end" with what happened to the kernel meanwhile.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import Any

from harness.guest import objects
from harness.guest.session import Send, WarmSession
from harness.guest.state import KernelLog, State

SETTLE_SECONDS = 10.0
_REQUEST_SECONDS = 10.0


def _sender(connection: socket.socket) -> Send:
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            connection.sendall(data)

    return send


class Job:
    """A child at work, the connection that waits for its end, and the kernel's log since its start."""

    def __init__(self, pid: int, connection: socket.socket, log: KernelLog) -> None:
        self.pid = pid
        self._connection = connection
        self._log = log

    def finish(self, status: int) -> None:
        """Called when the child was reaped: wait for deferred frees, then tell the host what is different now."""
        before = State.baseline
        assert before is not None
        after = objects.settle(before.inventory, SETTLE_SECONDS)
        state = State(int(Path("/proc/sys/kernel/tainted").read_text()), after)
        end: dict[str, Any] = {"type": "end", "status": os.waitstatus_to_exitcode(status), "log": self._log.read()}
        if state != before:
            end |= {"before": before.to_json(), "after": state.to_json()}
        self._log.close()
        try:
            _sender(self._connection)(end)
        except OSError:
            pass  # the host has gone away; there is nobody left to tell
        self._connection.close()

    def describe(self) -> dict[str, Any]:
        """Where the child and its threads are in the kernel, for a scenario that does not end."""
        tasks = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir(), key=lambda path: int(path.name)):
            try:
                stack = (task / "stack").read_text()
            except OSError:
                stack = ""
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            tasks.append({"tid": int(task.name), "state": state, "stack": stack})
        return {"pid": self.pid, "tasks": tasks}


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
    log = KernelLog()
    pid = os.fork()
    if pid == 0:
        _child(connection, session, request)
    return Job(pid, connection, log)


def _ping(connection: socket.socket, running: dict[int, Job]) -> None:
    for job in running.values():
        os.kill(job.pid, signal.SIGUSR2)  # the child's Python stack goes to its standard error, see _child
    try:
        _sender(connection)({"type": "pong", "jobs": [job.describe() for job in running.values()]})
    except OSError:
        pass
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


def _child(connection: socket.socket, session: WarmSession, request: dict[str, Any]) -> None:
    """The forked child: never returns."""
    status = 1
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.update(request.get("environment", {}))
        send = _sender(connection)
        if request["op"] == "run":
            faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
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
