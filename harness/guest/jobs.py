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
import random
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.guest import kmemleak, objects
from harness.guest.kmsg import Mark
from harness.guest.session import Send, WarmSession
from harness.guest.state import TAINTED, State
from harness.guest.wake import wake

# Native seconds: frees that wait for RCU-tasks grace periods take some tenths of one.
SETTLE_SECONDS = 1.5
_REQUEST_SECONDS = 10.0
_STACK_SECONDS = 2.0


def sender(connection: socket.socket) -> Send:
    """A function that sends one message, whole, from whatever thread."""
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            connection.sendall(data)

    return send


def tell(send: Send, message: dict[str, Any]) -> None:
    """Tell the host, unless it has gone away."""
    with contextlib.suppress(OSError):
        send(message)


def changes(before: State, seconds: float = 0) -> State:
    """The state now, after deferred frees had at most so long; its inventory is `before`'s own when nothing is left."""
    inventory = objects.settle(before.inventory, seconds)
    return State(int(TAINTED.read_text()), inventory)


class Job:
    """A child at work, the connection that waits for its end, and the kernel's log since its start."""

    def __init__(self, pid: int, connection: socket.socket, log: Mark, stacks: int) -> None:
        self.pid = pid
        self._connection = connection
        self._log = log
        self._stacks = stacks

    def finish(self, status: int) -> None:
        """Called when the child was reaped: wait for deferred frees, then tell the host what is different now."""
        self._tell_end(self._connection, status)
        self._close()
        self._connection.close()

    def _close(self) -> None:
        self._log.close()
        os.close(self._stacks)

    def _tell_end(self, connection: socket.socket, status: int) -> None:
        before = State.baseline
        assert before is not None
        send = sender(connection)
        state = changes(before)
        if state.inventory is not before.inventory:
            tell(send, {"type": "settling"})
            state = changes(before, SETTLE_SECONDS)
        if kmemleak.active():
            tell(send, {"type": "settling", "seconds": kmemleak.SECONDS})
            kmemleak.scan()
        message = end(self._log, os.waitstatus_to_exitcode(status))
        if state != before:
            message |= {"before": before.to_json(), "after": state.to_json()}
        tell(send, message)

    def describe(self) -> dict[str, Any]:
        """Where the child's threads are, in Python and in the kernel, for a scenario that does not end.

        The kernel's stacks are read first: the signal that asks for Python's ends a pause(), and may so end the child.
        """
        tasks = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir(), key=lambda path: int(path.name)):
            try:
                stack = (task / "stack").read_text()
            except OSError:
                stack = ""
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            tasks.append({"tid": int(task.name), "state": state, "stack": stack})
        os.kill(self.pid, signal.SIGUSR2)  # faulthandler writes to the memory file, see become_child
        python = self._python_stacks()
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


def end(log: Mark, status: int) -> dict[str, Any]:
    """The last message of a job: how its process ended, and the kernel's log."""
    return {"type": "end", "status": status, "log": log.raw().decode("utf-8", "replace")}


def listen(path: str) -> socket.socket:
    """A listening unix socket that only root may use."""
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    return listener


def read_request(connection: socket.socket, seconds: float | None = None) -> dict[str, Any]:
    """The one line that the host sends; it has `seconds` for it, as nobody else is served meanwhile."""
    if seconds is not None:
        connection.settimeout(seconds)
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise OSError("the host hung up before it asked for anything")
        data += part
    if seconds is not None:
        connection.settimeout(None)
    request: dict[str, Any] = json.loads(data)
    return request


def start(connection: socket.socket, session: WarmSession, running: dict[int, Job]) -> Job | None:
    """Carry out the request on this connection: a job in a new child, a ping at once."""
    try:
        request = read_request(connection, _REQUEST_SECONDS)
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
        try:
            become_child(stacks)
        except BaseException:
            os._exit(1)
        work(connection, session, request)
    return Job(pid, connection, log, stacks)


def _ping(connection: socket.socket, running: dict[int, Job]) -> None:
    tell(sender(connection), {"type": "pong", "jobs": [job.describe() for job in running.values()]})
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


def become_child(stacks: int) -> None:
    """Let go of what is the agent's; `stacks` takes the Python stacks when SIGUSR2 asks for them."""
    gc.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)


def work(
    connection: socket.socket,
    session: WarmSession,
    request: dict[str, Any],
    conclude: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Do the job in this child; `conclude` is called after it."""
    status = 1
    try:
        if "wake" in request:
            wake(request["wake"])
        random.seed()
        os.environ.update(request.get("environment", {}))
        send = sender(connection)
        tell(send, {"type": "begun"})
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
        conclude()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
