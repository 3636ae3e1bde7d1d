# SPDX-License-Identifier: MIT
"""What surrounds the building of kernels: progress and errors of make, and how much of it is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.errors import KernrigError
from harness.kernels import source, stored
from harness.kernels.config import KernelConfig
from harness.kernels.kernel import Kernel, Provenance
from harness.kernels.source.build import compile_kernel
from harness.modbuild import build_modules

_LONG_AGO = 1_000_000_000.0


def fake_make(folder: Path, script: str) -> list[str]:
    program = folder / "make"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return [str(program), "V=0"]


def test_files_are_counted_and_the_log_is_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    lines = "make: Entering directory\\n  CC      kernel/fork.o\\n  LD [M]  net/smc/smc.ko\\n  CALL  x y\\n"
    make = fake_make(tmp_path, f'printf "{lines}$*"')
    log = tmp_path / "log"
    done = compile_kernel(make, os.environ, log=log, total=7, progress=lambda *words: told.append(words))
    assert told == [(1, 7, "kernel/fork.o"), (2, 7, "net/smc/smc.ko")]
    assert done == 2
    assert log.read_text().startswith(f"+ {make[0]} V=0 -j")
    assert log.read_text().endswith("bzImage modules")


def test_a_failed_build_shows_its_first_error_and_where_the_log_is(tmp_path: Path) -> None:
    make = fake_make(tmp_path, 'echo "  CC  a.o"; echo "a.c:3:1: error: no such thing"; exit 2\n')
    with pytest.raises(KernrigError, match=r"a\.c:3:1: error: no such thing") as caught:
        compile_kernel(make, os.environ, log=tmp_path / "log", total=None, progress=lambda *_: None)
    assert str(tmp_path / "log") in str(caught.value)


def test_an_interrupted_build_leaves_no_process(tmp_path: Path) -> None:
    make = fake_make(tmp_path, f'echo $$ >{tmp_path}/pid; echo "  CC  a.o"; exec sleep 600\n')

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_kernel(make, os.environ, log=tmp_path / "log", total=None, progress=interrupt)
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()


def test_kernels_with_the_same_headers_share_test_modules(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def kernel(digest: str, headers: str) -> Kernel:
        origin = Provenance("source", "tree:linux", "1", "")
        return Kernel(
            name="tree:linux",
            release="6.12.1",
            vmlinuz=tmp_path,
            modules=None,
            btf=tmp_path,
            digest=digest,
            provenance=origin,
            config=KernelConfig({}),
            headers_digest=headers,
        )

    def asked(each: Kernel) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "build", lambda *_, **__: tmp_path)
            return build_modules(each, cache=cache).digest

    assert asked(kernel("one", "same")) == asked(kernel("two", "same"))
    assert asked(kernel("one", "")) != asked(kernel("two", ""))
    assert kernel("one", "").modules_digest == "one"


def provenance(origin: str) -> Callable[[Path], None]:
    def make(entry: Path) -> None:
        (entry / "provenance.json").write_text(json.dumps({"provenance": {"source": origin}}))

    return make


def test_kernels_that_were_built_go_when_they_are_old_and_fetched_ones_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    built = [cache.build(stored.KIND, f"b{number:02}", provenance(source.SOURCE)) for number in range(20)]
    fetched = [cache.build(stored.KIND, f"f{number}", provenance("debian")) for number in range(3)]
    for number, entry in enumerate(built + fetched):
        os.utime(entry, (_LONG_AGO, _LONG_AGO + number))
    with cache.state("apt") as lists, cache.state("kernel-build-1") as workshop:
        pass
    os.utime(lists, (0, 0))
    source.prune(cache)
    left = {each.key for each in cache.entries(stored.KIND)}
    assert left == {f"b{number:02}" for number in range(4, 20)} | {"f0", "f1", "f2"}
    assert lists.exists()
    assert workshop.exists()
