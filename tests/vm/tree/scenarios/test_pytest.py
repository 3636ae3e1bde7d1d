# SPDX-License-Identifier: MIT
"""What pytest offers, used in the guest."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Record = Callable[[str, object], None]


def read(path: str) -> str:
    return Path(path).read_text().strip()


def test_runs_in_the_guest(record_property: Record) -> None:
    record_property("release", os.uname().release)
    assert read("/etc/hostname") == os.uname().nodename
    assert Path("/usr/lib/kernrig/boot.py").exists()
    assert os.geteuid() == 0


def test_fails() -> None:
    ours = ["the host's release", read("/proc/sys/kernel/ostype")]
    assert ours == ["the host's release", "Minix"], "with a message"


def test_raises() -> None:
    def deeper(number: int) -> float:
        return 1 / number

    deeper(0)


def test_skips() -> None:
    pytest.skip("the feature is missing")


@pytest.mark.skipif(True, reason="never on a Tuesday")
def test_skips_by_mark() -> None: ...


@pytest.mark.xfail(reason="known to fail")
def test_xfails() -> None:
    raise AssertionError


@pytest.mark.xfail(raises=KeyError, reason="of another kind")
def test_xfails_otherwise() -> None:
    raise ValueError("not the error that was expected")


@pytest.mark.xfail(reason="no longer true")
def test_xpasses() -> None: ...


@pytest.mark.xfail(reason="no longer true", strict=True)
def test_xpasses_strictly() -> None: ...


@pytest.fixture
def broken() -> None:
    raise LookupError("the fixture could not be made")


@pytest.fixture
def breaks_afterwards() -> Iterator[str]:
    yield "value"
    raise LookupError("the fixture could not be undone")


def test_with_broken_fixture(broken: None) -> None: ...


def test_with_broken_tear_down(breaks_afterwards: str) -> None:
    assert breaks_afterwards == "value"


def test_fails_with_broken_tear_down(breaks_afterwards: str) -> None:
    raise AssertionError("the call failed first")


@pytest.mark.parametrize("word", ["plain", "two words", "a/b::c[d]", "ümlaut"])
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.xfail(reason="two", strict=True))])
def test_parametrized(number: int, word: str) -> None:
    assert number == 1
    assert word


@pytest.fixture(params=["left", "right"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_fixture_with_parameters(side: str) -> None:
    assert side != "right"


class TestClass:
    """Methods, with pytest's and xunit's fixtures."""

    def setup_method(self) -> None:
        self.value = 3

    @pytest.fixture(autouse=True)
    def prepared(self) -> None:
        self.value += 4

    def test_method(self) -> None:
        assert self.value == 7


class TestOuter:
    class TestInner:
        def test_inner(self) -> None: ...


def test_built_in_fixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    print("captured")
    assert capsys.readouterr().out == "captured\n"


def test_prints_and_fails() -> None:
    print("from standard output")
    print("from standard error", file=sys.stderr)
    os.write(1, b"from the descriptor\n")
    raise AssertionError("look at the output")


@pytest.mark.slow
def test_prints_and_passes() -> None:
    print("live from the guest", flush=True)


def test_warns() -> None:
    warnings.warn("the guest has a warning", DeprecationWarning, stacklevel=1)


def test_records(record_property: Record) -> None:
    record_property("answer", 42)


def test_logs_and_fails(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("guest").warning("a line of the log")
    assert caplog.messages == []


def test_passes() -> None: ...
