# SPDX-License-Identifier: MIT
"""What the benchmark does around builds and searches, which are played here."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from harness import kernels
from harness.bench import bisectspeed, kernelspeed, linuxtree
from harness.bench.sources import BASE, COMMITS, CULPRIT, DEBUG, FAULTY, MPROG, Sources
from harness.bench.workbench import Workbench
from harness.bisect import report
from harness.bisect.space import Candidate
from harness.cache import Cache
from harness.errors import HostError, KernrigError
from harness.kernels import AvailableKernel
from harness.kernels.source import package as source_package
from harness.kernels.source.package import SourcePackage
from harness.kernels.source.trees import snapshot
from tests.unit.bisecting import Bench, Row, find, git

TEXT = "int first(struct tuple *tuple)\n{\n\treturn tuple->prog ? -ENOENT : -1;\n}\n"


def files_of(folder: Path) -> dict[str, str]:
    """All files but those of hidden directories."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(name): (folder / name).read_text()
        for name in names
        if not any(part.startswith(".") for part in name.parts[:-1])
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourcePackage:
    """A source package of a few files, which is the one that Debian has."""
    tree = tmp_path / "package"
    for name, text in (
        ("Kbuild", "obj-y\n"),
        (".gitignore", "*\n"),
        ("scripts/kconfig/Makefile", "#\n"),
        ("scripts/run", "#!/bin/sh\n"),
        (MPROG, TEXT),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "scripts/run").chmod(0o755)
    (tree / "link").symlink_to("Kbuild")
    found = SourcePackage(tree, "6.12.1-1", "0 linux-source 6.12.1-1")
    monkeypatch.setattr(source_package, "fetch", lambda *_, **__: found)
    return found


@dataclass
class Builder:
    """Leaves in the cache what a build does, and remembers what was there before."""

    ccache: bool = True
    fails: bool = False
    met: list[tuple[str, list[str]]] = field(default_factory=list)

    def __call__(self, name: str, *, cache: Cache, say: Callable[[str], None]) -> None:
        there = [entry.path.name for entry in cache.entries("kernel")]
        there += [path.name for path in (cache.root / "state").iterdir() if not path.is_symlink()]
        self.met.append((name.rpartition("linux")[2], sorted(there)))
        tree = Path(name.removeprefix("tree:").removesuffix(DEBUG))
        content = snapshot(tree, None, cache=cache).content
        for state in ("kernel-build-1", *(["ccache"] if self.ccache else [])):
            with cache.state(state) as home:
                (home / content).write_text("object\n")
        if self.fails:
            raise KernrigError("it does not build")
        cache.build("kernel", content, lambda entry: None)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(kernels, "resolve", made)
    return made


@pytest.fixture
def bench(tmp_path: Path, package: SourcePackage) -> Workbench:
    """The part of a workbench that builds and searches need."""
    base = Cache(tmp_path / "cache")
    for name in ("ccache", "kernel-build-2", "apt"):
        with base.state(name) as home:
            (home / "file").write_text("of the user\n")
    base.build("kernel", "users", lambda entry: None)
    folder = base.root / ".bench"
    folder.mkdir()
    project = tmp_path / "project"
    project.mkdir()
    made = types.SimpleNamespace(
        folder=folder,
        base=base,
        sources=Sources(base, folder / "sources", lambda _: None),
        project=lambda: project,
        rig=types.SimpleNamespace(say=lambda _: None),
    )
    return cast(Workbench, made)


# The checkout


def test_the_checkout_is_the_package_with_a_fault_in_one_of_its_commits(
    bench: Workbench, package: SourcePackage
) -> None:
    tree = bench.sources.tree
    assert git(tree, "status", "--porcelain") == ""
    shutil.copytree(tree, tree.with_name("copy"), symlinks=True, ignore=shutil.ignore_patterns(".git"))
    assert files_of(tree.with_name("copy")) == files_of(package.tree)
    assert (tree / "link").is_symlink()
    assert (tree / "scripts/run").stat().st_mode & stat.S_IXUSR
    ids = git(tree, "rev-list", "--reverse", FAULTY).split()
    assert len(ids) == COMMITS
    assert ids[0] == git(tree, "rev-parse", linuxtree.BASE)
    assert ids[CULPRIT] == bench.sources.culprit()
    texts = [git(tree, "show", f"{each}:{MPROG}") for each in ids]
    assert len(set(texts)) == COMMITS
    assert ["-ENOENT : -1;" in text for text in texts] == [True] * CULPRIT + [False] * (COMMITS - CULPRIT)
    assert git(tree, "diff", "--name-only", ids[0], ids[-1]) == MPROG


