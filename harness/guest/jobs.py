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
import itertools
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

from harness.guest import objects
from harness.guest.fingerprint import Fingerprint
from harness.guest.kmsg import Mark
from harness.guest.session import Send, WarmSession
from harness.guest.state import TAINTED, State
from harness.guest.wake import wake

STANDBY_SOCKET = "/run/kernrig/standby.sock"
# Native seconds: frees that wait for RCU-tasks grace periods take some tenths of one.
SETTLE_SECONDS = 1.5
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
        send = _sender(connection)
        state = changes(before)
        if state.inventory is not before.inventory:
            _try(send, {"type": "settling"})
            state = changes(before, SETTLE_SECONDS)
        end = _end(self._log, os.waitstatus_to_exitcode(status))
        if state != before:
            end |= {"before": before.to_json(), "after": state.to_json()}
        _try(send, end)

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


class Standby(Job):
    """A child that was forked and has rehearsed before the machine was frozen, and takes one job by itself.

    Forking a large process and running pytest in it for the first time costs a clone thousands of page faults and
    translated blocks; this way the template has paid for them. The child listens on a socket of its own. It hands its
    connection to the agent, which looks at it only when the child has ended without having told the host its end.
    """

    def __init__(self, session: WarmSession, fingerprint: Fingerprint) -> None:
        listener = listen(STANDBY_SOCKET)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = Mark.now()
        self._stacks = os.memfd_create("stacks")
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _Understudy(listener, theirs, session, fingerprint, self._log, self._stacks).perform()
        listener.close()
        theirs.close()
        self._channel.recv(1)

    def finish(self, status: int) -> None:
        """Tell the host the end, unless the child has done so."""
        data, fds = b"", []
        while True:
            part, more, _, _ = socket.recv_fds(self._channel, 16, 1)
            fds += more
            if not part:
                break
            data += part
        if fds:
            with socket.socket(fileno=fds[0]) as connection:
                if data != b"job,done":
                    self._tell_end(connection, status)
        self._channel.close()
        self._close()


class _Understudy:
    """The standby's life in the child."""

    def __init__(
        self,
        listener: socket.socket,
        channel: socket.socket,
        session: WarmSession,
        fingerprint: Fingerprint,
        log: Mark,
        stacks: int,
    ) -> None:
        self._agent = os.getppid()
        self._listener = listener
        self._channel = channel
        self._session = session
        self._fingerprint = fingerprint
        self._log = log
        self._stacks = stacks

    def perform(self) -> NoReturn:
        """Rehearse, say so, wait for the job, do it."""
        try:
            _become_child(self._stacks)
            self._session.rehearse(_discard)
            gc.collect()
            self._channel.send(b".")
            connection, _ = self._listener.accept()
            socket.send_fds(self._channel, [b"job"], [connection.fileno()])
            request = _read_request(connection)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        _work(connection, self._session, request, lambda: self._conclude(connection))

    def _conclude(self, connection: socket.socket) -> None:
        """If nothing at all was left behind, tell the host so at once: no need to wait for this process's end, which
        is long for its size. Else the agent will find out what it is."""
        if threading.active_count() > 1 or _has_children() or os.getppid() != self._agent:
            return
        kept = sorted((connection.fileno(), self._channel.fileno(), self._log.fileno()))
        for low, high in itertools.pairwise((2, *kept, 1 << 16)):
            os.closerange(low + 1, high)
        if self._fingerprint.same():
            _try(_sender(connection), _end(self._log, 0))
            self._channel.send(b",done")


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _end(log: Mark, status: int) -> dict[str, Any]:
    """The last message of a job: how its process ended, and the kernel's log."""
    return {"type": "end", "status": status, "log": log.raw().decode("utf-8", "replace")}


def listen(path: str) -> socket.socket:
    """A listening unix socket that only root may use."""
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    return listener


def _discard(message: dict[str, Any]) -> None:
    """Where the rehearsal's reports go."""
    json.dumps(message)


def _read_request(connection: socket.socket, seconds: float | None = None) -> dict[str, Any]:
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
        request = _read_request(connection, _REQUEST_SECONDS)
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
            _become_child(stacks)
        except BaseException:
            os._exit(1)
        _work(connection, session, request)
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


def _become_child(stacks: int) -> None:
    """Let go of what is the agent's; `stacks` takes the Python stacks when SIGUSR2 asks for them."""
    gc.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)


def _work(
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
        send = _sender(connection)
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
