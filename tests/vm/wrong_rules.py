# SPDX-License-Identifier: MIT
"""Models with one wrong rule, and the machine on which they are found out."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from harness.modelcheck.facility import Facility
from harness.modelcheck.search import Found, Stage, hunt
from harness.rig import Rig
from harness.settings import Settings
from harness.vm.shape import Shape
from harness.vmfixture import Vm

ENDS = "comes to an end"
EXAMPLES = Settings().examples
FUTURE = __future__.annotations.compiler_flag


@dataclass(frozen=True)
class Wrong:
    """A rule of the model made wrong: in the text of `function`, `old` becomes `new`."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str


@contextmanager
def staged(kind: type[Facility], folder: Path) -> Iterator[Stage]:
    """A machine of its own on which sequences about the facility are played."""
    rig = Rig(Settings(), folder, say=print)
    shape = Shape()
    with rig.lease("debian", shape, own=True) as lease:
        vm = Vm(lease.machine, rig, "debian", shape)
        try:
            facility = kind.on(vm)
            assert facility is not None
            yield Stage(vm, facility)
        finally:
            vm.machine.close()


def assert_found(stage: Stage, wrong: Wrong) -> None:
    """The wrong rule is found within the default effort, and not by the machine's end."""
    with made_wrong(wrong), pytest.raises(Found) as found:
        hunt(stage.play, stage.facility, examples=EXAMPLES, seed=0)
    assert found.value.divergence.model != ENDS, found.value


@contextmanager
def made_wrong(wrong: Wrong) -> Iterator[None]:
    """The function carries out the changed text within the block."""
    function = wrong.function
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(wrong.old) == 1, f"{wrong.old!r} is no longer once in {function.__qualname__}"
    right: CodeType = function.__code__
    module = compile(
        text.replace(wrong.old, wrong.new), right.co_filename, "exec", dont_inherit=True, flags=FUTURE
    )
    codes = [code for code in module.co_consts if isinstance(code, CodeType)]
    (changed,) = [code for code in codes if code.co_name == function.__name__]
    function.__code__ = changed
    try:
        yield
    finally:
        function.__code__ = right
