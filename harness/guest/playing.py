# SPDX-License-Identifier: MIT
"""What the players of random sequences have in common, whatever the calls are about."""

from __future__ import annotations

import ctypes
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.guest.bpf.attrs import Attr
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import raw_call
from harness.guest.errnos import errno_of
from harness.guest.waiting import WaitTimeout, wait_until

BPFFS = Path("/sys/fs/bpf")
# What nothing has.
NOT_OPEN, NO_ID, NO_PIN = 8191, 0x7FFFFFFF, BPFFS / "kernrig-no-pin"
# In the place of an errno: a call that both sides leave out.
UNTRIED = -2

T = TypeVar("T")


class Staged(ABC):
    """A stage on which objects have names, a context manager that clears it away, also when it could not be set as a
    whole; and the calls about descriptors, paths and ids, which are the same for all objects. Each returns 0 or the
    errno.
    """

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self._fds: dict[str, int] = {}
        self._kinds: dict[str, type[Descriptor]] = {}
        self._pins: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._set()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @abstractmethod
    def _set(self) -> None:
        """Set the stage; what is put on `_stack` is cleared away."""

    def _remember(self, name: str, made: Prog | Map | Link) -> None:
        """Give an object its name; its descriptor is the stage's from now on."""
        self.ids[name], self._kinds[name] = made.id, type(made)
        self._hold(name, made.release())

    def _hold(self, name: str, fd: int) -> None:
        """This is the object's descriptor from now on."""
        self._fds[name] = fd

    def _let_go(self) -> None:
        """Unpin and close all that has got a name."""
        while self._pins:
            self._pins.popitem()[1].unlink()
        for name in [name for name in self._fds if name in self.ids]:
            self._do_close({"name": name})

    def _existing(self) -> set[str]:
        """The names of all that the kernel has still."""
        ids = {kind: set(kind.ids()) for kind in set(self._kinds.values())}
        return {name for name, id in self.ids.items() if id in ids[self._kinds[name]]}

    def _fd(self, name: str | None) -> int:
        return self._fds.get(name or "", NOT_OPEN)

    def _kind_of(self, name: str) -> type[Descriptor]:
        """What is asked for when the name is to be opened again."""
        return self._kinds.get(name, Map)

    def _bpf(self, command: int, attr: Attr) -> int:
        """What bpf(2) returned, or the errno as a negative number."""
        return raw_call(command, ctypes.byref(attr), ctypes.sizeof(attr))

    def _do_close(self, call: dict[str, Any]) -> int:
        if call["name"] not in self._fds:
            return errno.EBADF
        os.close(self._fds.pop(call["name"]))
        return 0

    def _do_pin(self, call: dict[str, Any]) -> int:
        name = call["name"]
        path = BPFFS / f"kernrig-player-{os.getpid()}-{name}"
        held = Descriptor(self._fd(name))
        error = errno_of(lambda: held.pin(path))
        held.release()
        if error == 0:
            self._pins[name] = path
        return error

    def _do_unpin(self, call: dict[str, Any]) -> int:
        if call["name"] not in self._pins:
            return errno.ENOENT
        self._pins.pop(call["name"]).unlink()
        return 0

    def _do_reopen(self, call: dict[str, Any]) -> int:
        name = call["name"]
        kind, path = self._kind_of(name), self._pins.get(name, NO_PIN)
        try:
            again = kind.from_id(self.ids.get(name, NO_ID)) if call["by_id"] else kind.get(path)
        except OSError as error:
            return error.errno or 0
        self._do_close({"name": name})
        self._hold(name, again.release())
        return 0

    def _is_gone(self, link: str) -> bool:
        """Whether the kernel has released the link: it does so some time after the last hold on it went."""
        return errno_of(lambda: Link.from_id(self.ids[link]).close()) == errno.ENOENT


def settled(look: Callable[[], T], satisfied: Callable[[T], bool], seconds: float) -> T:
    """What `look` returns when that satisfies, or when time is up: frees are deferred, and the host compares."""
    seen = [look()]

    def enough() -> bool:
        seen[0] = look()
        return satisfied(seen[0])

    try:
        if not satisfied(seen[0]):
            wait_until(enough, timeout=seconds, what="deferred frees")
    except WaitTimeout:
        pass
    return seen[0]
