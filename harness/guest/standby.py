# SPDX-License-Identifier: MIT
"""The child that was forked before the machine was frozen, and takes a clone's first job by itself."""

from __future__ import annotations

import gc
import itertools
import json
import os
import socket
import threading
import traceback
from typing import Any, NoReturn

from harness.guest import kmemleak
from harness.guest.fingerprint import Fingerprint
from harness.guest.jobs import Job, become_child, end, listen, read_request, sender, tell, work
from harness.guest.kmsg import Mark
from harness.guest.session import WarmSession

STANDBY_SOCKET = "/run/kernrig/standby.sock"


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
            become_child(self._stacks)
            self._session.rehearse(_discard)
            gc.collect()
            self._channel.send(b".")
            connection, _ = self._listener.accept()
            socket.send_fds(self._channel, [b"job"], [connection.fileno()])
            request = read_request(connection)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        work(connection, self._session, request, lambda: self._conclude(connection))

    def _conclude(self, connection: socket.socket) -> None:
        """If nothing at all was left behind, tell the host so at once: no need to wait for this process's end, which
        is long for its size. Else the agent will find out what it is."""
        if (
            kmemleak.active()
            or threading.active_count() > 1
            or _has_children()
            or os.getppid() != self._agent
        ):
            return
        kept = sorted((connection.fileno(), self._channel.fileno(), self._log.fileno()))
        for low, high in itertools.pairwise((2, *kept, 1 << 16)):
            os.closerange(low + 1, high)
        if self._fingerprint.same():
            tell(sender(connection), end(self._log, 0))
            self._channel.send(b",done")


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _discard(message: dict[str, Any]) -> None:
    """Where the rehearsal's reports go."""
    json.dumps(message)
