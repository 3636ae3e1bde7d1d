# SPDX-License-Identifier: MIT
"""One frozen Settings: command line > environment > pytest's ini file > default.

Every setting has one row in `OPTIONS`, from which the command-line option `--kr-NAME`, the ini key `kr_NAME` and the
environment variable `KERNRIG_NAME` are made.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import KernrigError
from harness.vm.shape import DEFAULT_CPUS, DEFAULT_MEMORY_MIB, Shape

ISOLATIONS = ("clone", "boot", "shared")
ACCELERATORS = ("auto", "kvm", "tcg")
KEEP = ("never", "failed", "always")


@dataclass(frozen=True)
class Option:
    """One setting: `many` may be given several times; `choices` are all that is allowed."""

    name: str
    metavar: str
    default: str
    help: str
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def flag(self) -> str:
        return f"--kr-{self.name}"

    @property
    def ini(self) -> str:
        return f"kr_{self.name.replace('-', '_')}"

    @property
    def variable(self) -> str:
        return f"KERNRIG_{self.name.replace('-', '_').upper()}"

    @property
    def destination(self) -> str:
        return self.ini


OPTIONS = (
    Option(
        "kernel",
        "NAME",
        "debian",
        "kernel to test: debian, debian:6.12, debian:VERSION, a bzImage's path, tree:PATH[@REV][+FLAVOUR] or "
        "deb-source:6.12[+FLAVOUR]; repeatable",
        many=True,
    ),
    Option("modules", "DIR", "", "modules of a kernel given by path"),
    Option("isolation", "HOW", "clone", "machine for each scenario: clone, boot (cold), shared", ISOLATIONS),
    Option("cpus", "N", str(DEFAULT_CPUS), "virtual CPUs of the default machine"),
    Option(
        "memory",
        "MIB",
        str(DEFAULT_MEMORY_MIB),
        "MiB of memory of the default machine; twice as much on a kernel with KASAN",
    ),
    Option("append", "ARGS", "", "additions to the kernel's command line; repeatable", many=True),
    Option("qemu", "PATH", "", "QEMU to use instead of qemu-system-x86_64"),
    Option("accel", "NAME", "auto", "accelerator: auto (proves KVM by booting), kvm, tcg", ACCELERATORS),
    Option("keep", "WHEN", "failed", "keep a scenario's evidence: never, failed, always", KEEP),
    Option("timeout", "SECONDS", "60", "deadline of one scenario, in seconds of a fast machine"),
    Option("examples", "N", "64", "random sequences of calls that are compared with a model, per test"),
    Option("seed", "N", "0", "where those sequences start; the same seed gives the same ones"),
    Option("repeat", "N", "1", "run each test so many times, in a machine of its own each time"),
    Option(
        "coverage",
        "FILE",
        "",
        "show which lines of this kernel file or directory the scenarios reached, on a kernel built +coverage; "
        "repeatable",
        many=True,
    ),
    Option("scenarios", "DIR", "scenarios", "directory below rootdir whose tests run in the guest"),
    Option("results", "DIR", ".kernrig/results", "where evidence is kept, below rootdir"),
)


@dataclass(frozen=True)
class Settings:
    """What the user wants. `timeout` is in seconds before the slow factor."""

    kernels: tuple[str, ...] = ("debian",)
    modules: Path | None = None
    isolation: str = "clone"
    shape: Shape = field(default_factory=Shape)
    qemu: str | None = None
    accel: str = "auto"
    keep: str = "failed"
    timeout: float = 60.0
    examples: int = 64
    seed: int = 0
    repeat: int = 1
    coverage: tuple[str, ...] = ()
    scenarios: str = "scenarios"
    results: str = ".kernrig/results"

    @classmethod
    def make(
        cls,
        given: Callable[[Option], Any],
        ini: Callable[[Option], str],
        environment: Mapping[str, str] = os.environ,
    ) -> Settings:
        """From a command line (`given` returns None for what is not on it), an ini file ("" likewise) and the
        environment. Raises KernrigError for a value that makes no sense, naming where it came from."""
        values = {option.name: _value(option, given, ini, environment) for option in OPTIONS}
        one: dict[str, str] = {name: found[-1] for name, (found, _) in values.items() if found}
        for option in OPTIONS:
            found, source = values[option.name]
            for value in found:
                if option.choices and value not in option.choices:
                    raise KernrigError(
                        f"{source}: {value!r} is not one of {', '.join(option.choices)}.",
                        hint=f"give {option.flag} one of them",
                    )
        shape = Shape(
            cpus=_number(one["cpus"], values["cpus"][1]),
            memory=_number(one["memory"], values["memory"][1]),
            append=tuple(word for text in values["append"][0] for word in _words(text, values["append"][1])),
        )
        return cls(
            kernels=tuple(dict.fromkeys(values["kernel"][0])),
            modules=Path(one["modules"]).expanduser().absolute() if one.get("modules") else None,
            isolation=one["isolation"],
            shape=shape,
            qemu=one.get("qemu") or None,
            accel=one["accel"],
            keep=one["keep"],
            timeout=_seconds(one["timeout"], values["timeout"][1]),
            examples=_number(one["examples"], values["examples"][1], least=1),
            seed=_number(one["seed"], values["seed"][1], least=0),
            repeat=_number(one["repeat"], values["repeat"][1], least=1),
            coverage=tuple(dict.fromkeys(values["coverage"][0])),
            scenarios=one["scenarios"].strip("/"),
            results=one["results"],
        )


def _value(
    option: Option,
    given: Callable[[Option], Any],
    ini: Callable[[Option], str],
    environment: Mapping[str, str],
) -> tuple[list[str], str]:
    """The values of the first source that has any, and that source's name for messages."""
    from_command_line = given(option)
    if from_command_line:
        values = from_command_line if isinstance(from_command_line, list) else [from_command_line]
        return [str(value) for value in values], option.flag
    for text, source in (
        (environment.get(option.variable, ""), f"environment variable {option.variable}"),
        (ini(option), f"ini key {option.ini}"),
        (option.default, "the default"),
    ):
        if text:
            separated = option.many and option.name != "append"
            return (text.replace(",", " ").split() if separated else [text]), source
    return [], "the default"


def _number(text: str, source: str, *, least: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        raise KernrigError(f"{source}: {text!r} is not a number.", hint="give a whole number") from None
    if least is not None and number < least:
        raise KernrigError(f"{source}: {text} is too small.", hint=f"give a whole number from {least}")
    return number


def _words(text: str, source: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise KernrigError(
            f"{source}: {text!r} can't be taken apart: {error}.", hint="quote it as in a shell"
        ) from None


def _seconds(text: str, source: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise KernrigError(f"{source}: {text!r} is not a number of seconds.", hint="give one above 0")
    return seconds
