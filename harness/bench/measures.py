# SPDX-License-Identifier: MIT
"""The measurements. Each takes a workbench and returns values by the names of their figures."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.bench.figures import WORKERS
from harness.bench.program import Program, children_cpu
from harness.bench.workbench import TEMPLATE_KINDS, TRIVIAL_NODE, Workbench, edit
from harness.cache import Cache
from harness.deadline import Deadline
from harness.errors import KernrigError
from harness.evidence import Evidence
from harness.scenario import Job, run
from harness.ssh import SshClient
from harness.vm import template

MANY_WORKERS = 8
COMMAND_SECONDS = 60.0
FIRST_VERDICT_SECONDS = 180.0
RUN_SECONDS = 1200.0

# As pytest -v writes them: NODEID OUTCOME, or with xdist [gwN] [ P%] OUTCOME NODEID.
VERDICT = re.compile(
    r"^(?:\S+::.* |\[gw\d+\] \[ *\d+%\] )(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE
)

Values = Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """`take` gives one value of each of `figures`. It is called `repeat` times in a round, and once before all with its
    values dropped when `warm_up` is true: first imports and byte code are not what is measured."""

    name: str
    figures: tuple[str, ...]
    take: Callable[[Workbench], Values]
    repeat: int = 1
    warm_up: bool = False


def cold_boot(bench: Workbench) -> Values:
    """Process start to the end of a first command over SSH; nothing is frozen, nothing loaded."""
    blueprint = bench.rig.blueprint(bench.kernel, bench.rig.settings.shape)
    private, public = template.new_key()
    with tempfile.TemporaryDirectory(prefix="kernrig-", dir=bench.anew.root) as directory:
        memory = Path(directory, "memory")
        begin = time.monotonic()
        template.make_memory_file(memory, blueprint.shape.memory)
        process, said = template.cold_boot(blueprint, memory, public_key=public)
        try:
            deadline = Deadline.after(COMMAND_SECONDS, "SSH to the booted guest")
            key = template.load_key(private)
            ssh = SshClient(process.ssh, key=key, host_key=said["host_key"], deadline=deadline)
            try:
                done = ssh.run("true", seconds=COMMAND_SECONDS)
                seconds = time.monotonic() - begin
            finally:
                ssh.close()
        finally:
            process.close()
    if done.status != 0:
        raise KernrigError(f"`true` ended with status {done.status} in the guest: {done.errors!r}")
    return {"cold-boot": seconds}


def boot_template(bench: Workbench) -> Values:
    """The boot stage into an empty cache."""
    blueprint = bench.rig.blueprint(bench.kernel, bench.rig.settings.shape)
    _empty(bench.anew, "boot-template")
    begin = time.monotonic()
    template.boot_template(blueprint, cache=bench.anew, say=bench.rig.say)
    seconds = time.monotonic() - begin
    _empty(bench.anew, "boot-template")
    return {"boot-template": seconds}


def load_template(bench: Workbench) -> Values:
    """The load stage, of the trivial project, into an empty cache."""
    blueprint = bench.rig.blueprint(bench.kernel, bench.rig.settings.shape)
    booted = template.boot_template(blueprint, cache=bench.warm, say=bench.rig.say)
    tree = bench.rig.tree(bench.kernel)
    _empty(bench.anew, "load-template")
    begin = time.monotonic()
    template.load_template(booted, tree, cache=bench.anew, say=bench.rig.say)
    seconds = time.monotonic() - begin
    _empty(bench.anew, "load-template")
    return {"load-template": seconds}


def clone_running(bench: Workbench) -> Values:
    """A lease to QEMU's word that the guest runs."""
    begin = time.monotonic()
    with bench.rig.lease(bench.kernel, bench.rig.settings.shape) as lease:
        monitor = lease.machine.process.monitor()
        deadline = Deadline.after(COMMAND_SECONDS, "the clone to run")
        while (status := monitor.execute("query-status")["status"]) != "running":
            deadline.check(f"QEMU says {status}")
        return {"clone-running": time.monotonic() - begin}


def clone_verdict(bench: Workbench) -> Values:
    """One trivial scenario as the pytest plugin runs it: lease, SSH, job, verdict, end of the machine.

    The host's CPU time is that of this process from lease to end, without pytest's own work for an item.
    """
    job = Job(TRIVIAL_NODE, {}, COMMAND_SECONDS)
    evidence = Evidence(TRIVIAL_NODE, bench.kernel)
    ours, theirs, begin = time.process_time(), children_cpu(), time.monotonic()
    with bench.rig.lease(bench.kernel, bench.rig.settings.shape) as lease:
        lease.machine.ssh()
        connected = time.monotonic()
        finished = run(lease.machine, job, evidence, lambda _: None)
        judged = time.monotonic()
    host, qemu = time.process_time() - ours, children_cpu() - theirs
    if finished.verdict.outcome.failed:
        raise KernrigError(f"The trivial scenario failed: {finished.verdict.reason}")
    return {
        "clone-ssh": connected - begin,
        "clone-verdict": judged - begin,
        "cpu-qemu": qemu,
        "cpu-host": host,
        "cpu": qemu + host,
    }


