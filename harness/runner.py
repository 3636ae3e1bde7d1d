# SPDX-License-Identifier: MIT
"""What pytest's hooks do for scenarios: prepare machines, run items in the guest, report with a verdict."""

from __future__ import annotations

import builtins
import os
import shlex
import sys
import warnings
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest._code.code import (
    ExceptionChainRepr,
    ExceptionRepr,
    ReprEntryNative,
    ReprFileLocation,
    ReprTraceback,
)

from harness.errors import KernrigError
from harness.evidence import Evidence, new_run
from harness.inifile import guest_options
from harness.rig import Rig
from harness.scenario import Finished, Job, run
from harness.settings import Settings
from harness.tree import GUEST_ROOT
from harness.verdict import End, ExpectedSplat, MachineEnd, Outcome, Verdict, explain, judge
from harness.vm.machine import MachineLostError
from harness.vm.shape import Shape
from harness.vmfixture import CALL_FAILED

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

    def is_scenario(self, item: pytest.Item) -> bool:
        """Whether the item's body runs in the guest."""
        root = self._config.rootpath / self.settings.scenarios
        return (
            isinstance(item, pytest.Function)
            and item.path.is_relative_to(root)
            and "vm" not in item.fixturenames
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Scenarios run in the guest; everything else as ever."""
        if not self.is_scenario(item):
            return None
        assert isinstance(item, pytest.Function)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        self._run(item)
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
        try:
            shape, seconds = self.shape_of(item)
            job = self._job(item, seconds)
            evidence.facts["shape"] = str(shape)
            with self.rig.lease(self.kernel_of(item), shape) as lease:
                finished = run(
                    lease.machine,
                    job,
                    evidence,
                    lambda message: self._hear(item, message),
                    rerun=self._rerun(item),
                )
                lease.spoiled = lease.spoiled or finished.verdict.dirty
        except (KernrigError, MachineLostError, TimeoutError) as error:
            end = MachineEnd(End.TEMPLATE, str(error))
            finished = Finished(judge(reports=[], end=end, rerun=self._rerun(item)), [], evidence)
        self._report(item, finished)

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
                item.ihook.pytest_runtest_logreport(report=self._to_report(item, message["report"]))
            case "warning":
                self._warn(item, message)

    def _warn(self, item: pytest.Function, message: dict[str, Any]) -> None:
        category = getattr(builtins, message["category"], getattr(pytest, message["category"], UserWarning))
        location = message["location"]
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warnings.WarningMessage(
                    message["text"], category, self._to_host(message["filename"]), int(message["lineno"])
                ),
                "when": message["when"],
                "nodeid": item.nodeid if message["nodeid"] else "",
                "location": tuple(location) if location else None,
            }
        )

    def _to_host(self, text: str) -> str:
        return text.replace(GUEST_ROOT + "/", str(self._config.rootpath) + os.sep)

    def _to_report(self, item: pytest.Function, data: dict[str, Any]) -> pytest.TestReport:
        """The guest's report as if it had been made here: this item's node id and keywords, paths of the host."""
        data = _map_text(data, self._to_host)
        data["nodeid"] = item.nodeid
        data["location"] = item.location
        data["keywords"] = dict.fromkeys(item.keywords, 1)
        if isinstance(data.get("longrepr"), list):
            data["longrepr"] = tuple(data["longrepr"])
        data["user_properties"] = [tuple(pair) for pair in data.get("user_properties", [])]
        data["sections"] = [tuple(pair) for pair in data.get("sections", [])]
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        assert isinstance(report, pytest.TestReport)
        return report

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

    def _report(self, item: pytest.Function, finished: Finished) -> None:
        verdict = finished.verdict
        text = self.keep(finished.evidence, self._to_host(explain(verdict)), failed=verdict.outcome.failed)
        reports = [self._to_report(item, data) for data in finished.reports]
        concluded = conclude(item, reports, verdict, text)
        excuse(item, concluded, verdict)
        for report in concluded:
            item.ihook.pytest_runtest_logreport(report=report)


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


def conclude(
    item: pytest.Item, reports: list[pytest.TestReport], verdict: Verdict, text: str
) -> list[pytest.TestReport]:
    """The reports that are still to be made, with the verdict in them.

    A passed set-up was reported when it came. A failed verdict stands in the report that failed, else in the one of
    the call, which is made up when it is missing; so is the one of the tear-down, with which an item ends (and from
    which --junitxml takes the properties).
    """
    left = _with_verdict(item, reports, verdict, text)
    for report in left:
        report.user_properties.append(("kernrig_outcome", verdict.outcome.value))
    return left


def _with_verdict(
    item: pytest.Item, reports: list[pytest.TestReport], verdict: Verdict, text: str
) -> list[pytest.TestReport]:
    left = [report for report in reports if not (report.when == "setup" and report.passed)]
    had_setup = len(left) < len(reports)
    if not any(report.when == "teardown" for report in left):
        left.append(_made_up_report(item, "teardown", "passed"))
    if not verdict.outcome.failed:
        if verdict.end is not None and not any(report.when == "call" for report in left):
            # The machine ended as announced, and took the rest of the scenario with it.
            left.insert(0, _made_up_report(item, "call", "passed"))
        return left
    failed = next((report for report in left if report.failed), None)
    if failed is not None:
        # A report's own sections are not in --junitxml.
        if isinstance(failed.longrepr, ExceptionRepr):
            failed.longrepr.addsection("kernrig", text)
        else:
            failed.sections.append(("kernrig", text))
        if verdict.outcome is not Outcome.TEST:
            _retitle(failed, verdict)
        return left
    call = next((report for report in left if report.when == "call"), None)
    if call is None:
        call = _made_up_report(item, "call" if had_setup else "setup", "failed")
        left.insert(0, call)
    call.outcome = "failed"
    call.longrepr = _longrepr(item, verdict, text)
    if hasattr(call, "wasxfail"):
        del call.wasxfail
    return left


def excuse(item: pytest.Item, reports: list[pytest.TestReport], verdict: Verdict) -> None:
    """A scenario marked known_issue is expected to fail, whatever way the kernel misbehaves: pytest's xfail. When it
    passes, it is shown as XPASS. A fault of the harness or host (INFRA) is no excuse."""
    marker = item.get_closest_marker("known_issue")
    if marker is None or verdict.outcome is Outcome.INFRA:
        return
    text = f"known issue {marker.args[0] if marker.args else '?'}: {marker.kwargs.get('reason', '')}"
    for report in reports:
        if report.failed:
            report.outcome = "skipped"
            report.wasxfail = text
        elif report.when == "call" and report.passed and verdict.outcome is Outcome.PASSED:
            report.wasxfail = text


def _retitle(report: pytest.TestReport, verdict: Verdict) -> None:
    """Put the outcome class in front of what pytest's summary line says."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = f"{verdict.outcome.value}: {verdict.reason}"


def _made_up_report(
    item: pytest.Item, when: Literal["setup", "call", "teardown"], outcome: Literal["passed", "failed"]
) -> pytest.TestReport:
    """A report that the guest did not live to make."""
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=None,
        when=when,
    )


def _longrepr(item: pytest.Item, verdict: Verdict, text: str) -> ExceptionChainRepr:
    path, line, _ = item.location
    trace = ReprTraceback([ReprEntryNative([text + "\n"])], None, "native")
    crash = ReprFileLocation(path, (line or 0) + 1, f"{verdict.outcome.value}: {verdict.reason}")
    return ExceptionChainRepr([(trace, crash, None)])


def _map_text(value: Any, change: Any) -> Any:
    """The same JSON value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    return value


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
