# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.settings import OPTIONS, Option, Settings
from harness.vm.shape import Shape


def settings(
    given: Mapping[str, object] | None = None,
    ini: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    def of_command_line(option: Option) -> object:
        return (given or {}).get(option.name)

    def of_ini(option: Option) -> str:
        return (ini or {}).get(option.name, "")

    return Settings.make(of_command_line, of_ini, environment or {})


def test_defaults_are_those_of_the_class() -> None:
    assert settings() == Settings()


def test_command_line_beats_environment_beats_ini_beats_default() -> None:
    ini, environment, given = {"keep": "always"}, {"KERNRIG_KEEP": "never"}, {"keep": "failed"}
    assert settings(ini=ini).keep == "always"
    assert settings(ini=ini, environment=environment).keep == "never"
    assert settings(given, ini, environment).keep == "failed"


@pytest.mark.parametrize(
    ("sources", "kernels"),
    [
        ({"given": {"kernel": ["debian:7.2", "/a path/bzImage"]}}, ("debian:7.2", "/a path/bzImage")),
        ({"given": {"kernel": ["debian", "debian"]}}, ("debian",)),
        ({"ini": {"kernel": "debian, debian:6.12\ndebian:7.2"}}, ("debian", "debian:6.12", "debian:7.2")),
        ({"environment": {"KERNRIG_KERNEL": "debian:6.1 debian"}}, ("debian:6.1", "debian")),
    ],
)
def test_kernels_are_many(sources: dict[str, dict[str, object]], kernels: tuple[str, ...]) -> None:
    assert settings(**sources).kernels == kernels  # type: ignore[arg-type]


def test_additions_to_the_kernels_command_line_are_whole_parameters_in_order() -> None:
    shape = settings({"append": ['a=1 "b=x y"', "c"], "cpus": "2", "memory": "512"}).shape
    assert shape == Shape(cpus=2, memory=512, append=("a=1", "b=x y", "c"))
    assert settings(ini={"append": "a=1,2 b"}).shape.append == ("a=1,2", "b")


def test_modules_are_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings({"modules": "here"}).modules == tmp_path / "here"
    assert settings().modules is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("isolation", "none", "'none' is not one of clone, boot, shared"),
        ("accel", "xen", "'xen' is not one of auto, kvm, tcg"),
        ("keep", "", None),
        ("cpus", "two", "'two' is not a number"),
        ("cpus", "65", "65 processors"),
        ("memory", "255", "255 MiB"),
        ("timeout", "0", "'0' is not a number of seconds"),
        ("timeout", "inf", "'inf' is not a number of seconds"),
        ("timeout", "nan", "'nan' is not a number of seconds"),
        ("append", "'", "can't be taken apart"),
    ],
)
@pytest.mark.parametrize("source", ["given", "environment", "ini"])
def test_nonsense_is_refused_naming_its_source(
    name: str, value: str, message: str | None, source: str
) -> None:
    variable = f"KERNRIG_{name.upper()}"
    sources = {"given": {name: value}, "environment": {variable: value}, "ini": {name: value}}
    where = {
        "given": f"--kr-{name}",
        "environment": f"environment variable {variable}",
        "ini": f"ini key kr_{name}",
    }
    if message is None:  # nothing is no nonsense: the next source is asked
        assert settings(**{source: sources[source]}) == Settings()
        return
    with pytest.raises(KernrigError) as caught:
        settings(**{source: sources[source]})
    assert message in caught.value.what
    assert caught.value.hint
    if "processors" not in message and "MiB" not in message:
        assert caught.value.what.startswith(where[source])


def test_each_option_has_its_three_names() -> None:
    option = next(option for option in OPTIONS if option.name == "isolation")
    assert (option.flag, option.ini, option.variable) == (
        "--kr-isolation",
        "kr_isolation",
        "KERNRIG_ISOLATION",
    )
    assert all(option.default in option.choices for option in OPTIONS if option.choices)


@pytest.mark.parametrize(("name", "text"), [("examples", "0"), ("examples", "many"), ("seed", "-1")])
def test_how_many_examples_and_from_which_seed_are_whole_numbers(name: str, text: str) -> None:
    with pytest.raises(KernrigError, match=f"--kr-{name}"):
        settings({name: text})
    made = settings({"examples": "7", "seed": "3"})
    assert (made.examples, made.seed) == (7, 3)
