# SPDX-License-Identifier: MIT
"""Coverage on real notes and counters: those of a small program, compiled and run by the host."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.coverage import report
from harness.coverage.collector import Collector, Sums
from harness.coverage.counters import Counters
from harness.coverage.lines import Source, read
from harness.coverage.profiled import Profiled, check
from harness.coverage.session import CoverageSession
from harness.errors import KernrigError
from harness.guest import coverage as guest
from harness.kernels.source import profile
from harness.vm.machine import MachineLostError
from harness.vm.shape import Shape

HALF_H = """\
static inline int half(int x)
{
	return x < 0 ? -1 : x / 2;
}
"""
MAIN_C = """\
#include <stdlib.h>
#include "half.h"

int twice(int x);

static int never(int x)
{
	return x;
}

int main(int argc, char **argv)
{
	int i, sum = 0;

	if (argc < 2)
		return never(1);
	for (i = 1; i < argc; i++)
		sum += half(atoi(argv[i]));
	return twice(sum) > 100;
}
"""
TWICE_C = """\
#include "half.h"

int twice(int x)
{
	if (x > 1000)
		return half(-x);
	return 2 * x;
}
"""
FILES = ("lib/main.c", "lib/twice.c", "include/half.h")


@dataclass(frozen=True)
class Program:
    """A program that counts its lines, as a kernel does."""

    build: Path
    profiled: Profiled

    def run(self, *words: str) -> dict[str, Counters]:
        """What one run counts, by object."""
        for each in self.build.rglob("*.gcda"):
            each.unlink()
        subprocess.run([self.build / "program", *words], timeout=60, check=False)
        return {
            path.relative_to(self.build).with_suffix(".o").as_posix(): Counters.parse(path.read_bytes())
            for path in self.build.rglob("*.gcda")
        }


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    base = tmp_path_factory.mktemp("coverage")
    tree, build, kept = base / "tree", base / "build", base / "kept"
    for name, text in zip(FILES, (MAIN_C, TWICE_C, HALF_H), strict=True):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (build / "lib").mkdir(parents=True)
    for name in ("main", "twice"):
        words = ["gcc", "-fprofile-arcs", "-ftest-coverage", f"-I{tree}/include", "-c"]
        words += [f"{tree}/lib/{name}.c", "-o", f"lib/{name}.o"]
        subprocess.run(words, cwd=build, check=True, timeout=60)
        (build / f"lib/.{name}.o.cmd").write_text(" ".join(words))
    words = ["gcc", "--coverage", "-o", "program", "lib/main.o", "lib/twice.o"]
    subprocess.run(words, cwd=build, check=True, timeout=60)
    profile.keep(tree, build, kept)
    about = json.loads((kept / "profiled.json").read_text())
    # What reads them later finds neither the tree nor the build.
    shutil.rmtree(tree)
    objects = {name: tuple(files) for name, files in about["objects"].items()}
    return Program(build, Profiled("toy", kept, about["build"], Path(about["tree"]), objects))


def add(runs: Sequence[Mapping[str, Counters]]) -> dict[str, Counters]:
    sums = Sums()
    for each in runs:
        sums.add({}, each)
    return sums.scenarios


def of(sources: Sequence[Source], path: str) -> Source:
    return next(each for each in sources if each.path == path)


# Counters


def test_a_file_comes_out_as_it_went_in(program: Program) -> None:
    for counters in program.run("4").values():
        assert Counters.parse(counters.pack()) == counters
        assert sum(counters.counts) > 0


def test_sums_are_those_of_gcov_tool(program: Program, tmp_path: Path) -> None:
    first, second = program.run("4", "6"), program.run("5000")
    for folder, counted in (("a", first), ("b", second)):
        for name, counters in counted.items():
            path = (tmp_path / folder / name).with_suffix(".gcda")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(counters.pack())
    subprocess.run(
        ["gcov-tool", "merge", "-o", "sum", "a", "b"],
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
    )
    for name, counters in add([first, second]).items():
        merged = (tmp_path / "sum" / name).with_suffix(".gcda")
        assert Counters.parse(merged.read_bytes()).counts == counters.counts


def test_subtracting_gives_what_came_since_and_never_less_than_nothing(program: Program) -> None:
    one, more = program.run("4")["lib/main.o"], program.run("4", "6", "8")["lib/main.o"]
    assert (one + more) - one == more
    assert set((one - (one + more)).counts) == {0}


def test_large_counts_keep_their_upper_half(program: Program) -> None:
    counters = program.run("4")["lib/main.o"]
    large = replace(counters, counts=tuple(count << 40 for count in counters.counts))
    assert Counters.parse(large.pack()) == large


def test_what_is_all_zero_may_be_told_by_its_length_alone(program: Program) -> None:
    nobody = program.run()["lib/twice.o"]
    assert set(nobody.counts) == {0}
    assert nobody + program.run("4")["lib/twice.o"] == program.run("4")["lib/twice.o"]


def test_counters_of_another_build_are_refused(program: Program) -> None:
    counted = program.run("4")
    with pytest.raises(KernrigError, match="two builds"):
        counted["lib/main.o"] + counted["lib/twice.o"]


@pytest.mark.parametrize("cut", [0, 6, 16, 30, -4])
def test_a_file_that_was_cut_off_is_refused(program: Program, cut: int) -> None:
    data = program.run("4")["lib/main.o"].pack()
    if cut == 16:
        assert Counters.parse(data[:cut]).counts == ()
        return
    with pytest.raises(KernrigError, match="no file of gcc's counters"):
        Counters.parse(data[:cut])


# What was asked for


def test_a_directory_stands_for_the_source_files_in_it(program: Program) -> None:
    assert program.profiled.files(["lib/"]) == ("lib/main.c", "lib/twice.c")
    assert program.profiled.files(["include/half.h", "lib", "./lib/main.c"]) == (
        "include/half.h",
        "lib/main.c",
        "lib/twice.c",
    )


def test_objects_are_those_with_code_of_a_file(program: Program) -> None:
    assert program.profiled.objects_with(["lib/twice.c"]) == ("lib/twice.o",)
    assert program.profiled.objects_with(["include/half.h"]) == ("lib/main.o", "lib/twice.o")


@pytest.mark.parametrize("name", ["lib/thrice.c", "li", "include", "stdlib.h"])
def test_a_file_that_is_not_counted_is_an_error_which_tells_those_that_are(
    program: Program, name: str
) -> None:
    with pytest.raises(KernrigError) as caught:
        program.profiled.files([name])
    assert f"does not count the lines of {name}" in str(caught.value)
    assert "it counts those of lib/{main,twice}.c" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "source", "advice"),
    [
        ("debian", "debian", "deb-source:6.12+coverage"),
        ("arch/x86/boot/bzImage", "local", "tree:PATH+coverage"),
    ],
)
def test_a_kernel_that_counts_nothing_is_an_error_which_tells_one_that_does(
    name: str, source: str, advice: str
) -> None:
    check(name)
    kernel = SimpleNamespace(
        name=name, release="6.12.90+deb13", coverage=None, provenance=SimpleNamespace(source=source)
    )
    with pytest.raises(KernrigError) as caught:
        Profiled.of(kernel)  # type: ignore[arg-type]
    assert f"--kr-kernel={advice}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("deb-source:7.2+debug", "deb-source:7.2+debug+coverage"),
        ("tree:/linux@v6.12+clang", "tree:/linux@v6.12+coverage"),
    ],
)
def test_a_kernel_that_would_count_nothing_is_not_even_built(name: str, advice: str) -> None:
    with pytest.raises(KernrigError) as caught:
        check(name)
    assert f"--kr-kernel={advice}\n" in f"{caught.value}\n"
    check(advice)


# Lines


def test_lines_and_branches_are_those_that_ran(program: Program) -> None:
    sources = read(program.profiled, FILES, add([program.run("4", "6")]), {})
    twice = of(sources, "lib/twice.c")
    assert {number: line.count for number, line in twice.lines.items()} == {3: 1, 5: 1, 6: 0, 7: 1}
    assert twice.lines[5].branches == [0, 1]
    assert twice.reached() == (3, 4)
    assert twice.branches() == (1, 2)
    assert twice.called() == (1, 1)
    main = of(sources, "lib/main.c")
    assert main.called() == (1, 2)
    assert main.lines[18].count == 2


def test_runs_add_up(program: Program) -> None:
    runs = [program.run("4"), program.run("-4"), program.run("5000")]
    sources = read(program.profiled, FILES, add(runs), {})
    half = of(sources, "include/half.h")
    assert half.lines[3].count == 4  # once more by what twice() has of it
    assert all(half.lines[3].branches)
    assert of(sources, "lib/twice.c").reached() == (4, 4)


def test_what_ran_before_any_scenario_is_told_apart(program: Program) -> None:
    before = program.run("5000")
    sums = Sums()
    sums.add_before(before)
    scenario = {name: before[name] + counters for name, counters in program.run("4").items()}
    sums.add(before, scenario)
    twice = of(read(program.profiled, FILES, sums.scenarios, sums.before), "lib/twice.c")
    assert (twice.lines[6].count, twice.lines[6].before) == (0, True)
    assert (twice.lines[7].count, twice.lines[7].before) == (1, False)
    assert report.unreached(twice) == [
        "lib/twice.c",
        "  twice",
        "     1/2     5         if (x > 1000)",
        "    boot     6                 return half(-x);",
    ]


def test_without_counters_nothing_was_reached(program: Program) -> None:
    twice = of(read(program.profiled, ["lib/twice.c"], {}, {}), "lib/twice.c")
    assert twice.reached() == (0, 4)
    assert twice.branches() == (0, 2)


def test_a_line_of_a_function_that_gcc_merged_into_its_callers_has_its_name() -> None:
    text = [
        "#define A(x) x",
        "static struct x *one(int x)",
        "{",
        "",
        "}",
        "",
        "int",
        "two(long y,",
        "    int z)",
    ]
    source = Source("x.c", [*text, "{", "\treturn;", "}"])
    assert [source.function_at(number) for number in (4, 6, 11)] == ["one", "", "two"]


# Reports


def test_table_and_list_for_people(program: Program) -> None:
    sources = read(program.profiled, FILES, add([program.run("4")]), {})
    words = " ".join(report.table(sources)[2].split())
    assert words == "lib/twice.c 75.0 % 3/4 50.0 % 1/2 100.0 % 1/1"
    assert report.table(sources)[-1].startswith("all ")
    assert report.unreached(of(sources, "lib/main.c"))[:4] == [
        "lib/main.c",
        "  never",
        "       -     6 static int never(int x)",
        "       -     8         return x;",
    ]


def test_nearly_all_is_not_shown_as_all() -> None:
    assert report._share(1999, 2000).split() == ["99.9", "%", "1999/2000"]
    assert report._share(0, 0).split() == ["0/0"]


def test_lcov_and_html_tell_the_same(program: Program, tmp_path: Path) -> None:
    sources = read(program.profiled, FILES, add([program.run("4")]), {})
    folder = tmp_path / "coverage"
    folder.mkdir()
    (folder / "old.html").write_text("of the last run")
    report.write(folder, sources, program.profiled.sources, "toy: what the scenarios reached")
    assert not (folder / "old.html").exists()
    records = (folder / report.LCOV).read_text().split("end_of_record\n")
    for source in sources:
        (record,) = (each for each in records if f"SF:{source.path}\n" in each)
        told = dict(
            line.split(":", 1) for line in record.splitlines() if line[:2] in ("LH", "LF", "BR", "FN")
        )
        assert (int(told["LH"]), int(told["LF"])) == source.reached()
        assert (int(told["BRH"]), int(told["BRF"])) == source.branches()
        assert (int(told["FNH"]), int(told["FNF"])) == source.called()
        for number, line in source.lines.items():
            assert f"DA:{number},{line.count}" in record
    assert "toy: what the scenarios reached" in (folder / report.HTML).read_text()
    page = next(folder.glob("index.twice.c.*.html")).read_text()
    assert "x &gt; 1000" in page or "1000" in page
    assert "return half(-x);" in (folder / report.LIST).read_text()


# From guests


def test_the_guest_reads_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build/a.gcda").write_bytes(b"counts")
    told = guest.read(["build/a.gcda", "build/module.gcda"], str(tmp_path))
    assert {name: zlib.decompress(base64.b64decode(text)) for name, text in told.items()} == {
        "build/a.gcda": b"counts"
    }


def test_the_guest_waits_until_counters_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([b"0", b"0", b"0", b"1", b"1", b"2"])
    monkeypatch.setattr(guest, "_read", lambda path: next(told, b"3"))
    monkeypatch.setattr(guest, "SETTLE_SECONDS", 60)
    assert zlib.decompress(base64.b64decode(guest.read(["a"])["a"])) == b"3"


def test_the_guest_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(guest, "_read", lambda path: str(next(numbers)).encode())
    assert int(zlib.decompress(base64.b64decode(guest.read(["a"])["a"]))) == next(numbers) - 1


class Machines:
    """Machines whose scenarios are runs of the program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.settings = SimpleNamespace(kernels=("toy",), isolation="clone")
        self.counted: Mapping[str, Counters] = {}
        self.gone = False
        self.asked: list[str] = []

    def kernel(self, name: str) -> object:
        return SimpleNamespace(name=name, coverage=self.program.profiled.folder)

    def lease(self, name: str, shape: Shape) -> Machines:
        return self

    def __enter__(self) -> SimpleNamespace:
        return SimpleNamespace(machine=self)

    def __exit__(self, *_: object) -> None:
        pass

    def ended(self) -> bool:
        return self.gone

    def job(self, request: dict[str, Any], deadline: object) -> Iterator[dict[str, Any]]:
        self.asked.append(request["target"])
        if request["target"].startswith("harness.guest.coverage"):
            paths = {self.program.profiled.counters(name): name for name in self.counted}
            value = {
                path: base64.b64encode(zlib.compress(self.counted[paths[path]].pack())).decode()
                for path in request["args"][0]
                if path in paths
            }
            yield {"type": "result", "value": value}
        yield {"type": "end"}


