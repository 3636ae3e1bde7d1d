# SPDX-License-Identifier: MIT
"""A thread that stops inside the kernel where it would only be for an instant; its CPU does nothing else meanwhile, so
the machine needs another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from harness.guest.bpf import uapi
from harness.guest.bpf.object import Object
from harness.guest.bpf.tracing import attach_tracing
from harness.guest.waiting import wait_until

T = TypeVar("T")


@contextmanager
def paused_in(function: str, act: Callable[[], T]) -> Iterator[Future[T]]:
    """A thread does it and stays at the beginning of this kernel function, the first time it gets there, until the
    context ends (or for 10 s). The result is there afterwards. Raises BpfError, WaitTimeout if it never gets there.
    """
    with Object.open(Path(__file__).with_name("pausing.bpf.o")) as object:
        object.tune_prog("pause", attach_target=function)
        object.load()

        def announced() -> T:
            object.set_number("thread", threading.get_native_id())
            return act()

        with (
            object.prog("pause") as prog,
            attach_tracing(prog, uapi.BPF_TRACE_FENTRY),
            ThreadPoolExecutor(1) as pool,
        ):
            future = pool.submit(announced)
            try:
                wait_until(
                    lambda: object.number("paused") == 1, timeout=2, what=f"a thread to be in {function}"
                )
                yield future
                assert object.number("let_go") == 0, f"{function} went on by itself"
            finally:
                object.set_number("let_go", 1)
