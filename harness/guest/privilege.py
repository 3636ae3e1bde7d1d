# SPDX-License-Identifier: MIT
"""Calls made with fewer capabilities than the scenario has."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from harness.guest.netns import libc

P = ParamSpec("P")
T = TypeVar("T")

# include/uapi/linux/capability.h
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_BPF = 39
LINUX_CAPABILITY_VERSION_3 = 0x20080522


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
