# SPDX-License-Identifier: MIT
"""Windows in a module's life, held open by a parameter that delays it and closed by making that 0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from harness.guest import modules
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.syscall import BpfError
from harness.guest.waiting import wait_until

T = TypeVar("T")

LONG_MS = 60_000


def set_param(module: str, name: str, value: int) -> None:
    """Change a parameter of a module in whatever state. Raises OSError."""
    (modules.SYS_MODULE / module / "parameters" / name).write_text(str(value))


@contextmanager
def in_background(act: Callable[[], T]) -> Iterator[Future[T]]:
    """Do it in a thread, which has ended when the context does."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(act)


@contextmanager
def in_its_init(module: str, params: str = "") -> Iterator[Future[str]]:
    """The module is being loaded: everything is registered, and init does not return before the context ends.

    The result is what loading it returns or raises.
    """
    with in_background(lambda: modules.load_test_module(module, f"init_delay_ms={LONG_MS} {params}")) as load:
        try:
            wait_until(
                lambda: load.done() or (modules.state(module) == "coming" and newest_btf(module) is not None),
                timeout=2,
                what=f"the init of {module}",
            )
            yield load
        finally:
            with suppress(FileNotFoundError):
                set_param(module, "init_delay_ms", 0)


@contextmanager
def in_its_exit(module: str) -> Iterator[Future[None]]:
    """The loaded module is being removed: its exit does not go on before the context ends."""
    set_param(module, "exit_delay_ms", LONG_MS)
    with in_background(lambda: modules.unload(module)) as unload:
        try:
            wait_until(
                lambda: unload.done() or modules.state(module) == "going",
                timeout=2,
                what=f"the exit of {module}",
            )
            yield unload
        finally:
            with suppress(FileNotFoundError):
                set_param(module, "exit_delay_ms", 0)


class Doing(Generic[T]):
    """Something that a thread does in a module, and what came of it."""

    def __init__(self, act: Callable[[], T], module: str, pool: ThreadPoolExecutor) -> None:
        self._module = module
        self.thread = 0
        self._thread_id = 0
        self._future = pool.submit(self._do, act)

    def _do(self, act: Callable[[], T]) -> T:
        self.thread, self._thread_id = threading.get_ident(), threading.get_native_id()
        return act()

    def inside(self) -> bool:
        """Whether it is in the module's code now, or waits there."""
        if not self._thread_id or self._future.done():
            return False
        try:
            stack = Path(f"/proc/self/task/{self._thread_id}/stack").read_text()
        except FileNotFoundError:
            return False
        return f"[{self._module}]" in stack

    def done(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    def result(self) -> T:
        """What it returned, once it has. Raises what it raised."""
        return self._future.result()


@contextmanager
def delayed(module: str, param: str, act: Callable[[], T]) -> Iterator[Doing[T]]:
    """A thread does it and stays inside the module, where this parameter delays it, until the context ends."""
    set_param(module, param, LONG_MS)
    with ThreadPoolExecutor(1) as pool:
        try:
            doing = Doing(act, module, pool)
            wait_until(
                lambda: doing.inside() or doing.done(),
                timeout=2,
                what=f"{param} of {module} to have an effect",
            )
            yield doing
        finally:
            set_param(module, param, 0)


def newest_btf(module: str) -> BtfObject | None:
    """A descriptor of the module's BTF, if it has one now: of the newest, should there be several."""
    for id in sorted(BtfObject.ids(), reverse=True):
        try:
            found = BtfObject.from_id(id)
        except BpfError:
            continue
        if found.info().name == module:
            return found
        found.close()
    return None
