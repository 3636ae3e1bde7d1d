# SPDX-License-Identifier: MIT
"""The real root file system, made twice: same bytes, nothing missing, nothing of the builder."""

from __future__ import annotations

import filecmp
import io
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from harness.image import python, recipe, rootfs, tools
from tests.image_files import Member, read_archives

LIBRARIES = "usr/lib/x86_64-linux-gnu"
# Pruned, or never there on Linux.
NOT_IMPORTABLE = {
    *(
        "antigravity",
        "ensurepip",
        "idlelib",
        "pydoc_data",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
        "_tkinter",
    ),
    *("_dbm", "_gdbm", "_android_support", "_aix_support", "_ios_support", "_osx_support", "_scproxy"),
    *("msvcrt", "nt", "winreg", "winsound", "_msi", "_overlapped", "_winapi", "_wmi"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the archive and its manifest, made now."""
    target = tmp_path_factory.mktemp("rootfs")
    rootfs.make(target, recipe.read(), mirror=None, say=print)
    return target


@pytest.fixture(scope="module")
def members(made: Path) -> dict[str, Member]:
    """What the archive holds."""
    (archive,) = read_archives((made / rootfs.ARCHIVE).read_bytes())
    return archive


@pytest.fixture(scope="module")
def unpacked(members: dict[str, Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's files and links in a directory."""
    root = tmp_path_factory.mktemp("unpacked")
    for path, member in members.items():
        place = root / path
        if stat.S_ISDIR(member.mode):
            place.mkdir(exist_ok=True)
        elif stat.S_ISLNK(member.mode):
            place.symlink_to(member.data.decode())
        elif stat.S_ISREG(member.mode):
            place.write_bytes(member.data)
            place.chmod(stat.S_IMODE(member.mode))
    return root


def test_the_same_inputs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "with a space"
    again.mkdir()
    old = os.umask(0o077)
    try:
        rootfs.make(again, recipe.read(), mirror=None, say=print)
    finally:
        os.umask(old)
    assert filecmp.cmp(made / rootfs.ARCHIVE, again / rootfs.ARCHIVE, shallow=False)
    assert (made / rootfs.MANIFEST).read_text() == (again / rootfs.MANIFEST).read_text()
    assert sorted(path.name for path in again.iterdir()) == [rootfs.ARCHIVE, rootfs.MANIFEST]


def test_it_stays_small(made: Path) -> None:
    assert (made / rootfs.ARCHIVE).stat().st_size < 75_000_000


def test_the_manifest_names_every_package(made: Path) -> None:
    manifest = json.loads((made / rootfs.MANIFEST).read_text())
    assert manifest["packages"].keys() >= {*recipe.read().packages, "libc6"}
    assert manifest["python_packages"].keys() >= {"pytest", "pyroute2"}


def test_every_shared_library_that_something_links_is_there(members: dict[str, Member]) -> None:
    libraries = {path.rpartition("/")[2] for path in members if path.startswith(f"{LIBRARIES}/")}
    missing = {}
    for path, member in members.items():
        if member.data.startswith(b"\x7fELF"):
            dynamic = ELFFile(io.BytesIO(member.data)).get_section_by_name(".dynamic")
            if isinstance(dynamic, DynamicSection):
                needed = {str(getattr(tag, "needed", "")) for tag in dynamic.iter_tags("DT_NEEDED")}
                if needed - libraries:
                    missing[path] = needed - libraries
    assert missing == {}


def test_no_link_points_nowhere(unpacked: Path, members: dict[str, Member]) -> None:
    links = [path for path, member in members.items() if stat.S_ISLNK(member.mode)]
    targets = {path: (unpacked / path).readlink() for path in links}
    assert [path for path in links if targets[path].is_absolute()] == []
    dangling = {path for path in links if not (unpacked / path).exists()}
    # The init mounts /proc.
    assert dangling == {"etc/mtab"}


def test_nothing_of_the_builder_is_inside(made: Path, members: dict[str, Member]) -> None:
    for path, member in members.items():
        assert str(made).encode() not in member.data, path
    assert {(m.uid, m.gid, m.mtime) for m in members.values()} == {(0, 0, 0)}
    assert "etc/resolv.conf" not in members


def test_every_python_source_has_its_byte_code(members: dict[str, Member]) -> None:
    for path in members:
        if path.startswith((f"{python.LIBRARY}/", f"{python.SITE}/")) and path.endswith(".py"):
            folder, _, name = path.rpartition("/")
            code = members[f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-313.pyc"].data
            # PEP 552: by hash, not checked against the source.
            assert code[4:8] == b"\x01\0\0\0", path


def test_the_whole_standard_library_can_be_imported(unpacked: Path) -> None:
    code = (
        "import importlib, sys\n"
        f"for name in sorted(sys.stdlib_module_names - {NOT_IMPORTABLE!r}):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: print(name, error)\n"
    )
    assert run_python(unpacked, code) == ""


def test_pytest_pyroute2_and_libbpf_work(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert {'a': [1]} == {'a': [2]}\n")
    code = (
        "import ctypes, hashlib, ssl, sqlite3, zoneinfo, pytest, pyroute2\n"
        "print(hashlib.new('sha256', b'').hexdigest()[:8])\n"
        f"pytest.main(['-q', '--color=yes', '-p', 'no:cacheprovider', {str(tmp_path)!r}])\n"
        "print(ctypes.CDLL('libbpf.so.1').libbpf_major_version())\n"
    )
    said = run_python(unpacked, code)
    assert said.startswith("e3b0c442\n")
    assert "assert {'a': [1]} == {'a': [2]}" in said
    assert said.endswith("\n1\n")


def run_python(root: Path, code: str) -> str:
    """What the guest's interpreter says to `code`, run on the host."""
    site = f"import sys; sys.path.append({str(root / python.SITE)!r})\n"
    done = subprocess.run(
        [*tools.inside(root, python.INTERPRETER), "-S", "-B", "-W", "ignore", "-c", site + code],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        cwd=root,  # the repository's own metadata would make its pytest plugin load
        env={"PYTHONHOME": str(root / "usr"), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
