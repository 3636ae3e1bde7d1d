# SPDX-License-Identifier: MIT
"""What is measured, how it is called, and the values: a report that goes to JSON and comes back."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import KernrigError

FORMAT = 1
WORKERS = (1, 2, 8)

SECONDS = "s"
CPU_SECONDS = "CPU s"
PER_MINUTE = "/min"
PER_SECOND = "/s"


@dataclass(frozen=True)
class Figure:
    """One number. `aim` is what it should be at most (at least, for a rate) on 2 cores under TCG, None without."""

    name: str
    unit: str
    what: str
    aim: float | None = None

    @property
    def more_is_better(self) -> bool:
        return self.unit in (PER_MINUTE, PER_SECOND)


FIGURES: tuple[Figure, ...] = (
    Figure("cold-boot", SECONDS, "cold boot to first command over SSH"),
    Figure("boot-template", SECONDS, "boot template, made anew"),
    Figure("load-template", SECONDS, "load template of the trivial scenarios, made anew"),
    Figure("clone-running", SECONDS, "clone to running guest"),
    Figure("clone-ssh", SECONDS, "clone to authenticated SSH", 0.200),
    Figure("clone-verdict", SECONDS, "clone to verdict of a trivial scenario", 0.350),
    Figure("cpu-qemu", CPU_SECONDS, "CPU per trivial scenario: QEMU"),
    Figure("cpu-host", CPU_SECONDS, "CPU per trivial scenario: kernrig on the host"),
    Figure("cpu", CPU_SECONDS, "CPU per trivial scenario: both", 0.40),
    *(
        Figure(f"rate-n{n}", PER_MINUTE, f"trivial scenarios, pytest -n {n}", 200.0 if n == 8 else None)
        for n in WORKERS
    ),
    *(
        Figure(f"cpu-n{n}", CPU_SECONDS, f"CPU per scenario of all that pytest -n {n} started")
        for n in WORKERS
    ),
    Figure("start", SECONDS, "pytest scenarios/, all cached: start to first verdict", 3.0),
    Figure("start-n8", SECONDS, "the same with -n 8"),
    Figure("edit", SECONDS, "pytest after an edit of a scenario file: start to first verdict", 4.0),
    Figure("edit-n8", SECONDS, "the same with -n 8"),
    Figure("model", PER_SECOND, "operations compared with the mprog model, one machine", 300.0),
    Figure("model-no-expedite", PER_SECOND, "the same without rcu_expedited"),
    Figure("model-struct-ops", PER_SECOND, "operations compared with the struct_ops model, one machine"),
    Figure("model-kptr", PER_SECOND, "operations compared with the model of owned objects, one machine"),
    Figure(
        "races", PER_SECOND, "operations of racing threads explained by the model, one machine with 2 CPUs"
    ),
    Figure("updates-untraced", PER_SECOND, "updates of a hash map by a program"),
    Figure("updates-passed-by", PER_SECOND, "the same while another hash map is traced"),
    Figure("updates-traced", PER_SECOND, "the same while it is traced"),
    Figure("kernel-base", SECONDS, "kernel of linux-source-6.12 built, nothing cached", 480.0),
    Figure("kernel-base-warm", SECONDS, "the same with what ccache kept of it", 90.0),
    Figure(
        "kernel-rebuild", SECONDS, "pytest after an edit of kernel/bpf/mprog.c: start to first verdict", 90.0
    ),
    Figure("bisect-commit", SECONDS, "kernrig bisect, commits that touch one file: a step"),
    Figure("kernel-debug", SECONDS, "kernel of the flavour debug built, nothing cached"),
    Figure("kernel-debug-warm", SECONDS, "the same with what ccache kept of it"),
    Figure("bisect-package", SECONDS, "kernrig bisect, packaged kernels that are there: a step", 15.0),
)
# What a measurement gives, by the names of its figures: one value of each, or several.
Values = Mapping[str, float | Sequence[float]]

BY_NAME: Mapping[str, Figure] = {figure.name: figure for figure in FIGURES}


@dataclass(frozen=True)
class Summary:
    """Median, least, greatest and number of one figure's values."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Failure:
    """A measurement that gave no value."""

    measure: str
    error: str


@dataclass
class Report:
    """All values of one benchmark run, in the order in which they were taken.

    `machine` says what it ran on, `options` what was asked for; both are shown as they are.
    """

    machine: dict[str, str]
    options: dict[str, Any]
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, taken: Values) -> None:
        """Take what one measurement gave."""
        for name, value in taken.items():
            several = value if isinstance(value, Sequence) else [value]
            self.values.setdefault(BY_NAME[name].name, []).extend(several)

    def summaries(self) -> list[tuple[Figure, Summary]]:
        """What there are values of, in the order of FIGURES."""
        return [(each, Summary.of(self.values[each.name])) for each in FIGURES if self.values.get(each.name)]

    def to_json(self) -> str:
        """The report as one JSON object: medians for readers, raw values for programs."""
        figures = {
            figure.name: {
                "what": figure.what,
                "unit": figure.unit,
                "median": summary.median,
                "values": self.values[figure.name],
            }
            for figure, summary in self.summaries()
        }
        whole = {
            "format": FORMAT,
            "machine": self.machine,
            "options": self.options,
            "figures": figures,
            "failures": [{"measure": each.measure, "error": each.error} for each in self.failures],
        }
        return json.dumps(whole, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Report:
        """A report that was written earlier; figures that are no longer measured are left out.

        Raises KernrigError when the file is none.
        """
        try:
            whole = json.loads(path.read_text())
            if whole["format"] != FORMAT:
                raise ValueError(f"it has format {whole['format']}, not {FORMAT}")
            values = {
                str(name): [float(value) for value in each["values"]]
                for name, each in whole["figures"].items()
                if name in BY_NAME
            }
            failures = [Failure(each["measure"], each["error"]) for each in whole["failures"]]
            return cls(dict(whole["machine"]), dict(whole["options"]), values, failures)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KernrigError(
                f"{path} is no report of the benchmark: {type(error).__name__}: {error}",
                hint="give files that `python -m harness.bench` has written",
            ) from error