def rate(workers: int, bench: Workbench) -> Values:
    """The whole of `pytest -n WORKERS` on the trivial project, pytest's start and end included."""
    with _pytest(bench, bench.trivial, "-q", "-n", str(workers)) as program:
        status, seconds = program.finish(Deadline.after(RUN_SECONDS, f"pytest -n {workers}"))
    if status != 0 or f"{bench.scenarios} passed" not in program.output():
        raise _unexpected(program, f"pytest -n {workers} ended with status {status}")
    return {
        f"rate-n{workers}": bench.scenarios / seconds * 60,
        f"cpu-n{workers}": program.cpu / bench.scenarios,
    }


def start(name: str, options: Sequence[str], edited: bool, bench: Workbench) -> Values:
    """The start of pytest on this repository's scenarios to the first verdict; it is interrupted then."""
    if bench.real is None:
        raise KernrigError("This repository has no scenarios to start.")
    before = {entry.key for entry in bench.warm.entries() if entry.kind == "load-template"}
    if edited:
        bench.edits += 1
        edit(bench.real, bench.edits)
    with _pytest(bench, bench.real, "-v", *options) as program:
        seen = program.until(VERDICT, Deadline.after(FIRST_VERDICT_SECONDS, "pytest's first verdict"))
        if seen is None:
            raise _unexpected(program, "pytest ended without a verdict")
        seconds = seen - program.started
        program.interrupt()
        program.finish(Deadline.after(COMMAND_SECONDS, "pytest to end"))
    if edited:
        # The edit stays: the template of what was there before is of no more use.
        for key in before - {bench.rig.template(bench.kernel, bench.rig.settings.shape).directory.name}:
            bench.warm.remove("load-template", key)
    return {name: seconds}


def _pytest(bench: Workbench, project: Path, *words: str) -> Program:
    """pytest on the scenarios of a project, with the warm cache."""
    settings = bench.rig.settings
    fixed = [
        f"--kr-kernel={bench.kernel}",
        *([f"--kr-modules={settings.modules}"] if settings.modules else []),
        "--kr-isolation=clone",
        "--color=no",
    ]
    command = [sys.executable, "-m", "pytest", *words, *fixed, settings.scenarios]
    unwanted = ("PYTEST_", "KERNRIG_RUN")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return Program(command, cwd=project, environment=environment | {"KERNRIG_CACHE": str(bench.warm.root)})


def _unexpected(program: Program, what: str) -> KernrigError:
    tail = "\n  ".join(program.output().strip().splitlines()[-15:])
    return KernrigError(f"{what}; the end of its output:\n  {tail}")


def _empty(cache: Cache, kind: str) -> None:
    assert kind in TEMPLATE_KINDS, "the private cache shares its other kinds with the user's"
    for entry in cache.entries():
        if entry.kind == kind:
            cache.remove(kind, entry.key)


MEASURES: tuple[Measure, ...] = (
    Measure("cold-boot", ("cold-boot",), cold_boot),
    Measure("boot-template", ("boot-template",), boot_template),
    Measure("load-template", ("load-template",), load_template),
    Measure("clone-running", ("clone-running",), clone_running, repeat=5, warm_up=True),
    Measure(
        "clone-verdict",
        ("clone-ssh", "clone-verdict", "cpu-qemu", "cpu-host", "cpu"),
        clone_verdict,
        repeat=5,
        warm_up=True,
    ),
    *(Measure(f"rate-n{n}", (f"rate-n{n}", f"cpu-n{n}"), partial(rate, n)) for n in WORKERS),
    Measure("start", ("start",), partial(start, "start", (), False), warm_up=True),
    Measure("start-n8", ("start-n8",), partial(start, "start-n8", ("-n", str(MANY_WORKERS)), False)),
    Measure("edit", ("edit",), partial(start, "edit", (), True)),
    Measure("edit-n8", ("edit-n8",), partial(start, "edit-n8", ("-n", str(MANY_WORKERS)), True)),
)


def choose(names: Sequence[str]) -> tuple[Measure, ...]:
    """The measures that give the named figures, all without names. Raises KernrigError for an unknown name."""
    known = {name for measure in MEASURES for name in (measure.name, *measure.figures)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise KernrigError(
            f"There is nothing called {', '.join(unknown)} to measure.",
            hint=f"the names are {', '.join(dict.fromkeys(f for m in MEASURES for f in m.figures))}",
        )
    wanted = set(names) or known
    return tuple(each for each in MEASURES if wanted & {each.name, *each.figures})


def schedule(measures: Sequence[Measure], runs: int) -> Iterator[tuple[int, Measure]]:
    """Round number (from 1) and measure, so mixed that what disturbs the host hits all alike: within a round one of
    each in turn, every second round backwards."""
    for number in range(1, runs + 1):
        order = measures if number % 2 else measures[::-1]
        for turn in range(max((each.repeat for each in order), default=0)):
            for measure in order:
                if turn < measure.repeat:
                    yield number, measure
