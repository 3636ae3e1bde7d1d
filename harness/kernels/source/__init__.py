# SPDX-License-Identifier: MIT
"""Kernels that are built here: `tree:PATH[@REV][+FLAVOUR...]`, `deb-source:SERIES[+FLAVOUR...]`."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.cache import Cache, Say, digest
from harness.errors import KernrigError
from harness.kernels import stored
from harness.kernels.kernel import Headers, Kernel
from harness.kernels.source import build, kconfig, names, profile, trees
from harness.kernels.source.build import Progress

SOURCE = "source"
is_name = names.is_name

# Part of every key: a change to how kernels are built makes new ones.
_RECIPE = "1"
_WORKSHOP = "kernel-build-"
_BUILD_WAIT_S = 4 * 3600.0
_COMPILERS = ("clang", "gcc")

# A search leaves a kernel for each step, 200 MB with its headers; a place and flavour a build directory of 1 to 4 GB.
_KEPT_KERNELS = 16
_KEPT_WORKSHOPS = 4
_UNUSED_S = 3 * 24 * 3600.0


@dataclass(frozen=True)
class Plan:
    """One kernel that can be built: what from, how configured, which of its files count their lines (`profiled`: lists
    of them), and the key under which it lies in the cache."""

    name: names.SourceName
    snapshot: trees.Snapshot
    fragments: tuple[Path, ...]
    profiled: tuple[Path, ...]
    compiler: build.Compiler
    key: str


def resolve(
    name: str,
    *,
    cache: Cache,
    say: Say | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Kernel:
    """The kernel that `name` stands for, built when it is not in the cache.

    Raises KernrigError when there is no such source, its configuration has not what the fragments ask for, or
    it does not build.
    """
    planned = plan(name, cache=cache, say=say, refresh=refresh)
    entry = cache.build(
        stored.KIND,
        planned.key,
        lambda folder: _make(folder, planned, cache, say, progress),
        say=say,
        wait_s=_BUILD_WAIT_S,
    )
    return stored.load(entry, name)


def plan(name: str, *, cache: Cache, say: Say | None = None, refresh: bool = False) -> Plan:
    """What `name` asks for, without building it. Raises KernrigError as `resolve` does for a wrong name."""
    asked = names.parse(name)
    fragments = _fragments(asked)
    profiled = profile.lists_for(fragments)
    if profiled and "clang" in asked.flavours:
        raise KernrigError(
            f"{name}: lines are counted in kernels that gcc compiled", hint="leave out +clang or +coverage"
        )
    compiler = build.compiler("clang" if "clang" in asked.flavours else "gcc")
    snapshot = _snapshot(asked, cache=cache, say=say, refresh=refresh)
    key = digest(SOURCE, _RECIPE, stored.LAYOUT, snapshot.content, compiler.version, *fragments, *profiled)
    return Plan(asked, snapshot, fragments, profiled, compiler, key)


def prune(cache: Cache) -> None:
    """Remove what was built here and nobody used for days, but for the latest: kernels, headers, build directories.

    Fetched kernels stay: Debian's mirrors may no longer have them.
    """

    def built(entry: Path) -> bool:
        try:
            told = json.loads((entry / "provenance.json").read_bytes())
            return bool(told["provenance"]["source"] == SOURCE)
        except (OSError, ValueError, KeyError):
            return False

    cache.prune(stored.KIND, keep=_KEPT_KERNELS, idle_s=_UNUSED_S, which=built)
    cache.prune("headers", keep=_KEPT_KERNELS, idle_s=_UNUSED_S)
    cache.prune(
        "state", keep=_KEPT_WORKSHOPS, idle_s=_UNUSED_S, which=lambda path: path.name.startswith(_WORKSHOP)
    )


def counts_lines(name: str) -> bool:
    """Whether the kernel `name`, built or not, counts which of its lines run. Raises KernrigError for a wrong name."""
    return bool(profile.lists_for(_fragments(names.parse(name))))


def _fragments(asked: names.SourceName) -> tuple[Path, ...]:
    if asked.config is not None:
        return (asked.config,)
    return tuple(kconfig.fragments_of([each for each in asked.flavours if each not in _COMPILERS]))


def settled(name: str, *, cache: Cache, say: Say | None = None) -> str:
    """The text of the `.config` that the kernel `name` has, or would have: it is not built for this.

    Raises KernrigError as `resolve` does for a wrong name or configuration.
    """
    planned = plan(name, cache=cache, say=say)
    if (entry := cache.get(stored.KIND, planned.key)) is not None:
        return (entry / "config").read_text(encoding="utf-8")
    with cache.state(_workshop(planned), say=say, wait_s=_BUILD_WAIT_S) as work:
        tree = planned.snapshot.copy_to(work / "source").resolve()
        output = work / "configuration"
        output.mkdir(exist_ok=True)
        _configure(planned, tree, output, build.environment(cache, work))
        return (output / ".config").read_text(encoding="utf-8")


def headers(kernel: Kernel, *, cache: Cache, say: Say | None = None) -> Headers:
    """What modules for a kernel that was built here are built against, unpacked in the cache."""
    archive = kernel.vmlinuz.with_name("headers.tar.zst")

    def make(folder: Path) -> None:
        done = subprocess.run(
            ["tar", "--zstd", "-xf", str(archive), "-C", str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise KernrigError(f"unpacking the headers of {kernel.release} failed: {done.stderr.strip()}")

    entry = cache.build("headers", digest("headers", kernel.headers_digest), make, say=say).resolve()
    return Headers(entry, entry, kernel.release)


def _snapshot(asked: names.SourceName, *, cache: Cache, say: Say | None, refresh: bool) -> trees.Snapshot:
    if asked.path is not None:
        return trees.snapshot(asked.path, asked.rev, cache=cache, say=say)
    from harness.kernels.source import package

    assert asked.series is not None
    found = package.fetch(asked.series, cache=cache, say=say, refresh=refresh)
    return trees.Snapshot(f"deb-source {asked.series}", found.file, found.version, found.tree)


def _make(folder: Path, planned: Plan, cache: Cache, say: Say | None, progress: Progress | None) -> None:
    def tell(text: str) -> None:
        if say is not None:
            say(text)

    with cache.state(_workshop(planned), say=say, wait_s=_BUILD_WAIT_S) as work:
        tree = planned.snapshot.copy_to(work / "source").resolve()
        output = work / "build"
        output.mkdir(exist_ok=True)
        env = build.environment(cache, work)
        make = ["make", "-C", str(tree), f"O={output}", *planned.compiler.make]
        verified = _configure(planned, tree, output, env)
        for wish in verified.unknown:
            if wish.value != "n":
                tell(f"{planned.name}: this kernel does not know {wish.option} ({wish.fragment}.config)")
        before = _files_of_last_build(work)
        tell(
            f"building the kernel {planned.name} ({planned.snapshot.version}), configuration {_flavour(planned)}"
        )
        done = build.compile_kernel(
            [*make, *profile.make_words(planned.profiled)],
            env,
            log=work / "build.log",
            total=before,
            progress=progress or build.teller(tell, str(planned.name)),
        )
        (work / "last.json").write_text(json.dumps({"files": max(done, before or 0)}))
        build.install_modules(make, env, folder / "root")
        bzimage = output / "arch/x86/boot/bzImage"
        stored.write(
            folder,
            stored.Parts(
                vmlinuz=bzimage,
                config=(output / ".config").read_text(encoding="utf-8"),
                package=str(planned.name),
                version=planned.snapshot.version,
                source=SOURCE,
                parts=(f"{planned.snapshot.content}  {planned.snapshot.place}", planned.compiler.version),
            ),
        )
        build.keep_vmlinux(output, folder / "vmlinux", env)
        headers = folder / "headers.tar.zst"
        build.keep_headers(tree, make, env, folder / "vmlinux.btf", headers)
        stored.note_headers(folder, digest(headers))
        if planned.profiled:
            profile.keep(tree, output, folder / profile.FOLDER)
        shutil.copyfile(work / "build.log", folder / "build.log")
        prune(cache)


def _flavour(planned: Plan) -> str:
    """The names of compiler and fragments. Whole configurations have one name in common, so that the second one is
    built where the first one was."""
    parts = ("config",) if planned.name.config else tuple(each.stem for each in planned.fragments)
    return "+".join((planned.compiler.name, *parts))


def _workshop(planned: Plan) -> str:
    """The cache's state in which it is built; one place and flavour is built incrementally."""
    return f"{_WORKSHOP}{digest(planned.snapshot.place, _flavour(planned))}"


def _configure(planned: Plan, tree: Path, output: Path, env: dict[str, str]) -> kconfig.Verified:
    command = ["make", *planned.compiler.make]
    if planned.name.config is None:
        return kconfig.configure(tree, output, planned.fragments, command, env)
    return kconfig.take(tree, output, planned.name.config, command, env)


def _files_of_last_build(work: Path) -> int | None:
    try:
        return int(json.loads((work / "last.json").read_text())["files"])
    except (OSError, ValueError, KeyError):
        return None
