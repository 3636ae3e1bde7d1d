# SPDX-License-Identifier: MIT
"""The laboratory: pytest in a process of its own, here with tests that need no machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.bisect.laboratory import Pytest
from harness.bisect.trial import Failure, Outcome, Sought
from harness.errors import HostError, KernrigError

SEVERAL = """\
import pytest


def test_good() -> None:
    pass


def test_bad() -> None:
    assert 1 == 2, "as ever"


@pytest.mark.skip(reason="no tcx")
def test_skipped() -> None:
    pass


@pytest.mark.xfail(reason="known")
def test_known() -> None:
    raise OSError(22, "refused")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "KERNRIG_")) and name != "KERNRIG_CACHE":
            monkeypatch.delenv(name)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_x.py").write_text(SEVERAL)
    return tmp_path


def bench(project: Path, *arguments: str, jobs: int = 1) -> Pytest:
    return Pytest(arguments or ("test_x.py",), jobs, project, print)


def test_each_run_of_each_test_is_told(project: Path) -> None:
    record = bench(project).run("debian", 2)
    assert not record.broken
    told = [(each.test.partition("::")[2], each.outcome.value, each.fingerprint) for each in record.ends]
    expected = [
        ("test_good", "passed", ""),
        ("test_bad", "failed", "test_x.py:9:AssertionError"),
        ("test_skipped", "skipped", ""),
        ("test_known", "failed", "test_x.py:19:OSError"),
    ]
    assert sorted(told) == sorted(expected * 2)
    texts = {each.test.partition("::")[2]: each.text for each in record.ends}
    assert "AssertionError: as ever" in texts["test_bad"]
    assert "no tcx" in texts["test_skipped"]


SOUGHT = Sought(frozenset({Failure("test_x.py::test_bad", "test_x.py:9:AssertionError")}))
OTHER = Sought(frozenset({Failure("test_x.py::test_bad", "elsewhere")}))


def test_only_tests_in_which_something_is_sought_are_run_and_no_further_than_to_it(project: Path) -> None:
    assert [each.outcome for each in bench(project).run("debian", 5, SOUGHT, stop=True).ends] == [
        Outcome.FAILED
    ]
    assert len(bench(project).run("debian", 5, OTHER, stop=True).ends) == 5
    assert len(bench(project).run("debian", 5, SOUGHT).ends) == 5


def test_runs_at_once_stop_early_too(project: Path) -> None:
    assert len(bench(project, jobs=2).run("debian", 4).ends) == 16
    assert 1 <= len(bench(project, jobs=2).run("debian", 60, SOUGHT, stop=True).ends) < 60


def test_kernel_that_cannot_be_had_is_broken_and_a_fault_of_the_host_is_none_of_the_kernel(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "scenarios").mkdir()
    (project / "scenarios/test_y.py").write_text("def test_it(): pass\n")
    record = bench(project, "scenarios").run("tree:/nonexistent@v1", 2)
    assert record.broken.startswith("/nonexistent is no kernel tree") and not record.ends
    monkeypatch.setenv("KERNRIG_CACHE", "/proc/nowhere")
    with pytest.raises(HostError, match=r"no fault of the kernel:\n.*/proc/nowhere"):
        bench(project, "scenarios").run("debian", 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("test_x.py::test_nothing",), "pytest found nothing to run: test_x.py::test_nothing"),
        (("-k", "nothing", "test_x.py"), "pytest found nothing to run"),
        (("--nonsense",), "pytest found nothing to run: --nonsense\n.*unrecognized arguments"),
        (("test_broken.py",), "pytest ended with status 2 and told of no test"),
    ],
)
def test_command_line_that_runs_nothing_is_refused(
    project: Path, arguments: tuple[str, ...], said: str
) -> None:
    (project / "test_broken.py").write_text("nonsense\n")
    with pytest.raises(KernrigError, match=f"(?s){said}"):
        bench(project, *arguments).run("debian", 1)


SLOW = """\
import time
from pathlib import Path

import pytest


@pytest.fixture
def machine():
    Path("began").touch()
    yield
    Path("ended").touch()


def test_slow(machine) -> None:
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_what_runs_in_order(project: Path, number: signal.Signals) -> None:
    (project / "test_slow.py").write_text(SLOW)
    script = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from harness.bisect.laboratory import Pytest\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "Pytest(('test_slow.py',), 1, Path.cwd(), print).run('debian', 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    program = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (project / "began").exists():
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        program.send_signal(number)
        assert program.wait(60) in (130, 143, -signal.SIGINT)
        assert (project / "ended").exists()
    finally:
        program.kill()


def test_what_all_kernels_of_a_search_lack_is_said_once(project: Path) -> None:
    (project / "conftest.py").write_text(
        "import sys\n\n\n"
        "def pytest_configure(config):\n"
        "    (kernel,) = config.getoption('--kr-kernel')\n"
        "    for option in 'CONFIG_A', 'CONFIG_B':\n"
        "        print(f'kernrig: {kernel}: this kernel does not know {option} (base.config)', file=sys.stderr)\n"
        "    print(f'kernrig: building the kernel {kernel}', file=sys.stderr)\n"
    )
    said: list[str] = []
    laboratory = Pytest(("-s", "test_x.py"), 1, project, said.append)
    for kernel in "one", "two":
        laboratory.run(kernel, 1)
    assert said == [
        "  one: this kernel does not know CONFIG_A (base.config)",
        "  one: this kernel does not know CONFIG_B (base.config)",
        "  building the kernel one",
        "  building the kernel two",
    ]