def test_a_template_is_asked_once_and_what_it_counted_subtracted(program: Program) -> None:
    machines = Machines(program)
    collector = Collector(lambda: machines, ("lib/twice.c",))  # type: ignore[arg-type,return-value]
    template = machines.counted = program.run("5000")
    for word in ("4", "6"):
        collector.prepare(Shape())
        start = collector.begin(machines, Shape())  # type: ignore[arg-type]
        machines.counted = {name: template[name] + each for name, each in program.run(word).items()}
        collector.take(machines, start)  # type: ignore[arg-type]
    assert machines.asked.count("builtins:int") == 1
    assert collector.sums.scenarios == {
        "lib/twice.o": add([program.run("4"), program.run("6")])["lib/twice.o"]
    }
    assert collector.sums.before == {"lib/twice.o": template["lib/twice.o"]}
    assert collector.sums.machines == 2


def test_a_machine_of_another_kind_is_asked_before_its_scenario(program: Program) -> None:
    machines = Machines(program)
    machines.settings.isolation = "shared"
    collector = Collector(lambda: machines, ("lib/twice.c",))  # type: ignore[arg-type,return-value]
    collector.prepare(Shape())
    assert machines.asked == []
    machines.counted = first = program.run("5000")
    start = collector.begin(machines, Shape())  # type: ignore[arg-type]
    second = program.run("4")
    machines.counted = {name: first[name] + each for name, each in second.items()}
    collector.take(machines, start)  # type: ignore[arg-type]
    assert collector.sums.scenarios == {"lib/twice.o": second["lib/twice.o"]}


