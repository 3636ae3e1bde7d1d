# SPDX-License-Identifier: MIT
"""A configured tree becomes bzImage, modules, vmlinux with symbols and what modules are built against.

The compiler's results are kept by ccache in the cache, so that the second build of nearly the same is short.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import host
from harness.cache import Cache, Say
from harness.errors import HostError, KernrigError

CCACHE_SIZE = "8G"
_STEP = re.compile(r"  ([A-Z][A-Z0-9_ ]{0,14}?) +(?:\[M\] +)?(\S+)$")
_ERROR = re.compile(
    r"(?:^|\s)(?:fatal )?error:|undefined reference to|No rule to make target|: Error \d+$|FAILED"
)
_MAKE_ERROR = re.compile(r"make(?:\[\d+\])?: \*\*\*")
_CONTEXT_LINES = 6
_TELL_EVERY_S = 10.0
_PROGRAMS = ("flex", "bison", "bc", "make", "ld")
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "kernrig",
    "KBUILD_BUILD_HOST": "kernrig",
    "KBUILD_BUILD_VERSION": "1",
}

Progress = Callable[[int, int | None, str], None]
"""Called with the files done so far, how many there will be (None: not known), and the file that was just made."""


@dataclass(frozen=True)
class Compiler:
    """What the kernel is compiled with: `make` are the variables that choose it, `version` tells compiler, linker and
    pahole apart."""

    name: str
    make: tuple[str, ...]
    version: str


def compiler(name: str) -> Compiler:
    """The host's `gcc` or `clang`. Raises HostError when something that a kernel's build needs is missing."""
    programs = ("gcc", "ld", "pahole") if name == "gcc" else ("clang", "ld.lld", "pahole")
    for each in {*programs, *_PROGRAMS, "gcc"}:
        if host.which(each) is None:
            raise HostError(f"building a kernel needs {each}", hint="make setup installs what Debian has")
    versions = []
    for each in programs:
        done = subprocess.run([each, "--version"], capture_output=True, text=True, timeout=30, check=False)
        versions.append((done.stdout.splitlines() or [each])[0])
    return Compiler(name, ("LLVM=1",) if name == "clang" else (), "; ".join(versions))


def environment(cache: Cache, work: Path) -> dict[str, str]:
    """The environment of every program of a build in `work`: ccache before the compilers, nothing that tells
    time, user or host."""
    path = os.environ.get("PATH", os.defpath)
    ccache = Path("/usr/lib/ccache")
    found = {"PATH": f"{ccache}:{path}" if ccache.is_dir() else path, "HOME": str(work), "LC_ALL": "C.UTF-8"}
    found |= {
        "CCACHE_DIR": str(cache.root / "state" / "ccache"),
        "CCACHE_BASEDIR": str(work),
        # What the compiler tells of its headers is enough; else each miss runs the preprocessor once more.
        "CCACHE_DEPEND": "1",
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": CCACHE_SIZE,
    }
    return found | _REPRODUCIBLE


def compile_kernel(
    make: Sequence[str], env: Mapping[str, str], *, log: Path, total: int | None, progress: Progress
) -> int:
    """Run `make bzImage modules`; returns how many files it made. All output goes into `log`.

    Raises KernrigError with the first error and its surroundings when it fails.
    """
    command = [*make, f"-j{os.cpu_count() or 1}", "bzImage", "modules"]
    done = 0
    with log.open("w", encoding="utf-8") as file:
        print("+", *command, file=file, flush=True)
        program = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            assert program.stdout is not None
            for line in program.stdout:
                file.write(line)
                if step := _STEP.match(line.rstrip("\n")):
                    done += 1
                    progress(done, total, step[2])
            status = program.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGTERM)
            program.wait()
            raise
    if status:
        raise KernrigError(
            f"the kernel does not build:\n{first_error(log.read_text(encoding='utf-8', errors='replace'))}",
            hint=f"the whole log is in {log}",
        )
    return done


def first_error(log: str) -> str:
    """The first error in a build's output with the lines around it, indented; make's own complaints only if there is
    nothing better."""
    lines = log.splitlines()
    at = next(
        (i for i, line in enumerate(lines) if _ERROR.search(line) and not _MAKE_ERROR.match(line)), None
    )
    if at is None:
        at = next((i for i, line in enumerate(lines) if _MAKE_ERROR.match(line)), len(lines) - 1)
    about = [line for line in lines[max(0, at - 2) : at + _CONTEXT_LINES] if not _STEP.match(line)]
    return "\n".join(f"  {line}" for line in about)


def teller(say: Say, what: str) -> Progress:
    """A progress function that says a line now and then."""
    began = told = time.monotonic()

    def progress(done: int, total: int | None, file: str) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _TELL_EVERY_S:
            told = now
            of = f" of about {max(total, done)}" if total else ""
            say(f"{what}: {done}{of} files in {now - began:.0f} s, now {file}")

    return progress


def install_modules(make: Sequence[str], env: Mapping[str, str], target: Path) -> None:
    """Put the modules below `target`/lib/modules, without debugging information."""
    _quiet(
        [*make, f"INSTALL_MOD_PATH={target}", "INSTALL_MOD_STRIP=1", "DEPMOD=true", "modules_install"],
        env,
        "installing the kernel's modules",
    )
    for each in target.glob("lib/modules/*/*"):
        if each.is_symlink():
            each.unlink()


def keep_vmlinux(build: Path, target: Path, env: Mapping[str, str]) -> None:
    """Copy vmlinux with its symbols and line numbers, compressed as binutils can: zstd takes a tenth of zlib's time."""
    known = subprocess.run(["objcopy", "--help"], env=dict(env), capture_output=True, text=True, check=False)
    method = "=zstd" if "zstd" in known.stdout else ""
    _quiet(
        ["objcopy", f"--compress-debug-sections{method}", str(build / "vmlinux"), str(target)],
        env,
        "keeping vmlinux",
    )


