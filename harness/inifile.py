# SPDX-License-Identifier: MIT
"""What of a project's pytest configuration holds in the guest: all that changes how a test is collected or judged."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import pytest

# The rest is about the host: plugins, addopts, paths, caches, what is printed.
_NAMES = {
    "empty_parameter_set_mark",
    "filterwarnings",
    "log_format",
    "log_date_format",
    "log_level",
    "markers",
    "python_classes",
    "python_files",
    "python_functions",
    "strict_xfail",
    "truncation_limit_chars",
    "truncation_limit_lines",
    "usefixtures",
    "verbosity_assertions",
    "xfail_strict",
}
_SHELL_WORDS = ("python_classes", "python_files", "python_functions", "usefixtures")


def guest_options(config: pytest.Config) -> tuple[str, ...]:
    """Command-line words that make pytest in the guest judge as here: ini values (`-o`) and warning filters (`-W`)."""
    words: list[str] = []
    for name in sorted(_NAMES & _given(config)):
        value = _markers(config) if name == "markers" else config.getini(name)
        if value not in (None, ""):
            words += ["-o", f"{name}={_text(name, value)}"]
    for text in config.known_args_namespace.pythonwarnings or ():
        words += ["-W", text]
    return tuple(words)


def _given(config: pytest.Config) -> set[str]:
    """The keys that the ini file or `-o` give a value."""
    overridden = config.known_args_namespace.override_ini or ()
    return set(_file(config)) | {text.partition("=")[0] for text in overridden}


def _file(config: pytest.Config) -> Mapping[str, Any]:
    """What stands in the ini file. pytest 9 has deprecated the public name without giving another."""
    found: Mapping[str, Any] = config._inicfg if hasattr(config, "_inicfg") else config.inicfg
    return found


def _markers(config: pytest.Config) -> list[str]:
    """The project's own markers; getini() has those of all plugins, too, and not the same ones in each process."""
    value = _file(config).get("markers", "")
    value = getattr(value, "value", value)
    return (
        list(value)
        if isinstance(value, list)
        else [line.strip() for line in value.splitlines() if line.strip()]
    )


def _text(name: str, value: object) -> str:
    if isinstance(value, list):
        return shlex.join(value) if name in _SHELL_WORDS else "\n".join(value)
    return str(value)
