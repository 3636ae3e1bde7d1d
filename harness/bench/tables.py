# SPDX-License-Identifier: MIT
"""Reports for people: the table of one run, and the ratios of two."""

from __future__ import annotations

from harness.bench.figures import CPU_SECONDS, PER_MINUTE, PER_SECOND, Figure, Report, Summary

_ALIGN_LEFT = 2
# Two single values never overlap, and mean nothing.
_FEWEST_VALUES = 3
_WHOLE_SECONDS = 100.0


def show(value: float, unit: str) -> str:
    """A value with its unit, in three digits or so."""
    if unit in (PER_MINUTE, PER_SECOND):
        return f"{value:.0f}{unit}"
    if unit == CPU_SECONDS:
        return f"{value:.3f} s"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < _WHOLE_SECONDS else f"{value:.0f} s"


def table(report: Report) -> str:
    """The whole report as text, header first."""
    rows: list[tuple[str, ...]] = [("", "", "median", "min", "max", "values", "aim")]
    for figure, summary in report.summaries():
        rows.append(
            (
                figure.name,
                figure.what,
                *(show(value, figure.unit) for value in (summary.median, summary.least, summary.most)),
                str(summary.count),
                _aim(figure),
            )
        )
    lines = [*_pairs(report.machine), *_pairs(report.options), "", *_columns(rows)]
    for failure in report.failures:
        lines.append(f"no value for {failure.measure}: {failure.error}")
    return "\n".join(lines)


def _aim(figure: Figure) -> str:
    if figure.aim is None:
        return ""
    return ("≥ " if figure.more_is_better else "≤ ") + show(figure.aim, figure.unit)


def comparison(first: Report, second: Report) -> str:
    """The second report's medians divided by the first's, and whether that is more than noise.

    Noise: the two ranges, from least to greatest value, have something in common.
    """
    lines = []
    for title, one, two in (
        ("machine", first.machine, second.machine),
        ("options", first.options, second.options),
    ):
        for name in dict.fromkeys((*one, *two)):
            before, after = one.get(name, "-"), two.get(name, "-")
            if str(before) != str(after):
                lines.append(f"{title} differs: {name}: {before} -> {after}")
    rows: list[tuple[str, ...]] = [("", "", "A", "B", "B/A", "")]
    befores = {figure.name: summary for figure, summary in first.summaries()}
    for figure, after in second.summaries():
        before = befores.get(figure.name)
        if before is not None:
            rows.append(_ratio(figure, before, after))
    missing = sorted(set(first.values) ^ set(second.values))
    if missing:
        lines.append(f"only in one of them: {', '.join(missing)}")
    return "\n".join([*lines, "", *_columns(rows)])


def _ratio(figure: Figure, before: Summary, after: Summary) -> tuple[str, ...]:
    ratio = after.median / before.median if before.median else float("inf")
    if min(before.count, after.count) < _FEWEST_VALUES:
        verdict = "too few values"
    elif after.least <= before.most and before.least <= after.most:
        verdict = "within noise"
    else:
        verdict = "better" if (ratio > 1) == figure.more_is_better else "worse"
    return (
        figure.name,
        figure.what,
        show(before.median, figure.unit),
        show(after.median, figure.unit),
        f"{ratio:.2f}",
        verdict,
    )


def _pairs(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts), default=0) + 1
    return [f"{name + ':':<{width}} {value}" for name, value in facts.items()]


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows with each column as wide as its widest cell; the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < _ALIGN_LEFT else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