def test_the_same_package_gives_the_same_commits(tmp_path: Path, package: SourcePackage) -> None:
    branches = {"a": [linuxtree.Commit("one", {"Kbuild": "1\n"})], "b": []}
    heads = []
    for name in ("one", "two"):
        linuxtree.make(tmp_path / name, package, branches)
        heads.append(git(tmp_path / name, "rev-parse", "a", "base"))
    assert heads[0] == heads[1]


def test_git_says_why_a_history_cannot_be_made(tmp_path: Path, package: SourcePackage) -> None:
    (package.tree / "big").write_bytes(b"x" * 1_000_000)  # more than fits into a pipe
    with pytest.raises(KernrigError, match=r"could not import(?s:.*)fatal"):
        linuxtree.make(tmp_path / "tree", package, {"not..a name": [linuxtree.Commit("one", {})]})


def test_an_edit_makes_another_kernel_each_time_and_leaves_the_package_alone(
    bench: Workbench, package: SourcePackage
) -> None:
    cache = bench.sources.cache(BASE)
    contents = [snapshot(bench.sources.tree, None, cache=cache).content]
    for _ in range(2):
        bench.sources.edit()
        contents.append(snapshot(bench.sources.tree, None, cache=cache).content)
    assert len(set(contents)) == 3
    assert (package.tree / MPROG).read_text() == TEXT


def test_a_source_without_a_place_for_the_fault_is_refused(bench: Workbench, package: SourcePackage) -> None:
    (package.tree / MPROG).write_text("int last;\n")
    with pytest.raises(KernrigError, match="no fault can be planted"):
        bench.sources.kernel(BASE)


def test_a_disk_without_room_is_told_before_any_work(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=5 * 10**9))
    with pytest.raises(HostError, match="may need 12 GB, and 5 GB are free"):
        bench.sources.kernel(BASE)
    assert not any(bench.sources.folder.iterdir())


# Builds


def test_a_cold_build_has_nothing_and_a_warm_one_only_ccache(bench: Workbench, builder: Builder) -> None:
    users = files_of(bench.base.root)
    cold = kernelspeed.cold("kernel-debug", DEBUG, bench)
    warm = kernelspeed.warm("kernel-debug-warm", DEBUG, bench)
    again = kernelspeed.cold("kernel-debug", DEBUG, bench)
    assert [*cold, *warm, *again] == ["kernel-debug", "kernel-debug-warm", "kernel-debug"]
    assert builder.met == [(DEBUG, []), (DEBUG, ["ccache"]), (DEBUG, [])]
    assert files_of(bench.base.root) == users


def test_a_warm_build_alone_makes_the_cold_one_first(bench: Workbench, builder: Builder) -> None:
    assert list(kernelspeed.warm("kernel-base-warm", BASE, bench)) == ["kernel-base-warm"]
    assert builder.met == [(BASE, []), (BASE, ["ccache"])]


def test_after_half_a_build_ccache_is_not_taken_for_warm(bench: Workbench, builder: Builder) -> None:
    builder.fails = True
    with pytest.raises(KernrigError, match="does not build"):
        kernelspeed.cold("kernel-base", BASE, bench)
    builder.fails = False
    kernelspeed.warm("kernel-base-warm", BASE, bench)
    assert len(builder.met) == 3
    assert builder.met[-1] == (BASE, ["ccache"])


def test_without_ccache_there_is_no_warm_build(bench: Workbench, builder: Builder) -> None:
    builder.ccache = False
    with pytest.raises(KernrigError, match="ccache kept nothing"):
        kernelspeed.warm("kernel-base-warm", BASE, bench)


