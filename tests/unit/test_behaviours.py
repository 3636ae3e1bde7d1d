# SPDX-License-Identifier: MIT
"""Ids in scenarios and the model agree with the tables in scenarios/*/BEHAVIOURS.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.behaviours import Facility, mentions, named, read, read_all
from harness.cli import cli
from harness.errors import KernrigError

ROOT = Path(__file__).parents[2]
FACILITIES = read_all(ROOT)
EVERY_FACILITY = pytest.mark.parametrize("facility", FACILITIES, ids=lambda facility: facility.name)


def test_no_id_stands_in_two_rows() -> None:
    rows = Counter(behaviour.id for facility in FACILITIES for behaviour in facility.behaviours)
    assert [name for name, count in rows.items() if count > 1] == []
    for facility in FACILITIES:
        exempted = Counter(name for name, _ in facility.exemptions)
        assert [name for name, count in exempted.items() if count > 1 or name not in rows] == []


def test_each_id_in_code_and_documents_stands_in_a_table() -> None:
    known = {behaviour.id for facility in FACILITIES for behaviour in facility.behaviours}
    prefixes = tuple({f"{name.partition('-')[0]}-" for name in known})
    files = [*ROOT.glob("*.md")]
    for room in ("scenarios", "harness", "tests"):
        files += [path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".c", ".h", ".md")]
    unknown = [
        f"{path.relative_to(ROOT)}:{mention.line}: {name}"
        for path in files
        for mention in mentions(path.read_text())
        for name in mention.ends
        if name.startswith(prefixes) and name not in known
    ]
    assert not unknown, "\n".join(["these ids are in no BEHAVIOURS.md:", *unknown])


@EVERY_FACILITY
def test_each_behaviour_is_named_by_a_scenario_or_the_model_or_is_exempt(facility: Facility) -> None:
    exempt = {name for name, _ in facility.exemptions}
    places = named(ROOT, facility.behaviours)
    uncovered = [
        f"{behaviour.id}  {behaviour.gist}"
        for behaviour in facility.behaviours
        if behaviour.id not in exempt and not places[behaviour.id]
    ]
    assert not uncovered, "\n".join([f"{len(uncovered)} behaviours are named nowhere:", *uncovered])


@EVERY_FACILITY
def test_no_behaviour_is_both_exempt_and_named(facility: Facility) -> None:
    places = named(ROOT, facility.behaviours)
    stale = [f"{name}: {places[name][0]}" for name, _ in facility.exemptions if places[name]]
    assert not stale, "\n".join(stale)


@EVERY_FACILITY
def test_each_upstream_test_has_scenarios_that_exist(facility: Facility) -> None:
    problems = [f"{row.case}: names no scenario" for row in facility.upstream if not row.scenarios]
    problems += [
        f"{row.case}: {reason}"
        for row in facility.upstream
        for scenario in row.scenarios
        if (reason := facility.missing(scenario))
    ]
    assert not problems, "\n".join(problems)


# How ids are read


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("as A-X-001 says", "1"),
        ("A-X-002 to -004: because", "2 3 4"),
        ("A-X-002, -004, -006, and -008; B-X-003", "2 4 6 8"),
        ("A-X-001 to -003,\n    -005 to -007", "1 2 3 5 6 7"),
        ("# A-X-001,\n# -003 and\n# A-X-005", "1 3 5"),
        (" * A-X-001,\n * -003", "1 3"),
        ('Refused(EINVAL, "A-X-001")  # and -003, -005', "1 3 5"),
        ("A-X-002 to A-X-004", "2 3 4"),
        ("`A-X-002` to `A-X-004`, -006", "2 3 4 6"),
        ("A-X-002 to B-X-004, A-X-*, XA-X-005", "2"),
        ("A-X-001: -003 is not meant, neither is A-X-002-7", "1 2"),
        ("A-X-001 to", "1"),
    ],
)
def test_shorthand(text: str, ids: str) -> None:
    found = {n for n in range(10) for mention in mentions(text) if mention.covers(f"A-X-{n:03d}")}
    assert sorted(found) == [int(number) for number in ids.split()]


def test_the_ends_of_a_range_must_exist_and_what_is_between_need_not() -> None:
    (first, last) = mentions("\nA-X-002\nto -004")
    assert (first.ends, last.ends) == (("A-X-002",), ("A-X-002", "A-X-004"))
    assert (first.line, last.line) == (2, 3)


TABLES = """
# Toys

## Moving

| id | behaviour |
| --- | --- |
| TOY-MOVE-001 | Moves. |
| TOY-MOVE-002 | Stops. |

| id | request | result |
| --- | --- | --- |
| TOY-VEC-001 | push | moved |

## Exemptions

| id | reason |
| --- | --- |
| TOY-MOVE-002 | Cannot be seen. |

## Upstream tests

| upstream test | our tests |
| --- | --- |
| toys.c: move | `test_toys.py::test_it_moves`, test_toys.py::test_gone |
| toys.c: stop | |
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "scenarios" / "toys"
    folder.mkdir(parents=True)
    (folder / "BEHAVIOURS.md").write_text(TABLES)
    scenario = '@mark("TOY-VEC-001")\ndef test_it_moves():\n    """TOY-MOVE-001."""\n'
    (folder / "test_toys.py").write_text(f'"""TOY-VEC-001."""\n{scenario}')
    return tmp_path


def test_tables_are_read(project: Path) -> None:
    (toys,) = read_all(project)
    assert [(each.id, each.gist) for each in toys.behaviours] == [
        ("TOY-MOVE-001", "Moves."),
        ("TOY-MOVE-002", "Stops."),
        ("TOY-VEC-001", "push | moved"),
    ]
    assert toys.exemptions == (("TOY-MOVE-002", "Cannot be seen."),)
    move, stop = toys.upstream
    assert [toys.missing(scenario) for scenario in move.scenarios] == ["", "test_toys.py has no test_gone"]
    assert toys.missing("test_else.py::test_it_moves") == "there is no test_else.py"
    assert stop.scenarios == ()


@pytest.mark.parametrize("row", ["| TOY-1 | Moves. |", "| TOY-MOVE-001 | |"])
def test_a_row_that_makes_no_sense_is_refused(project: Path, row: str) -> None:
    path = project / "scenarios" / "toys" / "BEHAVIOURS.md"
    path.write_text(f"| id | behaviour |\n| --- | --- |\n{row}\n")
    with pytest.raises(KernrigError, match=r"BEHAVIOURS.md:3: "):
        read(path)


def test_the_command_shows_what_an_id_means_and_who_names_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    said = CliRunner().invoke(cli, ["behaviours", "toys"]).output
    assert said.splitlines() == [
        "TOY-MOVE-001  Moves.",
        "    scenarios/toys/test_toys.py::test_it_moves",
        "TOY-MOVE-002  Stops.",
        "    exempt: Cannot be seen.",
        "TOY-VEC-001  push | moved",
        "    scenarios/toys/test_toys.py:1",
        "    scenarios/toys/test_toys.py::test_it_moves",
    ]
    assert CliRunner().invoke(cli, ["behaviours", "TOY-VEC"]).output.startswith("TOY-VEC-001")
    assert CliRunner().invoke(cli, ["behaviours", "--uncovered"]).output == ""
    result = CliRunner().invoke(cli, ["behaviours", "cars"])
    assert result.exit_code == 1
    assert "has a behaviour of 'cars'" in result.output
