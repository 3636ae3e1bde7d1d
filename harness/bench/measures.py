# SPDX-License-Identifier: MIT
"""The measurements. Each takes a workbench and returns values by the names of their figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from harness.bench import bisectspeed, kernelspeed, modelspeed, tracespeed
from harness.bench.caches import empty, templates
from harness.bench.figures import WORKERS, Values
from harness.bench.program import children_cpu
from harness.bench.pytestruns import first_verdict, run_pytest, unexpected
from harness.bench.sources import BASE, DEBUG
from harness.bench.workbench import TRIVIAL_NODE, Workbench, edit
from harness.deadline import Deadline
from harness.errors import KernrigError
from harness.evidence import Evidence
from harness.scenario import Job, run
from harness.ssh import SshClient
from harness.vm import boot, keys, template

MANY_WORKERS = 8
COMMAND_SECONDS = 60.0
RUN_SECONDS = 1200.0


@dataclass(frozen=True)
class Measure:
    """`take` gives values of each of `figures`; it is called `repeat` times in a round. `warm_up` is called once before
    all rounds: first imports, byte code and filling of caches are not what is measured.

    What takes many minutes is measured `once`, after all rounds.
    """

    name: str
    figures: tuple[str, ...]
    take: Callable[[Workbench], Values]
    repeat: int = 1
    warm_up: Callable[[Workbench], object] | None = None
    once: bool = False


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
    empty(bench.anew, "boot-template")
    begin = time.monotonic()
    template.boot_template(blueprint, cache=bench.anew, say=bench.rig.say)
    seconds = time.monotonic() - begin
    empty(bench.anew, "boot-template")
    return {"boot-template": seconds}


def load_template(bench: Workbench) -> Values:
    """The load stage, of the trivial project, into an empty cache."""
    blueprint = bench.rig.blueprint(bench.kernel, bench.rig.settings.shape)
    booted = template.boot_template(blueprint, cache=bench.warm, say=bench.rig.say)
    tree = bench.rig.tree(bench.kernel)
    empty(bench.anew, "load-template")
    begin = time.monotonic()
    template.load_template(booted, tree, cache=bench.anew, say=bench.rig.say)
    seconds = time.monotonic() - begin
    empty(bench.anew, "load-template")
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
    with run_pytest(bench, bench.trivial, "-q", "-n", str(workers)) as program:
        status, seconds = program.finish(Deadline.after(RUN_SECONDS, f"pytest -n {workers}"))
    if status != 0 or f"{bench.scenarios} passed" not in program.output():
        raise unexpected(program, f"pytest -n {workers} ended with status {status}")
    return {
        f"rate-n{workers}": bench.scenarios / seconds * 60,
        f"cpu-n{workers}": program.cpu / bench.scenarios,
    }


def fill_caches(bench: Workbench) -> None:
    """Run all of this repository's scenarios once: afterwards the templates of all shapes are there."""
    with run_pytest(bench, bench.project(), "-q", "-n", str(MANY_WORKERS)) as program:
        status, _ = program.finish(Deadline.after(RUN_SECONDS, "all scenarios"))
    # A scenario may well fail: that is a matter of the kernel.
    if status not in (0, 1):
        raise unexpected(program, f"pytest ended with status {status}")


def start(name: str, options: Sequence[str], bench: Workbench) -> Values:
    """The start of pytest on this repository's scenarios to the first verdict, with everything cached."""
    before = templates(bench.warm)
    seconds = first_verdict(bench, bench.project(), options)
    made = templates(bench.warm) - before
    if made:
        raise KernrigError(
            f"Not everything was cached: pytest made {', '.join(f'{kind}/{key}' for kind, key in sorted(made))}.",
            hint="edit nothing in this repository while its speed is measured",
        )
    return {name: seconds}


def start_edited(name: str, options: Sequence[str], bench: Workbench) -> Values:
    """The same after an edit of one scenario file. What is made because of it is removed again."""
    before = templates(bench.warm)
    project = bench.project(edited=True)
    bench.edits += 1
    edit(project, bench.edits)
    seconds = first_verdict(bench, project, options)
    for kind, key in templates(bench.warm) - before:
        bench.warm.remove(kind, key)
    return {name: seconds}


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
    *(
        Measure(name, (name,), take, once=True)
        for name, take in (
            ("kernel-base", partial(kernelspeed.cold, "kernel-base", BASE)),
            ("kernel-base-warm", partial(kernelspeed.warm, "kernel-base-warm", BASE)),
            ("kernel-rebuild", kernelspeed.rebuild),
            ("bisect-commit", bisectspeed.commits),
            ("kernel-debug", partial(kernelspeed.cold, "kernel-debug", DEBUG)),
            ("kernel-debug-warm", partial(kernelspeed.warm, "kernel-debug-warm", DEBUG)),
            ("bisect-package", bisectspeed.packages),
        )
    ),
)


def choose(names: Sequence[str], *, quick: bool = False) -> tuple[Measure, ...]:
    """The measures that give the named figures, all without names; if it has to be `quick`, not what is measured once.

    Raises KernrigError for an unknown name, or one of what is not quick.
    """
    known = {name for measure in MEASURES for name in (measure.name, *measure.figures)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise KernrigError(
            f"There is nothing called {', '.join(unknown)} to measure.",
            hint=f"the names are {', '.join(dict.fromkeys(f for m in MEASURES for f in m.figures))}",
        )
    wanted = set(names) or known
    chosen = tuple(each for each in MEASURES if wanted & {each.name, *each.figures})
    slow = [each.name for each in chosen if each.once]
    if quick and names and slow:
        raise KernrigError(f"Measuring {', '.join(slow)} takes many minutes.", hint="leave out --quick")
    return tuple(each for each in chosen if not (quick and each.once))


def schedule(measures: Sequence[Measure], runs: int) -> Iterator[tuple[int, Measure]]:
    """Round number (from 1) and measure, so mixed that what disturbs the host hits all alike: within a round one of
    each in turn, every second round backwards. Then, with the number 0, what is measured once, in the order in which
    the next one has use for what the one before has left."""
    often = [each for each in measures if not each.once]
    for number in range(1, runs + 1):
        order = often if number % 2 else often[::-1]
        for turn in range(max((each.repeat for each in order), default=0)):
            for measure in order:
                if turn < measure.repeat:
                    yield number, measure
    for measure in measures:
        if measure.once:
            yield 0, measure
