# SPDX-License-Identifier: MIT
"""Command-line options that are pytest's: the same names without the prefix, the same environment and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from harness.errors import KernrigError
from harness.settings import OPTIONS, Option, Settings

_Function = TypeVar("_Function", bound=Callable[..., Any])

MACHINE = ("kernel", "modules", "cpus", "memory", "append", "isolation", "qemu", "accel")
_NUMBERS = ("cpus", "memory")
# Where pytest's words would not fit a single machine.
_HELP = {
    "kernel": "kernel to boot: debian, debian:6.12, debian:VERSION, a bzImage's path, tree:PATH[@REV][+FLAVOUR] or "
    "deb-source:6.12[+FLAVOUR]",
    "isolation": "how the machine is made: a clone of a template, or a cold boot",
    "cpus": "virtual CPUs",
    "memory": "MiB of memory",
}


def shared_options(*names: str) -> Callable[[_Function], _Function]:
    """A decorator that adds those options of harness.settings.OPTIONS to a command."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(OPTIONS):
            if option.name in names:
                function = _declare(option)(function)
        return function

    return decorate


def _declare(option: Option) -> Callable[[_Function], _Function]:
    default = f"; default {option.default}" if option.default else ""
    kind: click.ParamType[Any] = click.STRING
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.name in _NUMBERS:
        kind = click.INT
    return click.option(
        f"--{option.name}",
        option.destination,
        type=kind,
        metavar=None if option.choices else option.metavar,
        multiple=option.many,
        help=f"{_HELP.get(option.name, option.help)}{default}. Environment: {option.variable}",
    )


def read_settings(given: Mapping[str, Any]) -> Settings:
    """The settings from a command's parsed options (by their destinations) and the environment.

    Raises KernrigError for a value that makes no sense.
    """

    def value(option: Option) -> list[str] | str | None:
        found = given.get(option.destination)
        if isinstance(found, tuple):
            return [str(each) for each in found] or None
        return None if found is None else str(found)

    return Settings.make(value, lambda _: "")


def one_kernel(settings: Settings) -> str:
    """The name of the only kernel in the settings. Raises KernrigError when there are several."""
    if len(settings.kernels) > 1:
        raise KernrigError(
            f"A machine runs one kernel, and {len(settings.kernels)} were named: {', '.join(settings.kernels)}.",
            hint="choose one with --kr-kernel",
        )
    return settings.kernels[0]
