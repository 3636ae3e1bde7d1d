# SPDX-License-Identifier: MIT
"""The pytest plugin: options, the item protocol, the fixtures of host-side tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.guest.session import MARKERS
from harness.settings import OPTIONS, Option, Settings

KERNEL_ARGUMENT = "kr_kernel"


def pytest_addoption(parser: pytest.Parser) -> None:
    """One command-line option and one ini key for each setting."""
    group = parser.getgroup("kernrig", "kernrig: scenarios in virtual machines")
    for option in OPTIONS:
        choices = f" ({'|'.join(option.choices)})" if option.choices else ""
        default = f" [default: {option.default}]" if option.default else ""
        group.addoption(
            option.flag,
            dest=option.destination,
            metavar=option.metavar,
            action="append" if option.many else "store",
            default=None,
            help=f"{option.help}{choices}{default}; ini: {option.ini}, environment: {option.variable}",
        )
        parser.addini(option.ini, option.help, default="")


def read_settings(config: pytest.Config) -> Settings:
    """The settings of this run. Raises pytest.UsageError for a value that makes no sense."""

    def given(option: Option) -> object:
        return config.getoption(option.destination)

    def ini(option: Option) -> str:
        return str(config.getini(option.ini) or "")

    try:
        return Settings.make(given, ini)
    except KernrigError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and what runs scenarios."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    from harness.runner import Runner

    runner = Runner(config, read_settings(config))
    config.pluginmanager.register(runner, "kernrig-runner")
    if runner.coverage is not None:
        from harness.coverage.session import CoverageSession

        config.pluginmanager.register(CoverageSession(config, runner.coverage), "kernrig-coverage")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With several kernels, every scenario is there once for each."""
    settings = read_settings(metafunc.config)
    root = metafunc.config.rootpath / settings.scenarios
    if len(settings.kernels) > 1 and metafunc.definition.path.is_relative_to(root):
        metafunc.fixturenames.append(KERNEL_ARGUMENT)
        metafunc.parametrize(
            KERNEL_ARGUMENT, settings.kernels, ids=[Path(name).name for name in settings.kernels]
        )


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Iterator[object]:
    """A machine of its own, driven from the host: see harness.vmfixture.Vm. The test's body runs on the host."""
    from harness.runner import Runner
    from harness.vmfixture import lend

    runner = request.config.pluginmanager.getplugin("kernrig-runner")
    assert isinstance(runner, Runner)
    yield from lend(runner, request)