def keep_headers(tree: Path, make: Sequence[str], env: Mapping[str, str], btf: Path, target: Path) -> None:
    """Pack what modules are built against into the archive `target`: the tree's own `install-extmod-build`
    chooses it, or for a tree before 6.7 what that script takes."""
    build = next(Path(each[2:]) for each in make if each.startswith("O="))
    folder = target.with_suffix(".folder")
    shutil.rmtree(folder, ignore_errors=True)
    if (tree / "scripts/package/install-extmod-build").exists():
        run = f"KBUILD_RUN_COMMAND={tree}/scripts/package/install-extmod-build {folder}"
        _quiet([*make, run, "run-command"], env, "collecting the headers")
    else:
        _collect_headers(tree, build, folder)
    shutil.copyfile(build / ".config", folder / ".config")
    # Modules get their BTF relative to these types.
    shutil.copyfile(btf, folder / "vmlinux")
    # The same headers give the same archive, by which they are told apart.
    same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go=rX"]
    pack = ["tar", *same, "--zstd", "-cf", str(target), "-C", str(folder), "."]
    _quiet(pack, env, "packing the headers")
    shutil.rmtree(folder)


def _collect_headers(tree: Path, build: Path, folder: Path) -> None:
    sources = ("Makefile", "scripts", "include", "arch/x86/Makefile*", "arch/x86/include", "arch/x86/*/*.lds")
    made = (
        "Module.symvers",
        "scripts",
        "include/config",
        "include/generated",
        "arch/x86/include/generated",
        "tools/objtool/objtool",
        "tools/bpf/resolve_btfids/resolve_btfids",
    )
    skipped = shutil.ignore_patterns("*.o", ".*.cmd", "kconfig", "package")
    for root, patterns in ((tree, sources), (build, made)):
        for pattern in patterns:
            for path in root.glob(pattern):
                copy = folder / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, copy, symlinks=True, ignore=skipped, dirs_exist_ok=True)
                else:
                    shutil.copy2(path, copy)


def _quiet(command: Sequence[str], env: Mapping[str, str], what: str) -> None:
    done = subprocess.run(
        list(command),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=900,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise KernrigError(f"{what} failed:\n{tail}")