def test_what_one_flavour_has_left_makes_room_for_the_other(bench: Workbench, builder: Builder) -> None:
    bench.sources.build(BASE)
    base = bench.sources.cache(BASE).root
    bench.sources.build(DEBUG)
    assert not base.exists()
    assert (bench.base.root / "state/ccache/file").exists()


@dataclass
class Pytest:
    """Takes the place of pytest's start: uses the kernel of the checkout, and makes a template for each content."""

    bench: Workbench
    texts: list[str] = field(default_factory=list)

    def __call__(
        self, bench: Workbench, project: Path, *, kernel: str, cache: Cache, scenarios: str, seconds: float
    ) -> float:
        kernels.resolve(kernel, cache=cache, say=print)
        self.texts.append((bench.sources.tree / MPROG).read_text())
        for entry in cache.entries("kernel"):
            for kind in ("boot-template", "load-template"):
                cache.build(kind, entry.key, lambda entry: None)
        return 70.0 + len(self.texts)


def test_a_rebuild_is_timed_after_a_run_on_the_kernel_before(
    bench: Workbench, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Pytest(bench)
    monkeypatch.setattr(kernelspeed, "first_verdict", played)
    assert kernelspeed.rebuild(bench) == {"kernel-rebuild": 72.0}
    assert len(set(played.texts)) == 2
    cache = bench.sources.cache(BASE)
    assert [len(cache.entries(kind)) for kind in ("kernel", "boot-template")] == [2, 0]


def test_a_rebuild_that_changes_nothing_is_no_rebuild(
    bench: Workbench, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelspeed, "first_verdict", Pytest(bench))
    monkeypatch.setattr(Sources, "edit", lambda _: None)
    with pytest.raises(KernrigError, match="no new kernel, boot-template, load-template"):
        kernelspeed.rebuild(bench)


# Searches


def kernel(release: str) -> AvailableKernel:
    return AvailableKernel(f"debian:{release}", release, f"{release}-1", ("sid",), None, fetched=True)


@pytest.mark.parametrize(
    ("releases", "place"),
    [
        (["6.1.0", "6.12.1"], 1),
        (["6.1.0", "6.12.1", "6.12.2", "6.12.3", "6.12.4", "7.2.1"], 1),
        (["6.1.0", "6.12.1", "6.12.2", "6.18.1", "6.18.2", "7.3-cloud"], 3),
    ],
)
def test_the_series_that_begins_in_the_middle_is_the_bad_one(releases: list[str], place: int) -> None:
    assert bisectspeed.first_bad([kernel(each) for each in releases]) == place


@pytest.mark.parametrize("releases", [[], ["6.12.1"], ["6.12.1", "6.12.2"]])
def test_kernels_of_one_series_cannot_be_searched(releases: list[str]) -> None:
    with pytest.raises(KernrigError, match="fewer than two series"):
        bisectspeed.first_bad([kernel(each) for each in releases])


@pytest.mark.parametrize(("release", "passes"), [("6.9.1", True), ("6.18.9", True), ("7.2.1+deb13", False)])
def test_the_scenario_fails_on_later_series_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, passes: bool
) -> None:
    bisectspeed.make_project(tmp_path / "project", last_good=(6, 18))
    code: dict[str, Callable[[], None]] = {}
    exec((tmp_path / "project/scenarios/test_release.py").read_text(), cast(dict[str, object], code))
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(release=release))
    if passes:
        code["test_the_kernel_is_old"]()
    else:
        with pytest.raises(AssertionError):
            code["test_the_kernel_is_old"]()


def write_report(file: Path, *, first_bad: int, broken: int | None = None) -> list[float]:
    """What `kernrig bisect` writes about 8 kernels; returns how long each took that it tried."""
    bench = Bench(
        rate=lambda name: float(int(name) >= first_bad),
        broken=lambda name: "no boot" if int(name) == broken else "",
    )
    space = Row([Candidate(str(each), str(each), str(each)) for each in range(8)])
    result = find(space, bench, file.parent)
    file.write_text(report.as_json(result, report.Question("test", "package", "kernrig")))
    return [each.trial.seconds for each in result.steps]


