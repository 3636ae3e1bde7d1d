# SPDX-License-Identifier: MIT
"""The measurements. Each takes a workbench and returns values by the names of their figures."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.bench import modelspeed, tracespeed
from harness.bench.figures import WORKERS
from harness.bench.program import Program, children_cpu
from harness.bench.workbench import TEMPLATE_KINDS, TRIVIAL_NODE, Values, Workbench, edit
from harness.cache import Cache
from harness.deadline import Deadline
from harness.errors import KernrigError
from harness.evidence import Evidence
from harness.scenario import Job, run
from harness.ssh import SshClient
from harness.vm import boot, keys, template

MANY_WORKERS = 8
COMMAND_SECONDS = 60.0
FIRST_VERDICT_SECONDS = 180.0
RUN_SECONDS = 1200.0

# As pytest -v writes them: NODEID OUTCOME, or with xdist [gwN] [ P%] OUTCOME NODEID.
VERDICT = re.compile(
    r"^(?:\S+::.* |\[gw\d+\] \[ *\d+%\] )(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE
)


@dataclass(frozen=True)
class Measure:
    """`take` gives one value of each of `figures`; it is called `repeat` times in a round. `warm_up` is called once
    before all rounds: first imports, byte code and filling of caches are not what is measured."""

    name: str
    figures: tuple[str, ...]
    take: Callable[[Workbench], Values]
    repeat: int = 1
    warm_up: Callable[[Workbench], object] | None = None


def cold_boot(bench: Workbench) -> Values:
    """Process start to the end of a first command over SSH; nothing is frozen, nothing loaded."""
    blueprint = bench.rig.blueprint(bench.kernel, bench.rig.settings.shape)
    private, public = keys.new_key()
    begin = time.monotonic()
    process, said = boot.cold_boot(blueprint, public_key=public)
    try:
        deadline = Deadline.after(COMMAND_SECONDS, "SSH to the booted guest")
        key = keys.load_key(private)
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


def fill_caches(bench: Workbench) -> None:
    """Run all of this repository's scenarios once: afterwards the templates of all shapes are there."""
    with _pytest(bench, _real(bench), "-q", "-n", str(MANY_WORKERS)) as program:
        status, _ = program.finish(Deadline.after(RUN_SECONDS, "all scenarios"))
    # A scenario may well fail: that is a matter of the kernel.
    if status not in (0, 1):
        raise _unexpected(program, f"pytest ended with status {status}")


def start(name: str, options: Sequence[str], bench: Workbench) -> Values:
    """The start of pytest on this repository's scenarios to the first verdict, with everything cached."""
    before = _templates(bench.warm)
    seconds = _first_verdict(bench, _real(bench), options)
    made = _templates(bench.warm) - before
    if made:
        raise KernrigError(
            f"Not everything was cached: pytest made {', '.join(f'{kind}/{key}' for kind, key in sorted(made))}.",
            hint="edit nothing in this repository while its speed is measured",
        )
    return {name: seconds}


def start_edited(name: str, options: Sequence[str], bench: Workbench) -> Values:
    """The same after an edit of one scenario file. What is made because of it is removed again."""
    before = _templates(bench.warm)
    project = _real(bench, edited=True)
    bench.edits += 1
    edit(project, bench.edits)
    seconds = _first_verdict(bench, project, options)
    for kind, key in _templates(bench.warm) - before:
        bench.warm.remove(kind, key)
    return {name: seconds}


def _real(bench: Workbench, *, edited: bool = False) -> Path:
    project = bench.edited if edited else bench.real
    if project is None:
        raise KernrigError("This repository has no scenarios to start.")
    return project


def _first_verdict(bench: Workbench, project: Path, options: Sequence[str]) -> float:
    """Seconds from pytest's start to the first verdict on its output; it is interrupted then."""
    with _pytest(bench, project, "-v", *options) as program:
        seen = program.until(VERDICT, Deadline.after(FIRST_VERDICT_SECONDS, "pytest's first verdict"))
        if seen is None:
            raise _unexpected(program, "pytest ended without a verdict")
        program.interrupt()
        program.finish(Deadline.after(COMMAND_SECONDS, "pytest to end"))
        return seen - program.started


def _templates(cache: Cache) -> set[tuple[str, str]]:
    return {(entry.kind, entry.key) for entry in cache.entries() if entry.kind in TEMPLATE_KINDS}


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
    Measure("clone-running", ("clone-running",), clone_running, repeat=5, warm_up=clone_running),
    Measure(
        "clone-verdict",
        ("clone-ssh", "clone-verdict", "cpu-qemu", "cpu-host", "cpu"),
        clone_verdict,
        repeat=5,
        warm_up=clone_verdict,
    ),
    *(
        Measure(name, (name,), partial(modelspeed.sequences, name, model, append))
        for name, model, append in (
            ("model", "mprog", ()),
            ("model-no-expedite", "mprog", ("rcupdate.rcu_expedited=0",)),
            ("model-struct-ops", "struct_ops", ()),
            ("model-kptr", "kptr", ()),
        )
    ),
    Measure("races", ("races",), modelspeed.races),
    Measure("tracing", ("updates-untraced", "updates-passed-by", "updates-traced"), tracespeed.tracing),
    *(Measure(f"rate-n{n}", (f"rate-n{n}", f"cpu-n{n}"), partial(rate, n)) for n in WORKERS),
    *(
        Measure(name, (name,), partial(take, name, options), warm_up=fill_caches)
        for name, take, options in (
            ("start", start, ()),
            ("start-n8", start, ("-n", str(MANY_WORKERS))),
            ("edit", start_edited, ()),
            ("edit-n8", start_edited, ("-n", str(MANY_WORKERS))),
        )
    ),
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
