# SPDX-License-Identifier: MIT
"""Network namespaces in the guest, entered by the current thread, without a process of their own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from harness.errors import KernrigError
from harness.guest.rtnl import RtnlSocket, link_up

if TYPE_CHECKING:
    from pyroute2 import IPRoute

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 0x2
LOOPBACK_IFINDEX = 1

THREAD_NS = "/proc/thread-self/ns/net"
# Where `ip netns` looks for names.
NAMED = Path("/run/netns")


class NetNamespace:
    """A network namespace, held by a file descriptor of this process; a context manager that lets go of it.

    Namespaces are entered with setns(2) by the calling thread: pyroute2's `NetNS` and `IPRoute(netns=...)`
    fork a process for it, which costs some 7 ms on a native machine, against 4 us.
    """

    def __init__(self, fd: int, *, name: str | None = None) -> None:
        self.fd = fd
        self.name = name
        self._rtnl: RtnlSocket | None = None
        self._ipr: IPRoute | None = None

    @classmethod
    def create(cls, name: str | None = None, *, loopback: bool = False, ipv6: bool = False) -> Self:
        """A new, empty namespace; with `name` it also appears in /run/netns as `ip netns add` would make it.

        `loopback` sets lo up. Without `ipv6` the devices that come into the namespace get no IPv6, so that no
        router solicitation or multicast report is counted among a scenario's packets. Raises OSError.
        """
        with _returning():
            _check(libc().unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
            namespace = cls(os.open(THREAD_NS, os.O_RDONLY | os.O_CLOEXEC))
            try:
                if not ipv6:
                    _write_if_there("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
                if name is not None:
                    _bind(name)
                    namespace.name = name
                if loopback:
                    with RtnlSocket() as rtnl:
                        rtnl.request(link_up(LOOPBACK_IFINDEX))
            except BaseException:
                namespace.close()
                raise
        return namespace

    @classmethod
    def current(cls) -> Self:
        """The namespace in which the calling thread is; closing the value leaves the namespace alone."""
        return cls(os.open(THREAD_NS, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def inode(self) -> int:
        """The namespace's number, as in `net:[4026531840]`."""
        return os.fstat(self.fd).st_ino

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within the block the calling thread (and no other) is in this namespace."""
        with _returning():
            _check(libc().setns(self.fd, CLONE_NEWNET), f"setns to {self}")
            yield

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns when the calling thread runs it in this namespace."""
        with self.entered():
            return function(*args, **kwargs)

    @property
    def rtnl(self) -> RtnlSocket:
        """A raw rtnetlink socket in this namespace, made once and kept (see `harness.guest.rtnl`)."""
        if self._rtnl is None:
            self._rtnl = self.run(RtnlSocket)
        return self._rtnl

    @property
    def ipr(self) -> IPRoute:
        """pyroute2's IPRoute in this namespace, made once and kept; it subscribes to no events.

        Its default subscriptions would make it parse a message for each change in the namespace.
        """
        if self._ipr is None:
            from pyroute2 import IPRoute

            self._ipr = self.run(IPRoute, groups=0)
        return self._ipr

    def sysctl(self, name: str) -> str:
        """The value of a sysctl below net, for example "net.ipv4.ip_forward". Raises OSError."""
        with self.entered():
            return _sysctl_path(name).read_text().strip()

    def set_sysctl(self, name: str, value: object) -> None:
        """Set a sysctl below net in this namespace. Raises OSError with the kernel's errno."""
        with self.entered():
            fd = os.open(_sysctl_path(name), os.O_WRONLY)
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)

    def close(self) -> None:
        """Let go of the namespace: sockets, descriptor and name. The kernel frees it in the background."""
        if self._ipr is not None:
            self._ipr.close()
            self._ipr = None
        if self._rtnl is not None:
            self._rtnl.close()
            self._rtnl = None
        if self.name is not None:
            path = NAMED / self.name
            _check(libc().umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")
            path.unlink()
            self.name = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        number = self.inode if self.fd >= 0 else "closed"
        return f"<network namespace {self.name or ''}[{number}]>"


def libc() -> ctypes.CDLL:
    """The C library, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


@contextmanager
def _returning() -> Iterator[None]:
    back = os.open(THREAD_NS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _check(libc().setns(back, CLONE_NEWNET), "setns back to the thread's own network namespace")
        finally:
            os.close(back)


def _bind(name: str) -> None:
    if not name or "/" in name:
        raise KernrigError(f"{name!r} is no name for a network namespace", hint="use a plain file name")
    NAMED.mkdir(parents=True, exist_ok=True)
    path = NAMED / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    try:
        _check(
            libc().mount(THREAD_NS.encode(), os.fsencode(path), b"none", ctypes.c_ulong(MS_BIND), None),
            f"mount {path}",
        )
    except OSError:
        path.unlink()
        raise


def _sysctl_path(name: str) -> Path:
    if not name.startswith("net."):
        raise KernrigError(
            f"sysctl {name} does not belong to a network namespace", hint="its name must start with net."
        )
    return Path("/proc/sys", *name.split("."))


def _write_if_there(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
