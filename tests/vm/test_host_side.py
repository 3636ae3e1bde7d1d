# SPDX-License-Identifier: MIT
"""Tests that run on the host and drive a machine with the `vm` fixture."""

from __future__ import annotations

import re

import pytest

from tests.vm.conftest import Once
from tests.vm.project import Ran, copy_tree

# Those that shall not pass: phase, verdict or exception, and what their text says.
FAILING = {
    "test_failing_command": ("failed", r"status 3 in the guest:\n.*words\n.*more\n"),
    "test_unexpected_panic": ("error", r"KERNEL: the kernel panicked: .*this panic was asked for"),
    "test_unexpected_warning": (
        "error",
        r"KERNEL: the kernel complained: WARNING: .*this warning was asked for",
    ),
    "test_unexpected_end": ("error", r"INFRA: QEMU was killed from outside \(exit status -9\): SIGKILL"),
}
PASSING = (
    *("test_commands", "test_calls", "test_call_past_its_deadline", "test_console_and_monitor"),
    *("test_console_answers_sysrq", "test_expected_panic", "test_expected_warning", "test_expected_end"),
    *("test_reboot", "test_qemu_has_no_rights", "test_shape"),
)


@pytest.fixture(scope="module")
def ran(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All of them."""
    return once(
        "host-side",
        lambda: copy_tree(tmp_path_factory.mktemp("host") / "p").pytest(
            "-n", "2", "scenarios/test_host_side.py"
        ),
    )


@pytest.mark.parametrize("name", PASSING)
def test_verb_works(ran: Ran, name: str) -> None:
    assert ran[name].outcome == "passed", ran[name].text


@pytest.mark.parametrize("name", FAILING)
def test_failure_is_told(ran: Ran, name: str) -> None:
    outcome, text = FAILING[name]
    assert ran[name].outcome == outcome
    assert re.search(text, ran[name].text, re.DOTALL)


def test_that_is_all_of_them(ran: Ran) -> None:
    assert set(ran.cases) == {*PASSING, *FAILING}
