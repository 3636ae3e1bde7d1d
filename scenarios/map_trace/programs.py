# SPDX-License-Identifier: MIT
"""Programs whose functions are traced or replaced, and those that do it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from harness.guest.bpf.object import Object
from harness.guest.bpf.prog import Prog
from scenarios.map_trace.actors import SMALLEST_PACKET

HERE = Path(__file__).parent


class Programs:
    """An object of which some programs are loaded, for functions of other programs or of the kernel."""

    def __init__(self, stack: ExitStack, file: str, targets: dict[str, tuple[Prog, str] | None]) -> None:
        self.object = stack.enter_context(Object.open(HERE / file))
        for name in self.object.program_names():
            target = targets.get(name)
            self.object.tune_prog(name, autoload=name in targets)
            if target is not None:
                self.object.tune_prog(name, attach_prog=target[0], attach_target=target[1])
        self.object.load()
        self.progs = {name: stack.enter_context(self.object.prog(name)) for name in targets}

    def __getitem__(self, variable: str) -> int:
        return self.object.number(variable)


class Publisher(Programs):
    """The program of publisher.bpf.c, with an element 3 to change."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack, "publisher.bpf.o", {"publisher": None, "permit": None})
        self.main = self.progs["publisher"]
        self.state = stack.enter_context(self.object.map("state"))
        self.state[3] = 0
        self.object.set_number("key", 3)

    def change(self, value: int) -> int:
        """Let the program write `value`; what its own function answered."""
        self.object.set_number("value", value)
        assert self.main.test_run(SMALLEST_PACKET).retval == 5
        assert self.state[3] == value
        return self["answer"]