def test_the_steps_of_a_search_are_those_of_its_report(tmp_path: Path) -> None:
    file = tmp_path / "bisect.json"
    seconds = write_report(file, first_bad=5)
    assert len(seconds) == 5
    assert bisectspeed.step_seconds(file, "5") == seconds
    with pytest.raises(KernrigError, match="found 5 instead of 4"):
        bisectspeed.step_seconds(file, "4")


def test_a_search_that_passed_a_kernel_by_is_no_measure(tmp_path: Path) -> None:
    file = tmp_path / "bisect.json"
    write_report(file, first_bad=5, broken=3)
    with pytest.raises(KernrigError, match="could not try 3"):
        bisectspeed.step_seconds(file, "5")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"answer": {"culprits": []}, "steps": [{}]}'])
def test_a_file_that_is_no_report_of_a_search_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "bisect.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KernrigError, match="is not what `kernrig bisect` writes"):
        bisectspeed.step_seconds(file, "5")


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `kernrig` that writes a report, in which the first bad one is named in a file beside it, and a log of how it
    was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kernrig"
    program.write_text(f"""\
#!{sys.executable}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with (here / "log").open("a") as file:
    print(json.dumps([words, os.getcwd(), os.environ["KERNRIG_CACHE"]]), file=file)
first_bad = (here / "first_bad").read_text()
if not first_bad:
    sys.exit("kernrig: the good end is bad")
output = Path(words[words.index("--output") + 1])
output.mkdir(exist_ok=True)
steps = [{{"trial": {{"kernel": "k", "broken": "", "seconds": each}}}} for each in (9.0, 7.0, 8.0)]
(output / "bisect.json").write_text(json.dumps({{"answer": {{"culprits": [{{"id": first_bad}}]}}, "steps": steps}}))
""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def calls(played: Path) -> list[tuple[list[str], str, str]]:
    return [tuple(json.loads(line)) for line in (played / "log").read_text().splitlines()]


def test_commits_are_searched_where_the_checkout_was_built_before(
    bench: Workbench, builder: Builder, played: Path
) -> None:
    (played / "first_bad").write_text(bench.sources.culprit())
    cache = bench.sources.cache(BASE).root
    assert bisectspeed.commits(bench) == {"bisect-commit": [9.0, 7.0, 8.0]}
    assert builder.met == [(BASE, [])]
    ((words, place, used),) = calls(played)
    assert words[words.index("--tree") + 1] == str(bench.sources.tree)
    assert (place, used) == (str(bench.project()), str(cache))
    assert not (cache / "state/kernel-build-1").exists()


def test_a_search_that_fails_says_why(bench: Workbench, builder: Builder, played: Path) -> None:
    (played / "first_bad").write_text("")
    with pytest.raises(KernrigError, match=r"ended with status 1(?s:.*)the good end is bad"):
        bisectspeed.commits(bench)


def test_packages_are_searched_twice_with_templates_of_the_benchmarks_own(
    bench: Workbench, played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = [kernel("5.10.1"), *(kernel(f"6.{each}.1") for each in range(15)), kernel("7.1.1")]
    monkeypatch.setattr(kernels, "available", lambda *_: offered)
    (played / "first_bad").write_text("6.8.1-1")
    users = files_of(bench.base.root)
    assert bisectspeed.packages(bench) == {"bisect-package": [9.0, 7.0, 8.0]}
    assert len(calls(played)) == 2
    for words, _, cache in calls(played):
        assert words[words.index("--good") + 1 : words.index("--output")] == [
            "debian:6.0.1",
            "--bad",
            "debian:7.1.1",
        ]
        assert Path(cache).parent == bench.folder
        assert not Path(cache).exists()
    assert files_of(bench.base.root) == users


def test_the_command_is_where_the_benchmarks_python_is() -> None:
    kernrig = Path(sys.executable).with_name("kernrig")
    done = subprocess.run([kernrig, "bisect", "--help"], capture_output=True, text=True, check=True)
    assert "--again" in done.stdout and "--output" in done.stdout
