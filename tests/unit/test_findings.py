# SPDX-License-Identifier: MIT
"""FINDINGS.md and the markers of scenarios say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from harness.verdict import KnownIssue

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"^## ([\w-]+): .*\n((?:(?!## ).*\n)*)", re.MULTILINE)
KERNELS = re.compile(r"^- \*\*Kernels:\*\* ((?:(?!- \*\*).*\n)*)", re.MULTILINE)
BEHAVING = re.compile(r"misbehaves?, ([^.]*(?:\.[^.\s][^.]*)*?)\s+do(?:es)?\s+not\b")
FILE = re.compile(r"`(scenarios/[\w/]+\.py)")

ENTRIES = {entry[1]: entry[2] for entry in ENTRY.finditer((ROOT / "FINDINGS.md").read_text())}


def marked() -> Iterator[tuple[str, KnownIssue]]:
    """Each known_issue marker of the scenarios, with its file."""
    for path in sorted((ROOT / "scenarios").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.known_issue":
                given = {word.arg: word.value for word in node.keywords}
                spared = ast.literal_eval(given["spared"]) if "spared" in given else ()
                finding = ast.literal_eval(node.args[0])
                yield str(path.relative_to(ROOT)), KnownIssue(finding, reason="", spared=spared)


def test_each_known_issue_has_an_entry_that_names_the_scenarios_file() -> None:
    assert [
        (file, issue.finding)
        for file, issue in marked()
        if file not in FILE.findall(ENTRIES.get(issue.finding, ""))
    ] == []


def test_each_entry_names_scenarios_that_are_there() -> None:
    files = {finding: FILE.findall(text) for finding, text in ENTRIES.items()}
    assert [finding for finding, named in files.items() if not named] == []
    assert [file for named in files.values() for file in named if not (ROOT / file).is_file()] == []


def test_each_spared_kernel_is_in_the_list_of_those_that_were_run() -> None:
    """As Debian writes it there: 7.3~rc7-1~exp1 for 7.3-rc7."""
    for file, issue in marked():
        kernels = KERNELS.search(ENTRIES[issue.finding])
        for version in issue.spared:
            assert kernels and f"{version.replace('-', '~')}-" in kernels[1], (file, issue)


def test_each_kernel_that_is_said_to_behave_is_spared() -> None:
    for file, issue in marked():
        kernels = KERNELS.search(ENTRIES[issue.finding])
        if kernels is None or "alike" in kernels[1] or (behaving := BEHAVING.search(kernels[1])) is None:
            continue
        for version in re.findall(r"\d+\.\d[\w.~]*(?=-)", behaving[1]):
            assert not issue.concerns(version), (file, issue, version)
