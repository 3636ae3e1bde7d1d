# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys

import pytest

from harness.guest.tools import ToolError, parsed, run


def test_words_may_be_numbers_and_the_output_is_handed_over() -> None:
    assert run("echo", "id", 7) == "id 7\n"


def test_the_error_tells_command_exit_code_and_what_the_tool_wrote() -> None:
    script = "import sys; print('partly'); print('no such device', file=sys.stderr); sys.exit(234)"
    with pytest.raises(ToolError) as caught:
        run(sys.executable, "-c", script)
    error = caught.value
    assert (error.code, error.stdout, error.stderr) == (234, "partly\n", "no such device\n")
    for part in (sys.executable, "-c", "exit code 234", "stdout: partly", "stderr: no such device"):
        assert part in str(error)


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(ToolError, match="no-such-tool show: cannot be started: No such file") as caught:
        run("no-such-tool", "show")
    assert caught.value.code is None


def test_a_tool_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNRIG_SLOW", raising=False)
    with pytest.raises(ToolError, match=r"sleep 60: did not end within 0\.05 s"):
        run("sleep", 60, timeout=0.05)


def test_json_is_parsed_and_no_output_is_none() -> None:
    assert parsed("echo", '[{"id": 3}]') == [{"id": 3}]
    assert parsed("true") is None


def test_what_is_no_json_is_shown() -> None:
    with pytest.raises(ToolError, match="its output is no JSON") as caught:
        parsed("echo", "Warning: odd")
    assert "stdout: Warning: odd" in str(caught.value)
