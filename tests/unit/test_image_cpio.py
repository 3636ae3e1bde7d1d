# SPDX-License-Identifier: MIT
"""What the cpio writer promises: the kernel can read it, and the same content always gives the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from harness.image import cpio
from tests.image_files import Member, read_archives


def written(*entries: cpio.Entry) -> bytes:
    out = io.BytesIO()
    cpio.write(out, entries)
    return out.getvalue()


def members(*entries: cpio.Entry) -> dict[str, Member]:
    (archive,) = read_archives(written(*entries))
    return archive


def test_a_file_has_the_header_that_the_kernel_documents() -> None:
    blob = written(cpio.regular("etc/x", b"hello", 0o640))
    header = blob[:110].decode()
    assert header[:6] == "070701"
    assert header[6:14] == "00000001"
    assert int(header[14:22], 16) == stat.S_IFREG | 0o640
    assert header[22:54] == "00000000" * 2 + "00000001" + "00000000"
    assert header[54:62] == "00000005"
    assert header[94:102] == "00000006"
    assert blob[110:116] == b"etc/x\0"
    assert blob[116:121] == b"hello"
    assert len(blob) % 512 == 0


def test_every_kind_of_member_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"x" * 5001)
    found = members(
        cpio.directory("tmp", 0o1777),
        cpio.regular("program", tmp_path / "program", 0o755),
        cpio.symlink("bin", "usr/bin"),
        cpio.char_device("dev/console", 5, 1, 0o600),
    )
    assert found["tmp"].mode == stat.S_IFDIR | 0o1777
    assert found["program"].data == b"x" * 5001
    assert found["program"].mode == stat.S_IFREG | 0o755
    assert (found["bin"].mode, found["bin"].data) == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert (found["dev/console"].mode, found["dev/console"].device) == (stat.S_IFCHR | 0o600, (5, 1))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the host has no cpio to compare with")
def test_the_host_s_cpio_reads_it(tmp_path: Path) -> None:
    blob = written(cpio.directory("etc"), cpio.regular("etc/abc", b"1"), cpio.symlink("l", "etc"))
    listing = subprocess.run(["cpio", "--list", "--quiet"], input=blob, capture_output=True, check=True)
    assert listing.stdout.decode().split() == ["etc", "etc/abc", "l"]


def test_a_directory_comes_before_what_it_holds() -> None:
    names = list(members(*(cpio.regular(name, b"") for name in ("a/b", "a.b", "a-b")), cpio.directory("a")))
    assert names.index("a") < names.index("a/b")


def test_order_times_owners_and_umask_do_not_show(tmp_path: Path) -> None:
    def build(name: str, *, mask: int, mtime: int, reverse: bool) -> bytes:
        root = tmp_path / name
        old = os.umask(mask)
        try:
            for path in sorted(["d/one", "d/two", "three"], reverse=reverse):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(path)
                os.utime(root / path, (mtime, mtime))
            (root / "run").write_text("#!/bin/sh\n")
            (root / "run").chmod(0o777 & ~mask)
        finally:
            os.umask(old)
        entries = cpio.tree(root)
        return written(*(reversed(entries) if reverse else entries))

    first = build("first", mask=0o022, mtime=1, reverse=False)
    second = build("second", mask=0o077, mtime=1_700_000_000, reverse=True)
    assert first == second
    (archive,) = read_archives(first)
    assert {(m.uid, m.gid, m.mtime) for m in archive.values()} == {(0, 0, 0)}
    assert [m.inode for m in archive.values()] == list(range(1, len(archive) + 1))
    assert stat.S_IMODE(archive["run"].mode) == 0o755
    assert stat.S_IMODE(archive["three"].mode) == 0o644


def test_of_two_members_with_one_path_the_last_counts() -> None:
    assert members(cpio.regular("a", b"old"), cpio.regular("a", b"new"))["a"].data == b"new"


def test_archives_can_follow_each_other() -> None:
    blob = written(cpio.regular("odd", b"123")) + written(cpio.regular("next", b"4"))
    assert [list(archive) for archive in read_archives(blob)] == [["odd"], ["next"]]


def test_a_link_is_kept_as_a_link_even_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    assert stat.S_ISLNK(members(*cpio.tree(tmp_path))["lib"].mode)


def test_a_pipe_has_no_place_in_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe"):
        cpio.tree(tmp_path)
