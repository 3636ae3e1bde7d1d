# SPDX-License-Identifier: MIT
"""What can't be used is refused on one screen: what was tried, what to do, pytest's exit code for wrong usage."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.bzimage import BTF, CONFIG, bzimage, elf, embedded
from tests.vm.project import Project, Ran

SCREEN = 24
ONE = {"scenarios/test_one.py": "def test_one():\n    pass\n"}


@pytest.fixture
def one(empty_project: Project) -> Project:
    """A project with one scenario."""
    empty_project.write(ONE)
    return empty_project


def refused(ran: Ran, *, screen: int = SCREEN) -> str:
    """The message of a run that was refused as it should be."""
    assert ran.status == pytest.ExitCode.USAGE_ERROR, ran.everything
    assert ran.cases == {}
    message = ran.everything
    assert "Traceback" not in message and "INTERNALERROR" not in message, message
    assert len(message.strip().splitlines()) <= screen, message
    return message


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system of 24 MiB there. Skips where none can be mounted."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "small", directory], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kr-kernel"], r"argument --kr-kernel: expected one argument"),
        (["--kr-kernel=/nowhere/bzImage"], r"/nowhere/bzImage.*\n.*hint: "),
        (["--kr-kernel=nonsense"], r"no kernel 'nonsense'.*\n.*hint: a kernel is named `debian`"),
        (["--kr-kernel="], r"name of the kernel is empty|expected|hint"),
        (
            ["--kr-isolation=holiday"],
            r"--kr-isolation: 'holiday' is not one of clone, boot, shared\.\n.*hint: ",
        ),
        (["--kr-accel=warp"], r"--kr-accel: 'warp' is not one of auto, kvm, tcg"),
        (["--kr-keep=sometimes"], r"--kr-keep: 'sometimes' is not one of never, failed, always"),
        (["--kr-cpus=many"], r"--kr-cpus: 'many' is not a number"),
        (["--kr-cpus=0"], r"A machine can't have 0 processors\.\n.*hint: give --kr-cpus"),
        (["--kr-memory=16"], r"can't boot with 16 MiB.*\n.*hint: give --kr-memory"),
        (["--kr-memory=99999999"], r"does not fit this host's memory.*\n.*hint: give it less"),
        (["--kr-timeout=-1"], r"--kr-timeout: '-1' is not a number of seconds"),
        (['--kr-append="unclosed'], r"--kr-append: .*\n.*hint: "),
        (["--kr-qemu=/nowhere/qemu"], r"/nowhere/qemu.*\n.*hint: "),
        (["--kr-qemu=/bin/true"], r"/bin/true.*\n.*hint: "),
        (["--kr-modules=/nowhere", "--kr-kernel={kernel}"], r"/nowhere"),
        (["--kr-wish=1"], r"unrecognized arguments: --kr-wish=1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_option(one: Project, arguments: list[str], expected: str) -> None:
    kernel = one.root / "bzImage"
    kernel.write_bytes(bzimage(gzip.compress(elf({".BTF": BTF}, embedded(CONFIG)))))
    ran = one.pytest(*(each.format(kernel=kernel) for each in arguments))
    assert re.search(expected, refused(ran)), ran.everything


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!/bin/sh\necho I am no kernel\n", r"no (bzImage|kernel|Linux).*|not a"),
        (b"", r"empty|not a|no "),
        (bzimage(gzip.compress(elf({}, embedded(CONFIG)))), r"BTF"),
        (
            bzimage(gzip.compress(elf({".BTF": BTF}, embedded("CONFIG_DEBUG_INFO_BTF=y\n")))),
            r"BLK_DEV_INITRD",
        ),
    ],
    ids=["script", "empty", "no-btf", "no-initramfs"],
)
def test_file_that_is_no_usable_kernel(one: Project, tmp_path: Path, content: bytes, expected: str) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(content)
    message = refused(one.pytest(f"--kr-kernel={kernel}"))
    assert str(kernel) in message
    assert re.search(expected, message), message
    assert "hint: " in message


def test_kernel_that_does_not_come_up_is_tried_again_and_given_up(one: Project) -> None:
    """Without a root file system it panics; what its console said last is in the message."""
    message = refused(one.pytest("--kr-append=rdinit=/nowhere"), screen=40)
    assert message.count("kernrig: booting ") == 3
    assert message.count("The guest did not come up: the machine has ended (QEMU's exit status 0") == 3
    assert "console: " in message and "Kernel panic - not syncing" in message
    assert "hint: see the console above" in message


def test_environment_and_ini_file_are_named_when_they_are_wrong(one: Project) -> None:
    wrong = Project(one.root, {"KERNRIG_ISOLATION": "holiday"})
    assert "environment variable KERNRIG_ISOLATION: 'holiday' is not one of" in refused(wrong.pytest())
    one.write({"pytest.ini": "[pytest]\nkr_cpus = lots\n"})
    assert "ini key kr_cpus: 'lots' is not a number" in refused(one.pytest())


def test_unusable_cache_directory(one: Project) -> None:
    (one.root / "file").touch()
    message = refused(Project(one.root, {"KERNRIG_CACHE": str(one.root / "file")}).pytest())
    assert re.search(r"cache directory .*/file cannot be used.*\n.*hint: set KERNRIG_CACHE", message)


def test_template_that_does_not_fit_the_disk(one: Project, private_cache: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    with small_disk(small):
        shutil.copytree(private_cache, small, symlinks=True, dirs_exist_ok=True)
        message = refused(Project(one.root, {"KERNRIG_CACHE": str(small)}).pytest())
        left = list(small.glob("boot-template/*"))
    assert re.search(r"the disk of .* is full: boot-template/.*\n.*hint: free some space", message)
    assert left == []


def test_without_scenarios_nothing_is_started(empty_project: Project) -> None:
    empty_project.write({"test_host.py": "def test_here():\n    pass\n"})
    begin = time.monotonic()
    ran = empty_project.pytest("--kr-kernel=/nowhere/bzImage")
    assert ran.outcomes == {"test_here": "passed"}
    assert time.monotonic() - begin < 20
