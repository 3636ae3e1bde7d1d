# SPDX-License-Identifier: MIT
"""The benchmark's command line."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from harness import host
from harness.bench.figures import Failure, Report
from harness.bench.measures import Measure, choose, schedule
from harness.bench.tables import comparison, table
from harness.bench.workbench import REPOSITORY, Workbench, workbench
from harness.cache import Cache
from harness.errors import KernrigError
from harness.settings import Option, Settings
from harness.vm.machine import MachineLostError
from harness.vm.slots import host_memory_mib

T = TypeVar("T")

RUNS = 3
SCENARIOS = 100
QUICK_RUNS = 1
QUICK_SCENARIOS = 20
_TERMINATED = 128 + signal.SIGTERM


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick",
    is_flag=True,
    help=f"One round, {QUICK_SCENARIOS} scenarios instead of {SCENARIOS}, no builds and searches.",
)
@click.option("--only", metavar="NAME", multiple=True, help="Measure only this; repeatable.")
@click.option("--runs", type=click.IntRange(min=1), help=f"Rounds [default: {RUNS}].")
@click.option("--kernel", metavar="NAME", help="Kernel, as for pytest's --kr-kernel.")
@click.option(
    "--json",
    "json_path",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the raw values go [default: .kernrig/bench/DATE.json].",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="A.json B.json",
    type=click.Path(path_type=Path),
    help="Measure nothing; print the ratios of two reports.",
)
def bench(
    quick: bool,
    only: tuple[str, ...],
    runs: int | None,
    kernel: str | None,
    json_path: Path | None,
    compare: tuple[Path, Path] | None,
) -> None:
    """How fast kernrig is on this host: medians on the screen, raw values in JSON.

    Kernels are built, and searches done, once at the end, however many rounds there are.

    The other settings are taken from the environment, as pytest takes them (KERNRIG_ACCEL, KERNRIG_QEMU, ...).
    """
    if compare:
        click.echo(comparison(*(Report.read(path) for path in compare)))
        return
    path = json_path or Path(".kernrig/bench", time.strftime("%Y%m%d-%H%M%S") + ".json")
    _make_writable(path)
    measures = choose(only, quick=quick)
    settings = read_settings(kernel)
    rounds = runs or (QUICK_RUNS if quick else RUNS)
    scenarios = QUICK_SCENARIOS if quick else SCENARIOS
    with workbench(settings, base=Cache.default(), scenarios=scenarios, say=_say) as place:
        report = Report(describe_host(place), {"rounds": rounds, "scenarios at -n": scenarios})
        try:
            measure(place, measures, rounds, report, say=_say)
        finally:  # Ctrl-C after many minutes: what is there is shown and kept
            _say("")
            if report.values or report.failures:
                _finish(report, path)
    unmeasured = [each.name for each in measures if not report.values.get(each.figures[0])]
    if unmeasured:
        raise KernrigError(f"No value at all for {', '.join(unmeasured)}.", hint="the reasons stand above")


def _finish(report: Report, path: Path) -> None:
    report.machine["load after"] = _load()
    path.write_text(report.to_json())
    click.echo(f"{table(report)}\n\nraw values: {path}")


def measure(
    place: Workbench, measures: Sequence[Measure], rounds: int, report: Report, *, say: Callable[[str], None]
) -> None:
    """Take all values into the report; a measurement that fails is noted in it, and the others go on."""
    for warm_up in dict.fromkeys(each.warm_up for each in measures if each.warm_up is not None):
        say(f"warming up: {warm_up.__name__}")
        _try(warm_up.__name__, warm_up, place, report, say)
    for number, each in schedule(measures, rounds):
        say(f"{f'round {number} of {rounds}' if number else 'once'}: {each.name}")
        taken = _try(each.name, each.take, place, report, say)
        if taken is not None:
            report.add(taken)


def _try(
    name: str,
    take: Callable[[Workbench], T],
    place: Workbench,
    report: Report,
    say: Callable[[str], None],
) -> T | None:
    try:
        return take(place)
    except (KernrigError, MachineLostError, TimeoutError) as error:
        say(f"{name} failed: {error}")
        report.failures.append(Failure(name, str(error)))
        return None


def read_settings(kernel: str | None) -> Settings:
    """The settings from the environment, with that kernel, and clones. Raises KernrigError for one without sense."""
    if kernel is not None and "/" in kernel:
        kernel = str(Path(kernel).expanduser().absolute())

    def given(option: Option) -> object:
        return {"kernel": [kernel] if kernel else None, "isolation": "clone"}.get(option.name)

    return Settings.make(given, lambda _: "")


def describe_host(place: Workbench) -> dict[str, str]:
    """What the figures depend on, in words."""
    rig, name = place.rig, place.kernel
    kernel, accel = rig.kernel(name), rig.accel(name)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _commit(),
        "host": f"{host.distribution()}, kernel {platform.release()}, Python {platform.python_version()}",
        "cores": f"{len(os.sched_getaffinity(0))} ({_processor()})",
        "memory": f"{host_memory_mib() / 1024:.1f} GiB",
        "QEMU": str(rig.qemu()),
        "kernel": f"{kernel.release} ({name})",
        "accelerator": f"{accel.name} ({accel.reason})",
        "machine": str(rig.settings.shape),
        "load before": _load(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def _commit() -> str:
    """The commit of this checkout, with a plus when files differ from it."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _make_writable(path: Path) -> None:
    """Find out before minutes of work whether the report can be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise KernrigError(
            f"The report can't be written to {path}: {error.strerror}.", hint="give another --json PATH"
        ) from error


def _say(text: str) -> None:
    """What goes on, to standard error: one line that is written over on a terminal."""
    if sys.stderr.isatty():
        width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
        print(f"\r\033[K{text.partition(chr(10))[0][:width]}", end="", file=sys.stderr, flush=True)
    elif text:
        print(f"kernrig: {text}", file=sys.stderr, flush=True)


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(_TERMINATED)  # an exception, so that all that runs is ended and reaped


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; user errors become one message and exit status 1, Ctrl-C 130."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        bench.main(args=arguments, prog_name="python -m harness.bench", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("kernrig: interrupted; nothing is left running", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KernrigError as error:
        click.echo(f"kernrig: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
