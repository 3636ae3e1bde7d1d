# SPDX-License-Identifier: MIT
"""How Debian's packages are unpacked, and how a failing build step is ended and reported."""

from __future__ import annotations

import io
import os
import select
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from harness import host
from harness.deadline import Deadline
from harness.errors import HostError, KernrigError
from harness.image import debian, recipe, tools

# The number of the system call in which subprocess waits for a program's output (asm/unistd_64.h).
POLL = "7"


def test_packages_are_unpacked_below_usr_without_what_is_pruned(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    with tarfile.open(tar, "w") as archive:

        def add(name: str, mode: int = 0o644, content: bytes = b"x", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.mode, member.size = mode, len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))

        add("./usr/bin/tool", 0o4755)
        add("./bin/old-style", 0o755)
        add("./usr/share/doc/tool/changelog")
        add("../outside")
        add("./usr/bin/alias", content=b"", type=tarfile.SYMTYPE, linkname="tool")
        add("./usr/bin/twin", content=b"", type=tarfile.LNKTYPE, linkname="./usr/bin/tool")
        add("./usr/node", content=b"", type=tarfile.CHRTYPE)
    root = tmp_path / "root"
    debian.unpack(tar, root, recipe.read())
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    assert found == ["usr/bin/alias", "usr/bin/old-style", "usr/bin/tool", "usr/bin/twin"]
    assert stat.S_IMODE((root / "usr/bin/tool").stat().st_mode) == 0o755
    assert (root / "usr/bin/alias").readlink() == Path("tool")
    assert (root / "usr/bin/twin").read_bytes() == b"x"
    assert not (tmp_path / "outside").exists()


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the program, to be filled by the test: the first one in PATH."""
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "KEYRING", tmp_path)
    return program


def script(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_package_versions_come_from_what_was_downloaded(mmdebstrap: Path, tmp_path: Path) -> None:
    script(
        mmdebstrap,
        "echo 'I: extracting' >&2; echo packages: >&2; echo libc6_1%3a2.41-12+deb13u4_amd64.deb >&2;"
        "echo partial >&2; echo 'end of packages' >&2; echo later_1_all.deb >&2; echo the archive",
    )
    versions = debian.download(tmp_path / "root.tar", ["libc6"], "http://debian.invalid")
    assert versions == {"libc6": "1:2.41-12+deb13u4"}
    assert (tmp_path / "root.tar").read_text() == "the archive\n"


@pytest.mark.parametrize(
    ("complaint", "hint"),
    [
        ("E: Failed to fetch http://debian.invalid/x  Could not resolve 'debian.invalid'", "KERNRIG_MIRROR"),
        ("W: GPG error: ... NO_PUBKEY 6ED0E7B82643E131", "debian-archive-keyring"),
        ("E: Write error - write (28: No space left on device)", "free some disk space"),
    ],
)
def test_a_failing_mmdebstrap_is_quoted_with_advice(
    mmdebstrap: Path, tmp_path: Path, complaint: str, hint: str
) -> None:
    script(mmdebstrap, f'echo "{complaint}" >&2; echo "I: removing tempdir" >&2; exit 25')
    with pytest.raises(KernrigError) as caught:
        debian.download(tmp_path / "root.tar", ["x"], "http://debian.invalid")
    assert "mmdebstrap ended with status 25" in caught.value.what
    assert complaint in caught.value.what
    assert "removing tempdir" not in caught.value.what
    assert hint in (caught.value.hint or "")


def test_a_host_without_the_archive_s_keys_is_told_the_package(
    mmdebstrap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(mmdebstrap, "exit 0")
    monkeypatch.setattr(host, "KEYRING", tmp_path / "gone.gpg")
    with pytest.raises(HostError, match="debian-archive-keyring"):
        debian.download(tmp_path / "root.tar", ["x"], "http://debian.invalid")


def test_a_host_without_mmdebstrap_is_told_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "which", lambda command: None)
    with pytest.raises(HostError, match="apt-get install mmdebstrap"):
        debian.download(tmp_path / "root.tar", ["x"], "http://debian.invalid")


def test_a_program_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match=r"asking failed: .*/nothing cannot be run"):
        tools.run([str(tmp_path / "nothing")], step="asking", hint="")


def test_a_program_that_is_stuck_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_LONGEST_S", 0.1)
    started = time.monotonic()
    with pytest.raises(KernrigError, match="asking failed: no end after"):
        tools.run(["sleep", "60"], step="asking", hint="")
    assert time.monotonic() - started < 10


def test_an_interrupted_build_step_takes_its_program_along(tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    program = ["sh", "-c", f"echo > {fifo}; exec sleep 60"]
    code = f"from harness.image import tools; tools.run({program!r}, step='x', hint='')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        # Opened for writing too, so that neither this nor the reading can block for ever.
        with os.fdopen(os.open(fifo, os.O_RDWR), "rb") as started:
            assert select.select([started], [], [], 20)[0]
        children = psutil.Process(process.pid).children()
        # The program runs before its starter knows that it does: wait until that one waits for its output.
        deadline = Deadline.after(20, "the output to be waited for")
        while Path(f"/proc/{process.pid}/syscall").read_text().split()[0] != POLL:
            deadline.check()
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert len(children) == 1
    # It is no child of ours: who collects it takes its time.
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_the_builder_s_python_settings_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    output = tools.run(["env"], step="asking", hint="", env={"PYTHONHASHSEED": "0"}).out.splitlines()
    assert [line for line in output if line.startswith("PYTHON")] == ["PYTHONHASHSEED=0"]
    assert f"SOURCE_DATE_EPOCH={tools.EPOCH}" in output