def test_a_machine_that_is_gone_gives_nothing_and_is_told(program: Program) -> None:
    machines = Machines(program)
    collector = Collector(lambda: machines, ("lib/twice.c",))  # type: ignore[arg-type,return-value]
    machines.gone = True
    collector.take(machines, {})  # type: ignore[arg-type]

    def lost(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        raise MachineLostError("the agent hung up")

    machines.gone, machines.job = False, lost  # type: ignore[method-assign]
    collector.take(machines, {})  # type: ignore[arg-type]
    assert collector.sums.lost == ["it ended with its scenario", "the agent hung up"]
    assert collector.sums.machines == 0


def test_sums_of_workers_are_sent_as_plain_values(program: Program) -> None:
    worker, controller = Sums(lost=["gone"]), Sums()
    worker.add({}, program.run("4"))
    worker.add_before(program.run("6"))
    for _ in range(2):
        controller.add_packed(worker.pack())
    assert controller.scenarios == add([program.run("4")] * 2)
    assert (controller.machines, controller.lost) == (2, ["gone", "gone"])
    import execnet.gateway_base

    assert execnet.gateway_base.dumps(worker.pack())


class Terminal:
    """What was written at the end of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def section(self, title: str) -> None:
        self.lines.append(title)

    def write_line(self, line: str, **_: bool) -> None:
        self.lines.append(line)


def session(program: Program, root: Path, **config: Any) -> tuple[CoverageSession, Collector]:
    machines = Machines(program)
    collector = Collector(lambda: machines, ("lib/twice.c",))  # type: ignore[arg-type,return-value]
    collector._profiled, collector._files = program.profiled, ("lib/twice.c",)
    return CoverageSession(SimpleNamespace(rootpath=root, **config), collector), collector  # type: ignore[arg-type]


def test_workers_sums_are_reported_by_the_controller(program: Program, tmp_path: Path) -> None:
    controller, _ = session(program, tmp_path)
    for word in ("4", "5000"):
        output: dict[str, Any] = {}
        worker, collector = session(program, tmp_path, workeroutput=output)
        collector.sums.add({}, {"lib/twice.o": program.run(word)["lib/twice.o"]})
        worker.pytest_sessionfinish()
        controller.pytest_testnodedown(SimpleNamespace(workeroutput=output))
    controller.pytest_testnodedown(SimpleNamespace())
    terminal = Terminal()
    controller.pytest_terminal_summary(terminal)  # type: ignore[arg-type]
    assert terminal.lines[:3] == [
        "kernel coverage",
        "toy: what the scenarios on 2 machines reached",
        "nothing is known of 1 others (a worker died)",
    ]
    assert any(line.split()[:4] == ["lib/twice.c", "100.0", "%", "4/4"] for line in terminal.lines)
    assert terminal.lines[-3:] == [
        f".kernrig/coverage/{name}" for name in ("index.html", "lcov.info", "unreached.txt")
    ]
    assert (tmp_path / ".kernrig/coverage/lcov.info").exists()


def test_what_was_not_reached_is_listed_and_its_length_bounded(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, collector = session(program, tmp_path)
    collector.sums.add({}, {"lib/twice.o": program.run("4")["lib/twice.o"]})
    monkeypatch.setattr("harness.coverage.session.SHOWN_LINES", 3)
    terminal = Terminal()
    controller.pytest_terminal_summary(terminal)  # type: ignore[arg-type]
    at = terminal.lines.index("lib/twice.c")
    assert terminal.lines[at : at + 4] == [
        "lib/twice.c",
        "  twice",
        "     1/2     5         if (x > 1000)",
        "    ... and 1 more lines, see .kernrig/coverage/unreached.txt",
    ]


def test_a_run_without_machines_says_nothing_of_coverage(program: Program, tmp_path: Path) -> None:
    controller, _ = session(program, tmp_path)
    terminal = Terminal()
    controller.pytest_terminal_summary(terminal)  # type: ignore[arg-type]
    assert terminal.lines == []


def test_several_kernels_are_refused(program: Program) -> None:
    machines = Machines(program)
    machines.settings.kernels = ("toy", "other")
    collector = Collector(lambda: machines, ("lib/twice.c",))  # type: ignore[arg-type,return-value]
    with pytest.raises(KernrigError, match="one kernel at a time"):
        collector.profiled()
