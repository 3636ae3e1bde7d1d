# SPDX-License-Identifier: MIT
"""Calls made with fewer capabilities than the scenario has, or by another user."""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from harness.errors import KernrigError
from harness.guest.netns import CLONE_NEWNET, libc

P = ParamSpec("P")
T = TypeVar("T")

# include/uapi/linux/capability.h
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39
NUMBERS = range(64)
LINUX_CAPABILITY_VERSION_3 = 0x20080522

CLONE_NEWUSER = 0x10000000  # include/uapi/linux/sched.h
NOBODY = 65534
UNPRIVILEGED_BPF_DISABLED = Path("/proc/sys/kernel/unprivileged_bpf_disabled")


def without(
    capabilities: tuple[int, ...], function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """What `function` returns in a thread of its own that lacks these capabilities for good.

    The kernel keeps capabilities per thread, so that the caller keeps its own; the thread starts in the
    caller's namespaces. An exception of `function` passes through; raises OSError when the kernel refuses.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            _drop(capabilities)
            answer.set_result(function(*args, **kwargs))
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answer.result()


def with_only(
    capabilities: tuple[int, ...], function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `without`, in a thread that lacks all but these capabilities."""
    others = tuple(number for number in NUMBERS if number not in capabilities)
    return without(others, function, *args, **kwargs)


def as_nobody(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns in a forked process of user and group nobody, without any capability; an exception of it
    is raised here. Both must be picklable.

    The process has copies of all descriptors and starts in the calling thread's namespaces. Raises KernrigError when it
    ended without an answer.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(writing, function, args, kwargs)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    if not told:
        raise KernrigError(
            f"a process of user nobody ended with wait status {status:#x} and no answer",
            hint="what it was to call, or what that returned or raised, may be nothing that pickle can take",
        )
    worked, value = pickle.loads(told)
    if not worked:
        raise value
    returned: T = value
    return returned


def _answer(
    writing: int, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> NoReturn:
    """The child's life."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            answer = pickle.dumps((True, function(*args, **kwargs)))
        except BaseException as error:
            answer = pickle.dumps((False, error))
        with os.fdopen(writing, "wb") as out:
            out.write(answer)
    finally:
        os._exit(0)


def own_network() -> None:
    """Put the calling process, which must have one thread, into a user namespace of its own with a network namespace:
    there even nobody has all capabilities. Raises OSError where that is not allowed.
    """
    if libc().unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER | CLONE_NEWNET)")


@contextmanager
def unprivileged_bpf(*, allowed: bool) -> Iterator[None]:
    """kernel.unprivileged_bpf_disabled is 0 or 2 within the block. Raises OSError (EPERM where it is 1 for good)."""
    before = UNPRIVILEGED_BPF_DISABLED.read_text()
    UNPRIVILEGED_BPF_DISABLED.write_text("0" if allowed else "2")
    try:
        yield
    finally:
        UNPRIVILEGED_BPF_DISABLED.write_text(before)


def _drop(capabilities: tuple[int, ...]) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0))
    # The effective, permitted and inheritable sets: first their low 32 bits, then the high ones.
    sets = ctypes.create_string_buffer(24)
    _check(libc().capget(header, sets))
    words = list(struct.unpack("=6I", sets.raw))
    for capability in capabilities:
        half, bit = divmod(capability, 32)
        for word in range(3 * half, 3 * half + 3):
            words[word] &= ~(1 << bit)
    _check(libc().capset(header, ctypes.create_string_buffer(struct.pack("=6I", *words))))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "the capabilities of a thread could not be changed")
