# SPDX-License-Identifier: MIT
"""Calls made by somebody who may do nothing: a process of user and group 65534 without any capability."""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from harness.guest.netns import libc

P = ParamSpec("P")
T = TypeVar("T")

NOBODY = 65534
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # include/uapi/linux/sched.h


def as_nobody(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns in a forked process of nobody's; an exception of it is raised here. The process has
    this one's descriptors and namespaces. Both must be picklable. Raises OSError when the process was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, function, args, kwargs)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise OSError(f"nobody's process ended with wait status {status:#x} and no answer")
    good, value = pickle.loads(answer)
    if not good:
        raise value
    returned: T = value
    return returned


def own_network() -> None:
    """Put the calling process, which must have one thread, into a user namespace of its own with a network namespace:
    there even nobody has all capabilities. Raises OSError where that is not allowed.
    """
    if libc().unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER | CLONE_NEWNET)")


def _answer(
    writer: int, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """The child's life."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            answer = pickle.dumps((True, function(*args, **kwargs)))
        except BaseException as error:
            answer = pickle.dumps((False, error))
        os.write(writer, answer)
    finally:
        os._exit(0)
