# SPDX-License-Identifier: MIT
"""A storm: threads use a module in loops while it is unloaded and loaded again and again, and all of it is counted."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial

from harness.guest import modules
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.syscall import BpfError
from harness.guest.waiting import wait_until
from scenarios.module.windows import newest_btf

ENOUGH = 2
AT_A_TIME = 5

Bind = Callable[[BtfObject], AbstractContextManager[object]]
"""Makes something of the instance of the module that has this BTF. Raises BpfError."""

Make = Callable[[], AbstractContextManager[object]]


class Storm:
    """The module's lives, counted: "unload ..." for each answer of delete_module, and what `bind` adds.

    "overlapped" are the calls that began before an unload or a load had ended which was begun before they ended.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.counters: Counter[str] = Counter()
        self.over = threading.Event()
        self._begun = self._ended = 0

    def __str__(self) -> str:
        return f"storm of {self.module}: " + ", ".join(
            f"{n} {what}" for what, n in sorted(self.counters.items())
        )

    def bind(self, what: str, bind: Bind, *refusals: int, lives: bool = True) -> None:
        """Make such things of one instance after the other, until the storm is over.

        Each must succeed, and then the module is alive (if it `lives` by them), or fail with one of `refusals`.
        """
        while not self.over.is_set():
            instance = newest_btf(self.module)
            if instance is None:
                continue  # the other side is about to load it again
            with instance:
                while self._bind(what, partial(bind, instance), refusals, lives):
                    pass

    def bind_by_name(self, what: str, make: Make, *refusals: int) -> None:
        """The same for what is found by a name, whether or not there is an instance."""
        while not self.over.is_set():
            self._bind(what, make, refusals, False)

    def _bind(self, what: str, make: Make, refusals: tuple[int, ...], lives: bool) -> bool:
        ended = self._ended
        try:
            made = make()
        except BpfError as error:
            self._count(f"{what} {error.errno_name}", ended)
            if error.errno not in refusals:
                raise
            self.counters[f"{what} refused"] += 1
            return False
        self._count(f"{what} accepted", ended)
        with made:
            if lives:
                assert modules.state(self.module) == "live"
        if self.counters[f"{what} accepted"] % 2:
            self._let_it_go()
        return not self.over.is_set()

    def _let_it_go(self) -> None:
        # Some users are only freed after grace periods: without a pause now and then no unload would ever succeed.
        unloads = self.counters["unload success"]
        wait_until(
            lambda: self.over.is_set() or self.counters["unload success"] > unloads,
            timeout=10,
            what="the module to be unloaded when nobody uses it",
        )

    def watch(self, what: str, look: Callable[[], object]) -> None:
        """Look at something until the storm is over."""
        while not self.over.is_set():
            ended = self._ended
            look()
            self._count(what, ended)

    def _count(self, what: str, ended: int) -> None:
        self.counters[what] += 1
        if self._begun > ended:
            self.counters[f"{what.split()[0]} overlapped"] += 1

    def cycle(self, *, failing: bool = False) -> None:
        """Unload it, unless somebody holds it, and load it again; `failing` lets init fail once in between."""
        self._begun += 1
        try:
            modules.unload(self.module)
        except OSError as error:
            self.counters[f"unload {errno.errorcode[error.errno or 0]}"] += 1
            if error.errno != errno.EAGAIN:
                raise
            return
        finally:
            self._ended = self._begun
        self.counters["unload success"] += 1
        self._begun += 1
        try:
            if failing:
                self._fail()
            modules.load_test_module(self.module)
        finally:
            self._ended = self._begun

    def _fail(self) -> None:
        try:
            modules.load_test_module(self.module, f"init_error={errno.ENODEV} init_delay_ms=8")
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self.counters["init ENODEV"] += 1
        else:
            raise AssertionError("an init that fails was taken for a success")

    def rage(
        self,
        *clients: Callable[[], None],
        wanted: tuple[str, ...],
        failing: bool = False,
        enough: int = ENOUGH,
        timeout: float = 20,
    ) -> None:
        """Run the clients and the module's lives at once until each counter that is `wanted` is `enough`.

        Raises WaitTimeout when that does not come to pass, and what a client raised.
        """
        wanted = (*wanted, "unload success", *(["init ENODEV"] if failing else []))

        def done() -> bool:
            for _ in range(AT_A_TIME):
                self.cycle(failing=failing)
                if all(self.counters[what] >= enough for what in wanted):
                    return True
            return any(client.done() for client in running)

        with ThreadPoolExecutor(len(clients)) as pool:
            running = [pool.submit(client) for client in clients]
            try:
                wait_until(done, timeout=timeout, what=f"{enough} each of {', '.join(wanted)} in {self}")
            finally:
                self.over.set()
            for client in running:
                client.result()
        if modules.state(self.module) is None:
            with suppress(FileExistsError):
                modules.load_test_module(self.module)
        print(self)
        missing = [what for what in wanted if self.counters[what] < enough]
        assert not missing, f"there was too little of {', '.join(missing)}: nothing was tested by {self}"
