# SPDX-License-Identifier: MIT
"""What was reached, as text for people, and as lcov and HTML, which gcovr writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.coverage.lines import Line, Source, total
from harness.errors import KernrigError

LCOV = "lcov.info"
HTML = "index.html"
LIST = "unreached.txt"
LEGEND = "-: not reached; boot: only before any scenario; 1/2: as many of its branches taken"
_TRACE = "coverage.json"
_GCOVR_TIMEOUT_S = 600.0


def table(sources: Sequence[Source]) -> list[str]:
    """A line for each file, and one for all: lines, branches and functions reached, of how many."""
    rows = [(each.path, (each.reached(), each.branches(), each.called())) for each in sources]
    if len(rows) > 1:
        lines, branches, functions = (total(counts) for counts in zip(*(row[1] for row in rows), strict=True))
        rows.append(("all", (lines, branches, functions)))
    width = max(len(path) for path, _ in rows)
    said = [f"{'':{width}}  {'lines':>17}  {'branches':>17}  {'functions':>17}"]
    return said + [f"{path:{width}}  " + "  ".join(_share(*pair) for pair in pairs) for path, pairs in rows]


def _share(some: int, most: int) -> str:
    """100 % only for all of them."""
    percent = f"{int(1000 * some / most) / 10:.1f} %" if most else ""
    return f"{percent:>7} {f'{some}/{most}':>9}"


def unreached(source: Source) -> list[str]:
    """The lines of a file that did not run, or not all of whose branches were taken, with their text, below the name of
    the function that they belong to; nothing when there are none."""
    said: list[str] = []
    function = None
    for number, line in sorted(source.lines.items()):
        mark = _mark(line)
        if not mark:
            continue
        inside = source.function_at(number)
        if inside != function:
            function = inside
            said.append(f"  {function or '(no function)'}")
        text = source.text[number - 1] if number <= len(source.text) else ""
        said.append(f"    {mark:>4} {number:5} {text.expandtabs(8)}".rstrip())
    return [source.path, *said] if said else []


def _mark(line: Line) -> str:
    if not line.count:
        return "boot" if line.before else "-"
    taken = sum(count > 0 for count in line.branches)
    return f"{taken}/{len(line.branches)}" if taken < len(line.branches) else ""


def write(folder: Path, sources: Sequence[Source], root: Path, title: str) -> None:
    """Make `folder` anew with lcov's tracefile, HTML pages and the list of what was not reached. `root` is where the
    sources' text is.

    Raises KernrigError when gcovr, which writes the first two, fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = [line for each in sources for line in [*unreached(each), ""]]
    (folder / LIST).write_text("\n".join([title, "", *table(sources), "", LEGEND, "", *listed]) + "\n")
    trace = folder / _TRACE
    trace.write_text(json.dumps({"gcovr/format_version": _format(), "files": list(_files(sources))}))
    command = [sys.executable, "-m", "gcovr", "--add-tracefile", _TRACE, "--root", str(root)]
    command += ["--lcov", LCOV, "--html-details", HTML, "--html-title", title]
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_GCOVR_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise KernrigError(f"gcovr could not write lcov and HTML: {done.stderr.strip()[-800:]}")
    lcov = folder / LCOV
    lcov.write_text(lcov.read_text().replace(f"SF:{root.resolve()}/", "SF:"))


def _format() -> str:
    """gcovr reads only tracefiles of its own version, but their documented form is older than that."""
    from gcovr.data_model.version import FORMAT_VERSION

    return FORMAT_VERSION


def _files(sources: Sequence[Source]) -> Iterator[dict[str, object]]:
    """gcovr's form of a file's coverage (its documentation, "JSON Format Reference")."""
    for source in sources:
        lines = [
            {
                "line_number": number,
                "count": line.count,
                "branches": [
                    {"branchno": i, "count": count, "fallthrough": False, "throw": False}
                    for i, count in enumerate(line.branches)
                ],
            }
            for number, line in sorted(source.lines.items())
        ]
        functions = [
            {"name": each.name, "lineno": each.first, "execution_count": each.count, "blocks_percent": 0.0}
            for each in source.functions.values()
        ]
        yield {"file": source.path, "lines": lines, "functions": functions}
