# SPDX-License-Identifier: MIT
"""What pytest's hooks do for scenarios: prepare machines, run items in the guest, report with a verdict."""

from __future__ import annotations

import builtins
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Generator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import KernrigError
from harness.evidence import Evidence, new_run
from harness.inifile import guest_options
from harness.reports import CALL_FAILED, conclude, excuse, from_guest
from harness.rig import Rig
from harness.scenario import Finished, Job, run
from harness.settings import Settings
from harness.tree import GUEST_ROOT
from harness.verdict import End, ExpectedSplat, KnownIssue, MachineEnd, explain, judge
from harness.verdict.addresses import Decoder
from harness.vm.machine import MachineLostError
from harness.vm.shape import Shape

if TYPE_CHECKING:
    from harness.coverage.collector import Collector

FIRST_MACHINE = "::first machine"
"""What a scenario's evidence is named after in addition, when that machine did not begin with it."""
VM_KEYWORDS = ("cpus", "memory", "append", "timeout")
# pytest's options that change what a report says, and so have to be known where it is made.
_OPTIONS = ("verbose", "tbstyle", "showlocals", "fulltrace", "runxfail", "capture", "truncation_limit_lines")


class Runner:
    """A plugin object: one for each pytest process, xdist's workers included."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self.settings = settings
        self.run_name = new_run()
        self._is_worker = hasattr(config, "workerinput")
        self._header: list[str] = []
        self._decoders: dict[str, Callable[[str], str]] = {}
        self.coverage: Collector | None = None
        if settings.coverage:
            from harness.coverage.collector import Collector

            self.coverage = Collector(lambda: self.rig, settings.coverage)

    @cached_property
    def rig(self) -> Rig:
        """The rig, made when it is first needed."""
        options = guest_options(self._config)
        return Rig(self.settings, self._config.rootpath, say=self.say, guest_options=options)

    def say(self, text: str) -> None:
        """One line about something slow, on a terminal or in a log; xdist's workers have neither."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and not self._is_worker and self._config.getoption("verbose") >= 0:
            reporter.write_line(f"kernrig: {text}")

    # Preparation

    def _concerned(self) -> bool:
        """Whether scenarios are among what pytest was asked to run."""
        root = (self._config.rootpath / self.settings.scenarios).resolve()
        if not root.is_dir():
            return False
        for argument in self._config.args:
            path = (self._config.invocation_params.dir / str(argument).split("::", 1)[0]).resolve()
            if root.is_relative_to(path) or path.is_relative_to(root):
                return True
        return False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Make kernel, image and templates ready, saying so, before any worker is started."""
        option = self._config.option
        if self._is_worker or option.collectonly or getattr(option, "showfixtures", False):
            return
        if not self._concerned():
            return
        try:
            self.rig.cache.sweep()
            if self.coverage is not None:
                self.coverage.profiled()
            self.rig.prepare()
            self._header = self._describe()
        except KernrigError as error:
            raise pytest.UsageError(str(error)) from error

    def _describe(self) -> list[str]:
        lines = []
        for name in self.settings.kernels:
            kernel, accel = self.rig.kernel(name), self.rig.accel(name)
            lines.append(f"kernrig: {name} is {kernel.release}, accelerator {accel.name} ({accel.reason})")
        lines.append(
            f"kernrig: QEMU {self.rig.qemu()}, {self.settings.shape}, isolation {self.settings.isolation}"
        )
        return lines

    def pytest_report_header(self) -> list[str]:
        """Kernel, accelerator and why, QEMU, shape."""
        return self._header

    def pytest_unconfigure(self) -> None:
        """End what is still running."""
        if "rig" in self.__dict__:
            self.rig.close()

    # Items

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Every test as often as was asked for, one after the other."""
        if self.settings.repeat > 1:
            items[:] = [item for item in items for _ in range(self.settings.repeat)]

    def is_scenario(self, item: pytest.Item) -> bool:
        """Whether the item's body runs in the guest."""
        root = self._config.rootpath / self.settings.scenarios
        return (
            isinstance(item, pytest.Function)
            and item.path.is_relative_to(root)
            and "vm" not in item.fixturenames
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Scenarios run in the guest; everything else as ever."""
        if not self.is_scenario(item):
            return None
        assert isinstance(item, pytest.Function)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        self._run(item)
        # What a host-side test before this one left set up, because its file was not done yet.
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Host-side tests: let the vm fixture's tear-down know that the call failed."""
        report = yield
        if call.when == "call" and report.failed:
            item.stash[CALL_FAILED] = True
        return report

    def kernel_of(self, item: pytest.Item) -> str:
        """The kernel that the item is to run on."""
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("kr_kernel") if callspec is not None else None
        return str(name) if name is not None else self.settings.kernels[0]

    def shape_of(self, item: pytest.Item) -> tuple[Shape, float]:
        """The machine's shape for the item, and its deadline in seconds. Raises KernrigError for a wrong marker."""
        marker = item.get_closest_marker("vm")
        base = self.settings.shape
        if marker is None:
            return base, self.settings.timeout
        unknown = set(marker.kwargs) - set(VM_KEYWORDS)
        if unknown or marker.args:
            raise KernrigError(
                f"{item.nodeid}: the marker vm takes {', '.join(VM_KEYWORDS)}, not "
                f"{', '.join(sorted(unknown)) or 'positional arguments'}.",
                hint="write it like @pytest.mark.vm(cpus=2)",
            )
        try:
            append = marker.kwargs.get("append", ())
            words = shlex.split(append) if isinstance(append, str) else [str(word) for word in append]
            shape = Shape(
                cpus=int(marker.kwargs.get("cpus", base.cpus)),
                memory=int(marker.kwargs.get("memory", base.memory)),
                append=(*base.append, *words),
            )
            return shape, float(marker.kwargs.get("timeout", self.settings.timeout))
        except (TypeError, ValueError) as error:
            raise KernrigError(
                f"{item.nodeid}: the marker vm has a wrong value: {error}.",
                hint="cpus, memory (MiB) and timeout (seconds) are numbers, append is a string",
            ) from error

    def _job(self, item: pytest.Function, seconds: float) -> Job:
        options = {name: getattr(self._config.option, name, None) for name in _OPTIONS}
        return Job(self.guest_nodeid(item), options, seconds, expected_splats(item))

    def guest_nodeid(self, item: pytest.Function) -> str:
        """The item's node id without the kernel, which the guest does not know of."""
        callspec = getattr(item, "callspec", None)
        if callspec is None or "kr_kernel" not in callspec.params:
            return item.nodeid
        base = item.nodeid[: -len(f"[{callspec.id}]")]
        rest = callspec._idlist[1:]
        return f"{base}[{'-'.join(rest)}]" if rest else base

    def _run(self, item: pytest.Function) -> None:
        evidence = Evidence(item.nodeid, self.kernel_of(item))
        issue = None
        try:
            issue = self._issue_of(item)
            shape, seconds = self.shape_of(item)
            job = self._job(item, seconds)
            evidence.facts["shape"] = str(shape)
            finished = self._run_on_a_machine(item, job, shape, evidence)
            if not finished.taken:
                # Nothing of the scenario has run, so another machine may have it.
                path, line, _ = item.location
                evidence.nodeid += FIRST_MACHINE
                self.keep(evidence, explain(finished.verdict), failed=True)
                said = f"{finished.verdict.reason}; it runs on another one"
                _record_warning(item, warnings.WarningMessage(said, pytest.PytestWarning, path, line or 0))
                evidence = Evidence(item.nodeid, self.kernel_of(item), facts=dict(evidence.facts))
                evidence.facts["machines"] = 2
                finished = self._run_on_a_machine(item, job, shape, evidence)
        except (KernrigError, MachineLostError, TimeoutError) as error:
            end = MachineEnd(End.TEMPLATE, str(error))
            finished = Finished(judge(reports=[], end=end, rerun=self._rerun(item)), [], evidence)
        self._report(item, finished, issue)

    def _issue_of(self, item: pytest.Item) -> KnownIssue | None:
        """The item's known issue, if its kernel is expected to have it; None with pytest's --runxfail. Raises
        KernrigError for a wrong marker."""
        issue = known_issue(item)
        if issue is None or self._config.option.runxfail:
            return None
        kernel = self.rig.kernel(self.kernel_of(item))
        return issue if issue.concerns(kernel.provenance.version, kernel.config) else None

    def _run_on_a_machine(
        self, item: pytest.Function, job: Job, shape: Shape, evidence: Evidence
    ) -> Finished:
        coverage = self.coverage
        if coverage is not None:
            coverage.prepare(shape)
        with self.rig.lease(self.kernel_of(item), shape) as lease:
            start = coverage.begin(lease.machine, shape) if coverage is not None else {}
            finished = run(
                lease.machine,
                job,
                evidence,
                lambda message: self._hear(item, message),
                rerun=self._rerun(item),
            )
            if coverage is not None and finished.taken:
                coverage.take(lease.machine, start)
            lease.spoiled = lease.spoiled or finished.verdict.dirty
        return finished

    def _rerun(self, item: pytest.Item) -> str:
        """The command that runs this scenario again the same way."""
        words = ["pytest", item.nodeid]
        for option in ("isolation", "cpus", "memory", "qemu", "accel", "modules"):
            value = self._config.getoption(f"kr_{option}")
            if value:
                words += [f"--kr-{option}={value}"]
        words += [f"--kr-kernel={name}" for name in self._config.getoption("kr_kernel") or ()]
        words += [f"--kr-append={text}" for text in self._config.getoption("kr_append") or ()]
        return shlex.join(words)

    def _hear(self, item: pytest.Function, message: dict[str, Any]) -> None:
        """Pass on at once what need not wait for the verdict."""
        match message["type"]:
            case "output":
                sys.stdout.write(message["text"])
                sys.stdout.flush()
            case "report" if (
                message["report"]["when"] == "setup" and message["report"]["outcome"] == "passed"
            ):
                item.ihook.pytest_runtest_logreport(report=from_guest(item, message["report"], self._to_host))
            case "warning":
                self._warn(item, message)

    def _warn(self, item: pytest.Function, message: dict[str, Any]) -> None:
        category = getattr(builtins, message["category"], getattr(pytest, message["category"], UserWarning))
        location = message["location"]
        _record_warning(
            item,
            warnings.WarningMessage(
                message["text"], category, self._to_host(message["filename"]), int(message["lineno"])
            ),
            when=message["when"],
            nodeid=item.nodeid if message["nodeid"] else "",
            location=tuple(location) if location else None,
        )

    def _decoder(self, name: str) -> Callable[[str], str]:
        """What adds file and line to the addresses in a kernel's log, where that kernel's vmlinux was kept."""
        if name not in self._decoders:
            vmlinux = self.rig.kernel(name).vmlinux
            self._decoders[name] = Decoder(vmlinux).decode if vmlinux is not None else str
        return self._decoders[name]

    def _to_host(self, text: str) -> str:
        return text.replace(GUEST_ROOT + "/", str(self._config.rootpath) + os.sep)

    # Verdicts

    def keep(self, evidence: Evidence, text: str, *, failed: bool) -> str:
        """Write the evidence if it is to be kept; returns the explanation with its place."""
        if self.settings.keep == "never" or (self.settings.keep == "failed" and not failed):
            return text
        directory = evidence.directory(self._config.rootpath / self.settings.results, self.run_name)
        try:
            evidence.write(directory, text)
        except OSError as error:
            return f"{text}\nevidence could not be kept in {directory}: {error}"
        return f"{text}\nevidence: {_shown(directory)}"

    def _report(self, item: pytest.Function, finished: Finished, issue: KnownIssue | None) -> None:
        verdict = finished.verdict
        told = self._to_host(explain(verdict))
        if verdict.outcome.failed and (verdict.unexpected or verdict.console_tail):
            decode = self._decoder(self.kernel_of(item))
            told, finished.evidence.kernel_log = decode(told), decode(finished.evidence.kernel_log)
        text = self.keep(finished.evidence, told, failed=verdict.outcome.failed)
        reports = [from_guest(item, data, self._to_host) for data in finished.reports]
        concluded = conclude(item, reports, verdict, text)
        if issue is not None:
            excuse(issue, concluded, verdict)
        for report in concluded:
            item.ihook.pytest_runtest_logreport(report=report)


def _record_warning(
    item: pytest.Item,
    message: warnings.WarningMessage,
    *,
    when: str = "runtest",
    nodeid: str | None = None,
    location: tuple[Any, ...] | None = None,
) -> None:
    """Put a warning into pytest's summary; about the item, if no other node id is given."""
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={
            "warning_message": message,
            "when": when,
            "nodeid": item.nodeid if nodeid is None else nodeid,
            "location": location,
        }
    )


def expected_splats(item: pytest.Item) -> tuple[ExpectedSplat, ...]:
    """What the item's expect_splat markers announce. Raises KernrigError for a wrong marker."""
    try:
        return tuple(
            ExpectedSplat(*marker.args, **marker.kwargs) for marker in item.iter_markers("expect_splat")
        )
    except TypeError as error:
        raise KernrigError(
            f"{item.nodeid}: the marker expect_splat takes a regular expression and a reason: {error}.",
            hint='write it like @pytest.mark.expect_splat("refcount_t: underflow", reason="why that is right")',
        ) from error


def known_issue(item: pytest.Item) -> KnownIssue | None:
    """What the item's known_issue marker says, None without one. Raises KernrigError for a wrong marker."""
    marker = item.get_closest_marker("known_issue")
    if marker is None:
        return None
    try:
        return KnownIssue(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise KernrigError(
            f"{item.nodeid}: the marker known_issue takes the name of a finding and a reason: {error}.",
            hint='write it like @pytest.mark.known_issue("FINDING", reason="what the kernel does")',
        ) from error


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
