# SPDX-License-Identifier: MIT
"""A user's project: a directory of scenarios and the pytest runs in it, each a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import psutil

TREE = Path(__file__).parent / "tree"
# What only a clean start of pytest can promise: nothing of the outer run reaches the inner one.
_NOT_INHERITED = ("PYTEST_", "KERNRIG_", "COV_")
_INHERITED = ("KERNRIG_CACHE", "KERNRIG_SLOW")
RUN_SECONDS = 300
T = TypeVar("T")


def users_environment() -> dict[str, str]:
    """This process's environment without what pytest and kernrig tell the processes of their own run."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or not name.startswith(_NOT_INHERITED)
    }


@dataclass(frozen=True)
class Case:
    """One test case of a --junitxml file. `outcome` is passed, failed, error or skipped; `text` what pytest wrote for
    it; `properties` what it recorded."""

    outcome: str
    message: str = ""
    text: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """kernrig's outcome."""
        return self.properties["kernrig_outcome"]

    def followed_by(self, other: Case) -> Case:
        """Both in one; the outcome is this one's."""
        text = f"{self.text}\n{other.text}"
        return replace(self, text=text, properties={**self.properties, **other.properties})


@dataclass(frozen=True)
class Ran:
    """A pytest run that has ended."""

    status: int
    output: str
    errors: str
    cases: Mapping[str, Case]

    def __getitem__(self, name: str) -> Case:
        """The case whose name (without file) is given."""
        return self.cases[name]

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: case.outcome for name, case in self.cases.items()}

    @property
    def everything(self) -> str:
        """Both streams, for messages of asserts."""
        return self.output + self.errors


@dataclass(frozen=True)
class Project:
    """`root` is where pytest is run; `environment` is added to that of its runs."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def write(self, files: Mapping[str, str]) -> None:
        """Write files below the root; an empty pytest.ini makes it pytest's rootdir."""
        for name, text in {"pytest.ini": "[pytest]\n", **files}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start pytest; the caller waits for it. It leads a process group, as in a shell with job control."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.root,
            env={**users_environment(), "COLUMNS": "200", **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def finish(self, process: subprocess.Popen[str], *, seconds: float = RUN_SECONDS) -> Ran:
        """Wait for the end of a run. One that does not end is killed, and fails the test with its output."""
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            raise AssertionError(f"pytest did not end within {seconds} s:\n{output}{errors}") from None
        return Ran(process.returncode, output, errors, {})

    def pytest(self, *arguments: str, seconds: float = RUN_SECONDS) -> Ran:
        """Run pytest to its end."""
        xml = self.root / "junit.xml"
        xml.unlink(missing_ok=True)
        ran = self.finish(self.start(f"--junitxml={xml}", *arguments), seconds=seconds)
        return Ran(ran.status, ran.output, ran.errors, read_junit(xml) if xml.exists() else {})


def read_junit(path: Path) -> dict[str, Case]:
    """The cases of a --junitxml file by their names. A call and a tear-down that both failed, which stand there as two
    cases, become one."""
    cases: dict[str, Case] = {}
    for element in ElementTree.parse(path).getroot().iter("testcase"):
        ends = [child for child in element if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed"}.get(ends[0].tag, ends[0].tag) if ends else "passed"
        case = Case(
            outcome=outcome,
            message="\n".join(end.get("message", "") for end in ends),
            text="\n".join(end.text or "" for end in ends),
            properties={
                each.get("name", ""): each.get("value", "")
                for each in element.iterfind("properties/property")
            },
        )
        name = element.get("name", "")
        cases[name] = cases[name].followed_by(case) if name in cases else case
    return cases


def copy_tree(target: Path) -> Project:
    """The shared project of tests/vm/tree."""
    shutil.copytree(TREE, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return Project(target)


def children(pid: int, name: str) -> list[psutil.Process]:
    """The living descendants of a process whose executable's name starts with `name`."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _name(process).startswith(name)]


def _name(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_for(find: Callable[[], T], what: str, *, seconds: float = 60) -> T:
    """The first true value that `find` returns. Raises AssertionError when there is none in time."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


@contextmanager
def running(project: Project, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A pytest run that is killed with all that it started if the test leaves it running."""
    process = project.start(*arguments)
    try:
        yield process
    finally:
        for child in children(process.pid, ""):
            child.kill()
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: the signal goes to the whole process group."""
    os.killpg(process.pid, signal.SIGINT)


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(process.is_running() and _name(process) for process in processes)
